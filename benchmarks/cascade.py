"""Show the effect of each part of `generate`: on one self-contained page, and as
numbers on stdout. Captions of held-out rendered scenes are generated at 480p and at 1K,
and compared with the renderer's own frames at 1K: the 480p clip enlarged by lanczos,
the model without its SR transformer, with it, and with every block of attention kept
(dense). Then one stream at 480p measures the time to the first frames and the memory in
use at 5, 30 and 120 seconds of video.

    python -m benchmarks.cascade --page cascade.html                       # the shipped weights
    python -m benchmarks.cascade --page cascade.html --weights FOLDER      # weights of runs

`make cascade` runs the first one.
"""

import argparse
import html
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.candidates import taken_from
from benchmarks.generation import unsteadiness
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import GENERATED_FPS, plan_generation
from ultraflash_cli.host import keep_freed_memory
from ultraflash_cli.jobs.pages.page import webp_url, write_page
from ultraflash_cli.models.build import build_text_to_video
from ultraflash_cli.models.device import choose_precision
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.train.latents import draw_scene, scene_caption, training_scene
from ultraflash_cli.train.validation import Scores, mean_scores, scores_of
from ultraflash_cli.video.stills import webp_bytes

__all__ = ["Arm", "Made", "arms_of", "held_out_scenes", "main", "make", "page", "stream"]

CPU = torch.device("cpu")
SCALE = 2
FIRST = 1000
"""Number of the first scene of seed 0, from which no recipe learns."""
CROP_PX = (200, 400, 480, 600)
"""Top, left, height and width of the part that the page shows at full size."""
SMALL = 120, 208
"""Height and width at which steadiness is measured."""
MARKS_S = (5, 30, 120)
"""Seconds of video at which a stream is measured."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A variant of the path from a prompt to frames."""

    name: str
    profile: Profile
    """The model, with or without its SR transformer."""
    scale: int = SCALE
    """Scale factor; 1 stays at the base size and frames are enlarged by lanczos."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """The clip generated from a scene's caption."""

    frames_bcthw: Tensor
    """Frames in [0, 1], at the large size."""
    seconds: float
    """CPU time in seconds."""


def arms_of(profile: Profile) -> list[Arm]:
    """Return the arms of a model: lanczos, without and with its SR transformer,
    dense."""
    arms = [Arm(name="480p, lanczos", profile=profile, scale=1)]
    if profile.sr_dit is None:
        return [*arms, Arm(name="as it serves", profile=profile)]
    every_block = replace(profile.sr_dit, local_range=0, top_k=2**31 - 1)
    return [
        *arms,
        Arm(name="without SR transformer", profile=replace(profile, sr_dit=None)),
        Arm(name="with SR transformer", profile=profile),
        Arm(name="with it, dense", profile=replace(profile, sr_dit=every_block)),
    ]


def held_out_scenes(count: int) -> list[int]:
    """Return numbers of scenes of seed 0 that have a thing and no rain or snow."""
    found: list[int] = []
    number = FIRST
    while len(found) < count:
        scene = training_scene(0, number)
        if scene.thing is not None and scene.weather in ("clear", "clouds"):
            found.append(number)
        number += 1
    return found


@torch.inference_mode()
def make(arm: Arm, shelf: Shelf, captions: Sequence[str], *, latents: int, size: tuple[int, int]) -> Iterator[Made]:
    """Generate a clip from each caption with an arm; ``size`` is the base size in
    pixels."""
    config, words = arm.profile.generator, arm.profile.text_encoder
    assert config is not None and words is not None, f"{arm.profile.name} generates from words"
    plan = plan_generation(latents, chunk=config.chunk_latents, chunks_per_group=arm.profile.chunks_per_group(config))
    low_frames = arm.scale == 1
    model = build_text_to_video(
        shelf, arm.profile, plan, scale=arm.scale, long=False, low_frames=low_frames, device=CPU
    )
    encoder: Any = shelf.take(arm.profile, "text_encoder", words, device=CPU, dtype=torch.float32)
    dtype = next(model.sampler.network.parameters()).dtype
    for number, caption in enumerate(captions):
        began = time.process_time()
        context = encoder.encode((caption,)).to(dtype)
        state = model.init_state(height=size[0] // 8, width=size[1] // 8, seed=number, context=context)
        frames: list[Tensor] = []
        for _ in plan.groups:
            state, group = model.step(state)
            made = group.low_frames_bcthw if low_frames else group.frames_bcthw
            assert made is not None, "a group has frames"
            frames.append(made.float().clamp(0, 1))
        whole = torch.cat(frames, dim=2)
        seconds = time.process_time() - began
        yield Made(frames_bcthw=_lanczos(whole) if low_frames else whole, seconds=seconds)


def _lanczos(frames_bcthw: Tensor) -> Tensor:
    from PIL import Image

    big: list[Tensor] = []
    for frame in (frames_bcthw[0].permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy():
        size = SCALE * frame.shape[1], SCALE * frame.shape[0]
        enlarged = np.array(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
        big.append(torch.from_numpy(enlarged).permute(2, 0, 1).float() / 255)
    return torch.stack(big, dim=1)[None]


def _unsteady(frames_bcthw: Tensor) -> float:
    return unsteadiness(F.adaptive_avg_pool2d(frames_bcthw[0].transpose(0, 1) * 255, SMALL))


@dataclass(frozen=True, kw_only=True)
class Row:
    """Results of an arm over all scenes."""

    name: str
    scores: Scores
    unsteady: float
    """Unsteadiness relative to the renderer's."""
    fps: float
    """Frames per CPU second."""
    shown: bytes
    """Part of a frame of the first scene, as an encoded image."""


def compared(arms: Sequence[Arm], shelf: Shelf, numbers: Sequence[int], *, latents: int) -> tuple[list[Row], bytes]:
    """Return a row for each arm, and the renderer's picture."""
    height, width = arms[0].profile.base_size
    captions = [scene_caption(0, n, np.random.default_rng(n)) for n in numbers]
    drop = arms[0].profile.alignment.drop_front
    truth = [draw_scene(0, n, latents, (SCALE * height, SCALE * width))[None, :, drop:] for n in numbers]
    drawn = [_unsteady(clip) for clip in truth]
    rows: list[Row] = []
    dtype = choose_precision("auto", CPU)
    for arm in arms:
        scores, unsteady, frames, seconds, shown = list[Scores](), list[float](), 0, 0.0, b""
        clips = make(arm, shelf, captions, latents=latents, size=(height, width))
        for clip, wanted, steady in zip(clips, truth, drawn, strict=True):
            out = clip.frames_bcthw
            scores.append(scores_of(out, wanted[:, :, : out.shape[2]], dtype))
            unsteady.append(_unsteady(out) / steady)
            frames, seconds = frames + out.shape[2], seconds + clip.seconds
            shown = shown or _picture(out)
        row = Row(
            name=arm.name,
            scores=mean_scores(scores),
            unsteady=float(np.mean(unsteady)),
            fps=frames / seconds,
            shown=shown,
        )
        rows.append(row)
        print(_line(row), flush=True)
    return rows, _picture(truth[0])


HEADER = "| | PSNR, dB | LPIPS | edges | change | unsteady | frames a CPU second |\n|---|---:|---:|---:|---:|---:|---:|"


def _cells(row: Row) -> list[str]:
    scores = row.scores
    lpips = "-" if scores.lpips is None else f"{scores.lpips:.3f}"
    numbers = [f"{scores.psnr:.2f}", lpips, f"{scores.edges:.2f}", f"{scores.change:.2f}"]
    return [row.name, *numbers, f"{row.unsteady:.2f}", f"{row.fps:.2f}"]


def _line(row: Row) -> str:
    return f"| {' | '.join(_cells(row))} |"


def _picture(frames_bcthw: Tensor) -> bytes:
    top, left, height, width = CROP_PX
    frame = frames_bcthw[0, :, frames_bcthw.shape[2] // 2, top : top + height, left : left + width]
    return webp_bytes(np.ascontiguousarray((frame.permute(1, 2, 0) * 255).round().byte().numpy()), quality=90)


@dataclass(frozen=True)
class Mark:
    """Memory and time of a stream at some length."""

    video_s: float
    resident_mb: float
    wall_s: float


@torch.inference_mode()
def stream(shelf: Shelf, profile: Profile, *, marks_s: Sequence[float] = MARKS_S) -> tuple[float, list[Mark]]:
    """Generate one long clip at 480p; return the seconds to its first frames, and its
    state at each mark."""
    config, words = profile.generator, profile.text_encoder
    assert config is not None and words is not None, f"{profile.name} generates from words"
    latents = round(max(marks_s) * GENERATED_FPS / 4) + config.chunk_latents
    plan = plan_generation(latents, chunk=config.chunk_latents, chunks_per_group=1)
    model = build_text_to_video(shelf, profile, plan, scale=1, long=False, low_frames=True, device=CPU)
    encoder: Any = shelf.take(profile, "text_encoder", words, device=CPU, dtype=torch.float32)
    began, frames, first = time.monotonic(), 0, 0.0
    context = encoder.encode((scene_caption(0, FIRST, np.random.default_rng(FIRST)),))
    context = context.to(next(model.sampler.network.parameters()).dtype)
    height, width = profile.base_size
    state = model.init_state(height=height // 8, width=width // 8, context=context)
    marks: list[Mark] = []
    for _ in plan.groups:
        state, group = model.step(state)
        assert group.low_frames_bcthw is not None, "a group has frames"
        frames += group.low_frames_bcthw.shape[2]
        first = first or time.monotonic() - began
        if len(marks) < len(marks_s) and frames >= marks_s[len(marks)] * GENERATED_FPS:
            marks.append(Mark(frames / GENERATED_FPS, _resident_mb(), time.monotonic() - began))
    return first, marks


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def page(title: str, rows: Sequence[Row], drawn: bytes, caption: str, first_s: float, marks: Sequence[Mark]) -> str:
    """Return the page as HTML."""
    heads = ["", "PSNR, dB", "LPIPS", "edges", "change", "unsteady", "frames a CPU second"]
    figures = [(row.name, row.shown) for row in rows] + [("the renderer", drawn)]
    shown = "".join(
        f"<figure><img src='{webp_url(picture)}' alt=''><figcaption>{html.escape(name)}</figcaption></figure>"
        for name, picture in figures
    )
    lengths = [[f"{m.video_s:.0f} s", f"{m.resident_mb:.0f} MB", f"{m.wall_s:.1f} s"] for m in marks]
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}}
figure{{display:inline-block;margin:.5rem}}img{{max-width:100%}}td,th{{padding:.2rem .8rem;text-align:right}}
td:first-child{{text-align:left}}</style>
<h1>{html.escape(title)}</h1><p>{html.escape(caption)}</p>{shown}
<h2>Against the renderer's frames at 1K</h2>{_html_table(heads, [_cells(row) for row in rows])}
<p>LPIPS: 0 is equal (AlexNet, shift-tolerant). Edges: energy of the finest detail over the renderer's, 1 is right.
Change: error of the change between frames, in 8-bit levels. Unsteady: what differs between frames beyond motion, over
the renderer's.</p>
<h2>One stream at 480p</h2><p>First frames after {first_s:.2f} s.</p>
{_html_table(["video", "memory in use", "time so far"], lengths)}</html>
"""


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{first}</tr>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of weights of runs (what ships)")
    parser.add_argument("--page", type=Path, help="the page (HTML)")
    parser.add_argument("--count", type=int, default=2, help="scenes (2)")
    parser.add_argument("--latents", type=int, default=6, help="of each clip, four frames each (6)")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=list(MARKS_S), help="marks of the stream (5 30 120)"
    )
    settings = parser.parse_args(arguments)
    keep_freed_memory()
    shelf, profile = taken_from(settings.weights)
    numbers = held_out_scenes(settings.count)
    # First, while nothing else takes memory.
    first, marks = stream(shelf, profile, marks_s=settings.seconds) if settings.page else (0.0, [])
    for mark in marks:
        print(f"{mark.video_s:.0f} s of video: {mark.resident_mb:.0f} MB in use, {mark.wall_s:.1f} s")
    print(HEADER)
    rows, drawn = compared(arms_of(profile), shelf, numbers, latents=settings.latents)
    if settings.page is None:
        return 0
    print(f"\nfirst frames of the stream after {first:.2f} s")
    caption = scene_caption(0, numbers[0], np.random.default_rng(numbers[0]))
    name = "lite" if settings.weights is None else settings.weights.name
    write_page(settings.page, page(f"The cascade of {name}", rows, drawn, caption, first, marks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
