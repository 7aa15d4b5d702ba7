"""Degraded pairs stored on disk, so that training does not wait for codecs; larger and
longer than the crops it uses."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ultraflash_cli.errors import InputError
from ultraflash_cli.train.data import PairConfig, PairDataset, clip_tensor, data_hash, load_materials
from ultraflash_cli.train.degradation import draw
from ultraflash_cli.train.operators import apply, to_log
from ultraflash_cli.video.partial import output_errors, partial_file

__all__ = ["CutConfig", "KeptPairs", "MakePairsJob", "cut_batch", "make_pairs", "pairs_hash"]

TRIES = 2
"""Candidate crops of a pair; the one with more detail is taken."""


@dataclass(frozen=True, kw_only=True)
class MakePairsJob:
    """Pairs to make, and their folder."""

    data: Path
    """Folder of prepared material."""
    out: Path
    """Folder of pairs; existing ones are kept."""
    count: int
    """Number of pairs."""
    scale: int
    """Ratio of the high to the low resolution."""
    pairs: PairConfig
    """Sampling of each pair."""
    seed: int = 1
    """Seed of all random choices."""


def make_pairs(job: MakePairsJob, *, on_pair: Callable[[int], None] | None = None) -> None:
    """Write pairs of one scale, three files each: NUMBER_xSCALE.json with the sampled
    parameters, and the two clips. A pair is a pure function of material, settings, seed
    and number. Raises InputError for unusable material.
    """
    materials = load_materials(job.data)
    known = data_hash(materials)
    dataset = PairDataset(materials, job.pairs, seed=job.seed, scale_of={job.scale: 1.0})
    with output_errors(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
    for number in range(job.count):
        name = f"{number:06d}_x{job.scale}"
        if (job.out / f"{name}.json").exists():
            continue
        high, rng = dataset.high(number, job.scale)
        kind, operators = draw(job.pairs.degradation, high.shape[1:3], job.scale, rng)
        low = apply(high, operators)
        with output_errors(job.out):
            np.save(job.out / f"{name}_low.npy", low)
            np.save(job.out / f"{name}_high.npy", high)
        with partial_file(job.out / f"{name}.json") as part:
            told = {"scale": job.scale, "kind": kind, "data_hash": known, "operators": to_log(operators)}
            part.write_text(json.dumps(told))
        if on_pair is not None:
            on_pair(number + 1)


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """Crop of a stored pair for training."""

    frames: int = 6
    """Number of frames of a clip."""
    side_px: int = 192
    """Side of the high-resolution crop; the low-resolution one is smaller by the scale."""
    clean_share: float | None = None
    """Fraction of clean pairs; None keeps the folder's own fraction."""


class KeptPairs:
    """The pairs in a folder; batch ``number`` is a pure function of the folder's
    content, the seed and the number."""

    def __init__(self, folder: Path, config: CutConfig, *, seed: int, scale_of: dict[int, float]) -> None:
        self.folder, self.config, self.seed = folder, config, seed
        self.names: dict[int, list[str]] = {}
        self.kinds: dict[str, str] = {}
        for path in sorted(folder.glob("*.json")):
            told = json.loads(path.read_text(encoding="utf-8"))
            self.names.setdefault(int(told["scale"]), []).append(path.stem)
            self.kinds[path.stem] = told["kind"]
        lacking = [scale for scale in scale_of if scale not in self.names]
        if lacking:
            raise InputError(f"{folder}: no pairs at x{lacking[0]}; make them with `ultraflash train make-pairs`")
        self.scales = tuple(scale_of)
        self.scale_odds = np.array(list(scale_of.values())) / sum(scale_of.values())

    def batch(self, number: int, size: int) -> tuple[Tensor, Tensor, int, Tensor]:
        """Return batch ``number``: low [B, 3, T, h, w], high [B, 3, T, H, W], scale, and which clips are clean [B]."""
        rng = np.random.default_rng((self.seed, 4, number))
        scale = int(self.scales[rng.choice(len(self.scales), p=self.scale_odds)])
        chosen = [self._choose(self.names[scale], rng) for _ in range(size)]
        pairs = [self._cut(name, scale, rng) for name in chosen]
        clean = torch.tensor([self.kinds[name] == "clean" for name in chosen])
        return torch.stack([low for low, _ in pairs]), torch.stack([high for _, high in pairs]), scale, clean

    def _choose(self, names: list[str], rng: np.random.Generator) -> str:
        share = self.config.clean_share
        if share is not None:
            wants_clean = bool(rng.random() < share)
            names = [name for name in names if (self.kinds[name] == "clean") == wants_clean] or names
        return names[rng.integers(len(names))]

    def _cut(self, name: str, scale: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        low, high = (np.load(self.folder / f"{name}_{end}.npy", mmap_mode="r") for end in ("low", "high"))
        config = self.config
        side, frames = config.side_px // scale // 2 * 2, min(config.frames, len(low))
        start = int(rng.integers(len(low) - frames + 1))
        corners = [
            (int(rng.integers(low.shape[1] - side + 1)) // 2 * 2, int(rng.integers(low.shape[2] - side + 1)) // 2 * 2)
            for _ in range(TRIES)
        ]
        pieces = [_piece(high, start, frames, y * scale, x * scale, side * scale) for y, x in corners]
        best = max(range(TRIES), key=lambda i: float(np.abs(np.diff(pieces[i][0, ::2, :, 1].astype(int))).mean()))
        y, x = corners[best]
        turn = int(rng.integers(8))
        return tuple(  # pyright: ignore[reportReturnType]
            clip_tensor(_turned(piece, turn)) for piece in (_piece(low, start, frames, y, x, side), pieces[best])
        )


def cut_batch(
    data: Path, config: CutConfig, seed: int, scale_odds: tuple[tuple[int, float], ...], size: int, number: int
) -> tuple[Tensor, Tensor, int, Tensor]:
    """Return batch ``number`` of the pairs in ``data``, identical in every process."""
    return _kept(data, config, seed, scale_odds).batch(number, size)


@lru_cache(maxsize=1)
def _kept(data: Path, config: CutConfig, seed: int, scale_odds: tuple[tuple[int, float], ...]) -> KeptPairs:
    return KeptPairs(data, config, seed=seed, scale_of=dict(scale_odds))


def pairs_hash(folder: Path) -> str:
    """Return a hash of the material and the parameters of all pairs in a folder. Raises
    InputError if there are none."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")):
        digest.update(path.name.encode() + path.read_bytes())
    if not any(folder.glob("*.json")):
        raise InputError(f"{folder}: no pairs; make them with `ultraflash train make-pairs`")
    return digest.hexdigest()[:16]


def _piece(clip: npt.NDArray[np.uint8], start: int, frames: int, y: int, x: int, side: int) -> npt.NDArray[np.uint8]:
    return np.asarray(clip[start : start + frames, y : y + side, x : x + side])


def _turned(clip: npt.NDArray[np.uint8], turn: int) -> npt.NDArray[np.uint8]:
    """Flip and transpose a square clip in one of eight ways."""
    clip = clip[:, :, ::-1] if turn & 1 else clip
    clip = clip[:, ::-1] if turn & 2 else clip
    return clip.transpose(0, 2, 1, 3) if turn & 4 else clip
