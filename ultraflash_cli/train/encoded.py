"""Encoded clips in tar shards (WebDataset): written by `train encode` and read by
recipes.

A sample is a group of members with the same key: ``KEY.high.npy``, the latents of the
clip; ``KEY.low0.npy``, ``KEY.low1.npy`` and so on, those of its degraded versions,
smaller by the scale; ``KEY.text.npy``, the caption's embedding without padding;
``KEY.json``, caption, licence, source, scale and the degradations. Latents are float16
``[C, T, H, W]``.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ultraflash_cli.errors import InputError
from ultraflash_cli.train.loop import Batch
from ultraflash_cli.train.scene_pairs import SceneWindow

__all__ = [
    "EncodedClips",
    "EncodedSample",
    "encoded_batch",
    "holds_encoded",
    "open_encoded",
    "read_members",
]

Member = tuple[int, int]
"""Offset and bytes of a member's content in its shard."""


@dataclass(frozen=True)
class EncodedSample:
    """Index entry of a sample: locations of its members, and its metadata."""

    shard: Path
    key: str
    members: dict[str, Member]
    """Members by extension, such as ``high.npy``."""
    facts: dict[str, Any]
    """The content of ``KEY.json``."""

    @property
    def bucket(self) -> tuple[int, int, int]:
        """Number of latent frames, rows and columns of the clip."""
        latents, rows, columns = self.facts["latents"]
        return latents, rows, columns

    @property
    def partners(self) -> list[str]:
        """File extensions of the degraded versions."""
        return sorted(name for name in self.members if name.startswith("low"))

    def read(self, extension: str) -> npt.NDArray[Any]:
        """Return the array of a member."""
        offset, size = self.members[extension]
        with self.shard.open("rb") as file:
            file.seek(offset)
            return np.load(io.BytesIO(file.read(size)), allow_pickle=False)


class EncodedClips:
    """The samples of a folder of shards, in buckets of equal size; the same in every
    process."""

    def __init__(self, folder: Path) -> None:
        shards = sorted(folder.glob("*.tar"))
        self.samples = [sample for shard in shards for sample in read_members(shard)]
        if not self.samples:
            raise InputError(f"{folder}: no encoded clips; run train encode first")
        self.buckets: dict[tuple[int, int, int], list[EncodedSample]] = {}
        for sample in self.samples:
            self.buckets.setdefault(sample.bucket, []).append(sample)
        scales = {int(sample.facts["scale"]) for sample in self.samples}
        if len(scales) != 1:
            raise InputError(f"{folder}: mixes clips of scales {sorted(scales)}; use one folder for each")
        self.scale = scales.pop()

    @property
    def licences(self) -> Counter[str]:
        """Number of clips under each licence."""
        return Counter(str(sample.facts["licence"]) for sample in self.samples)

    def hash(self) -> str:
        """Return a short hash of the keys, the sizes and how they were made."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(json.dumps([sample.key, sample.facts], sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def draw_bucket(self, window: SceneWindow, rng: np.random.Generator) -> list[EncodedSample]:
        """Return the samples of a bucket of sufficient length, picked with a
        probability proportional to its number of samples. Raises InputError if there is
        none.
        """
        fitting = [each for size, each in self.buckets.items() if size[0] >= window.latents]
        if not fitting:
            longest = max(size[0] for size in self.buckets)
            raise InputError(
                f"clips of at most {longest} latent frames, {window.latents} are needed; "
                "encode longer ones, or set window.latents"
            )
        counts = np.array([len(each) for each in fitting], dtype=np.float64)
        return fitting[rng.choice(len(fitting), p=counts / counts.sum())]

    def cut(
        self, sample: EncodedSample, window: SceneWindow, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, str]:
        """Return a window at low [C, T, h, w] and at high resolution [C, T, H, W], the
        text embedding [tokens, dim], all float32, and the caption. Clips longer or
        larger than the window are cropped.
        """
        latents, rows, columns = sample.bucket
        rows, columns = min(rows, window.rows), min(columns, window.columns)
        room = (latents - window.latents) // window.group
        first = window.group * int(rng.integers(room + 1))
        step = max(window.step, self.scale)
        top, left = (
            step * int(rng.integers((whole - part) // step + 1))
            for whole, part in zip(sample.bucket[1:], (rows, columns), strict=True)
        )
        partner = sample.partners[int(rng.integers(len(sample.partners)))]

        def part(extension: str, shrink: int) -> Tensor:
            y = slice(top // shrink, (top + rows) // shrink)
            x = slice(left // shrink, (left + columns) // shrink)
            whole = sample.read(extension)
            return torch.from_numpy(whole[:, first : first + window.latents, y, x]).float()

        text = torch.from_numpy(sample.read("text.npy")).float()
        pair = part(partner, self.scale), part("high.npy", 1)
        return *pair, text, str(sample.facts["caption"])


def read_members(shard: Path) -> list[EncodedSample]:
    """Return the complete samples of a shard, in order. Raises InputError for a file that is not a
    tar."""
    members: dict[str, dict[str, Member]] = {}
    facts: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                members.setdefault(key, {})[extension] = (member.offset_data, member.size)
                if extension == "json":  # the last member of its sample
                    content = tar.extractfile(member)
                    assert content is not None, "a member is a file"
                    facts[key] = json.loads(content.read())
    except (tarfile.TarError, OSError, ValueError) as error:
        if not facts:
            raise InputError(f"{shard}: not a readable shard ({error})") from error
    return [EncodedSample(shard, key, members[key], facts[key]) for key in facts]


def holds_encoded(folder: Path) -> bool:
    """Return whether a folder contains shards of encoded clips."""
    return any(folder.glob("*.tar"))


@lru_cache(maxsize=1)
def open_encoded(folder: Path) -> EncodedClips:
    """Return the encoded clips of a folder. Raises InputError if there are none."""
    return EncodedClips(folder)


def encoded_batch(folder: Path, window: SceneWindow, seed: int, size: int, number: int) -> Batch:
    """Return low-resolution latents, high-resolution latents, the scale and text
    embeddings of ``size`` samples of one bucket; a pure function of seed and number.
    Clips that were encoded without a text encoder have captions instead of embeddings.
    """
    clips, rng = open_encoded(folder), np.random.default_rng((seed, 23, number))
    bucket = clips.draw_bucket(window, rng)
    drawn = [clips.cut(bucket[int(rng.integers(len(bucket)))], window, rng) for _ in range(size)]
    low, high, texts, captions = zip(*drawn, strict=True)
    words: Tensor | tuple[str, ...] = captions
    if texts[0].numel():
        words = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    return torch.stack(low), torch.stack(high), clips.scale, words
