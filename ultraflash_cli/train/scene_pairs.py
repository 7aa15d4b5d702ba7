"""Rendered scenes as latents at two sizes, for the recipes that refine a generator's
output. A folder contains ``high``, the scenes at the large size, and one or more
folders ``low*`` with the same scenes at the small size: either encoded, or generated
from their captions, as at inference. All of them are written by ``encode-scenes``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ultraflash_cli.engine.cache import WindowRing
from ultraflash_cli.errors import ConfigError, InputError
from ultraflash_cli.train.flows import noised, normal, one_step
from ultraflash_cli.train.latents import SceneLatents, scene_caption
from ultraflash_cli.train.loop import Batch, generator_of
from ultraflash_cli.train.roles import CascadeRoles
from ultraflash_cli.video.partial import output_errors, partial_file

__all__ = [
    "AnswerScenesJob",
    "ScenePairs",
    "SceneWindow",
    "answer_scenes",
    "holds_scene_pairs",
    "open_scene_pairs",
    "scene_pair_batch",
]


@dataclass(frozen=True, kw_only=True)
class SceneWindow:
    """Size of the part of a scene in a sample."""

    latents: int = 4
    """Number of latent frames."""
    rows: int = 60
    """Number of rows of high-resolution latents."""
    columns: int = 104
    """Number of columns of high-resolution latents."""
    step: int = 8
    """Windows start at multiples of this many high-resolution latents, itself a
    multiple of the token size and the scale."""
    group: int = 2
    """Windows start at multiples of this many latent frames."""

    def __post_init__(self) -> None:
        if min(self.latents, self.rows, self.columns, self.step, self.group) < 1:
            raise ConfigError(f"the sizes of a window must be positive, got {self}")


class ScenePairs:
    """The scenes of a folder at both sizes; opened lazily, and the same in every process."""

    def __init__(self, folder: Path) -> None:
        self.high = SceneLatents(folder / "high")
        self.lows = [SceneLatents(path) for path in sorted(folder.glob("low*"))]
        if not self.lows:
            raise InputError(f"{folder}: has no folder low* next to high")
        for low in self.lows:
            ours, theirs = self.high, low
            if ours.seed != theirs.seed or _firsts(ours) - _firsts(theirs):
                raise InputError(f"{low.files[0].parent}: does not contain the scenes of {folder / 'high'}")
        rows = {int(low.facts[0]["size"][0]) for low in self.lows}
        scales = {int(self.high.facts[0]["size"][0]) / side for side in rows}
        if len(scales) != 1 or not float(next(iter(scales))).is_integer():
            raise InputError(f"{folder}: the sizes of high must be a whole multiple of low")
        self.scale = int(next(iter(scales)))

    def draw(self, window: SceneWindow, rng: np.random.Generator) -> tuple[Tensor, Tensor, str]:
        """Return a window at low [C, T, h, w] and at high resolution [C, T, H, W], both
        float32, and the caption.

        Raises InputError if no scene is long enough.
        """
        low = self.lows[int(rng.integers(len(self.lows)))]
        file = int(rng.integers(len(self.high.files)))
        first_scene = int(self.high.facts[file]["first"])
        partner = next(i for i, facts in enumerate(low.facts) if facts["first"] == first_scene)
        count, _, longest, rows, columns = self.high.shapes[file]
        longest = min(longest, low.shapes[partner][2])
        if longest < window.latents or rows < window.rows or columns < window.columns:
            raise InputError(
                f"{self.high.files[file]}: scenes of {longest} x {rows} x {columns} latents, "
                f"{window.latents} x {window.rows} x {window.columns} are needed"
            )
        i = int(rng.integers(min(count, low.shapes[partner][0])))
        first = window.group * int(rng.integers((longest - window.latents) // window.group + 1))
        top, left = (
            window.step * int(rng.integers((whole - part) // window.step + 1))
            for whole, part in ((rows, window.rows), (columns, window.columns))
        )
        time = slice(first, first + window.latents)

        def cut(path: Path, shrink: int) -> Tensor:
            y = slice(top // shrink, (top + window.rows) // shrink)
            x = slice(left // shrink, (left + window.columns) // shrink)
            with safe_open(path, "pt") as opened:
                return opened.get_slice("latents")[i, :, time, y, x].float()

        pair = cut(low.files[partner], self.scale), cut(self.high.files[file], 1)
        return *pair, scene_caption(self.high.seed, first_scene + i, rng)

    def hash(self) -> str:
        """Return a short hash of the data that the latents were made from."""
        return "".join(each.hash()[:8] for each in (self.high, *self.lows))[:48]


def _firsts(scenes: SceneLatents) -> set[int]:
    return {int(facts["first"]) for facts in scenes.facts}


def holds_scene_pairs(folder: Path) -> bool:
    """Return whether a folder holds rendered scenes at two sizes."""
    return (folder / "high").is_dir()


@lru_cache(maxsize=1)
def open_scene_pairs(folder: Path) -> ScenePairs:
    """Return the scenes of a folder. Raises InputError if they do not match."""
    return ScenePairs(folder)


def scene_pair_batch(folder: Path, window: SceneWindow, seed: int, size: int, number: int) -> Batch:
    """Return low-resolution latents, high-resolution latents, the scale and the
    captions of ``size`` samples."""
    pairs, rng = open_scene_pairs(folder), np.random.default_rng((seed, 17, number))
    low, high, captions = zip(*(pairs.draw(window, rng) for _ in range(size)), strict=True)
    return torch.stack(low), torch.stack(high), pairs.scale, captions


@dataclass(frozen=True, kw_only=True)
class AnswerScenesJob:
    """Scenes for the generator to produce from their captions."""

    scenes: Path
    """Folder of encoded scenes at the generator's size."""
    out: Path
    """Folder of the generated latents; existing files are kept."""
    roles: CascadeRoles
    """Generator and prompt encoder."""
    level: float = 1.0
    """Noise level from which a scene is generated in one step: 1 uses only its caption,
    lower levels keep part of the scene."""
    scale: int = 1
    """Above 1, the latents are upsampled and refined by the SR transformer, in one
    step, as at inference; ``roles`` then include both."""
    latents: int | None = None
    """Number of latent frames per scene; None keeps all."""


@torch.no_grad()
def answer_scenes(job: AnswerScenesJob, *, on_file: Callable[[int], None] | None = None) -> None:
    """Write latents that a generator produces for scenes, chunk by chunk, each
    conditioned on its own earlier chunks. The files have the format of
    ``encode_scenes``. ``on_file`` is called with the number of finished scenes.
    """
    scenes, done = SceneLatents(job.scenes), 0
    with output_errors(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
    for path, facts in zip(scenes.files, scenes.facts, strict=True):
        target = job.out / path.name
        with safe_open(path, "pt") as opened:
            clean, covers = (opened.get_tensor(name) for name in ("latents", "covers"))
            metadata = dict(opened.metadata() or {})
        if job.latents is not None:
            clean, covers = clean[:, :, : job.latents], covers[:, : job.latents]
        if job.scale > 1:
            large = {"size": [job.scale * side for side in facts["size"]]}
            metadata |= {"facts": json.dumps(facts | large)}
            covers = covers.repeat_interleave(job.scale, dim=2).repeat_interleave(job.scale, dim=3)
        if not target.exists():
            answers = [
                _answer(job, scene[None].float(), scenes.seed, int(facts["first"]) + i) for i, scene in enumerate(clean)
            ]
            tensors = {"latents": torch.cat(answers).half().contiguous(), "covers": covers.contiguous()}
            with output_errors(target), partial_file(target) as part:
                save_file(tensors, part, metadata=metadata)
        done += len(clean)
        if on_file is not None:
            on_file(done)


def _answer(job: AnswerScenesJob, clean: Tensor, seed: int, number: int) -> Tensor:
    """Return the generated latents of one scene."""
    generator, rng = job.roles.generator, generator_of(seed, "answers", number)
    words = scene_caption(seed, number, np.random.default_rng((seed, 19, number)))
    keys = generator.embed_context(job.roles.context((words,)), batch=1)
    rings: tuple[WindowRing, ...] | None = None
    done: list[Tensor] = []
    level, chunk = torch.tensor([job.level]), generator.config.chunk_latents
    for first in range(0, clean.shape[2], chunk):
        piece = clean[:, :, first : first + chunk]
        noisy = noised(piece, normal(piece, rng), level)
        flow, rings = generator.forward_chunk(noisy, 1000 * job.level, rings=rings, context=keys, first_frame=first)
        answer = noisy - job.level * flow.float()
        rings = generator.forward_chunk(
            answer,
            generator.config.context_timestep,
            rings=rings,
            context=keys,
            first_frame=first,
        ).rings
        done.append(answer)
    made = torch.cat(done, dim=2)
    if job.scale == 1:
        return made
    return one_step(job.roles.sr_dit, job.roles.upsample(made, job.scale), job.roles.context((words,)), rng).float()
