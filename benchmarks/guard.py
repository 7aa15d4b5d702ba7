"""Measure `--guard`: how many pixels of upscaled clips depart from their source by more
than a limit, how many still do after the guard, and what that does to PSNR.

    python -m benchmarks.guard --clips FOLDER

Inputs are made as by `benchmarks.quality` (x2, clean and deg), and the central part of
nine frames of each clip is compared with the original. "Beyond" is the share of source
pixels beyond the limit, "after" the share still more than a level beyond it after the
guard; PSNR is that of luma, the mean change and that of the clip that loses most.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality import CLIP_SUFFIXES, Case, prepare
from benchmarks.rgb import read_rgb
from ultraflash_cli.api import open_stream
from ultraflash_cli.engine.guard import Guard
from ultraflash_cli.engine.layers.resample import lanczos_upscale
from ultraflash_cli.train.losses import luma

__all__ = ["LEVELS", "Effect", "effect", "main", "table"]

LEVELS = (4, 8, 16, 24, 32, 48)
"""Limits that are measured."""
SCALE = 2
KINDS = ("clean", "deg")


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a limit does to a clip."""

    beyond: float
    """Share of source pixels beyond the limit before the guard."""
    after: float
    """Share still more than a level beyond it after the guard."""
    psnr_change: float
    """In dB."""


def effect(picture_nchw: Tensor, source_nchw: Tensor, truth_nchw: Tensor, levels: float) -> Effect:
    """Return the effect of a limit on RGB frames in [0, 1]; source frames are half as
    large."""
    before, after = Guard(levels), Guard(levels + 1)
    held = before.hold(picture_nchw, source_nchw, lambda: lanczos_upscale(source_nchw, SCALE))
    after.hold(held, source_nchw, lambda: held)
    assert before.share is not None and after.share is not None, "there are pixels"
    change = _psnr(held, truth_nchw) - _psnr(picture_nchw, truth_nchw)
    return Effect(beyond=before.share, after=after.share, psnr_change=change)


def _psnr(picture_nchw: Tensor, truth_nchw: Tensor) -> float:
    pictures = (picture_nchw.clamp(0, 1), truth_nchw)
    made, wanted = (luma(each.transpose(0, 1)[None]) for each in pictures)
    error = made - wanted
    return float(-10 * torch.log10(error.square().mean().clamp_min(1e-10)))


def frames_of(case: Case, size: tuple[int, int], threads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the central part, of ``size`` (width and height) in the original: upscaled
    without a guard, the source and the original, each ``[N, 3, H, W]`` in [0, 1]."""
    whole, small = ((w // SCALE, h // SCALE) for w, h in ((case.width_px, case.height_px), size))
    left, top = ((side - part) // 4 * 2 for side, part in zip(whole, small, strict=True))
    low = _cut(case.low, whole, (left, top), small)
    truth = _cut(case.truth, (case.width_px, case.height_px), (SCALE * left, SCALE * top), size)
    with open_stream(small, scale=SCALE, guard=None, threads=threads) as stream:
        made = np.concatenate([stream.step(low), stream.flush()])
    made_nchw, low_nchw, truth_nchw = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (made, low, truth))
    return made_nchw, low_nchw, truth_nchw


def _cut(clip: Path, whole: tuple[int, int], start: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return part of all frames, ``[N, H, W, 3]`` in [0, 1]."""
    x, y = (slice(at, at + side) for at, side in zip(start, size, strict=True))
    frames = read_rgb(clip, width_px=whole[0], height_px=whole[1])
    return np.stack([frame[y, x] for frame in frames]).astype(np.float32) / np.float32(255)


def table(effects: dict[tuple[str, float], list[Effect]]) -> str:
    """Return a Markdown table, a row per limit."""
    lines = [
        f"| `--guard` | {' | '.join(f'{kind}: beyond, after, PSNR' for kind in KINDS)} |",
        "|---" * (1 + len(KINDS)) + "|",
    ]
    for levels in LEVELS:
        cells = [f"{levels}"]
        for kind in KINDS:
            found = effects[kind, levels]
            beyond, after, change = (
                float(np.mean([getattr(each, name) for each in found])) for name in ("beyond", "after", "psnr_change")
            )
            worst = min(each.psnr_change for each in found)
            cells.append(f"{100 * beyond:.2f} %, {100 * after:.2f} %, {change:+.2f} dB ({worst:+.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of full-size clips")
    parser.add_argument("--frames", type=int, default=9, help="of each clip (9)")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 384), help="width and height of the part (640 384)")
    parser.add_argument("--threads", type=int, default=1)
    settings = parser.parse_args(arguments)
    effects: dict[tuple[str, float], list[Effect]] = {(kind, levels): [] for kind in KINDS for levels in LEVELS}
    clips = sorted(path for path in settings.clips.iterdir() if path.suffix in CLIP_SUFFIXES)
    with tempfile.TemporaryDirectory(prefix="guard_") as folder:
        for clip in clips:
            for case in prepare(clip, Path(folder), scale=SCALE, frames=settings.frames, kinds=KINDS):
                frames = frames_of(case, tuple(settings.size), settings.threads)
                for levels in LEVELS:
                    effects[case.kind, levels].append(effect(*frames, levels))
            print(clip.stem, file=sys.stderr, flush=True)
    print(table(effects))
    return 0


if __name__ == "__main__":
    sys.exit(main())
