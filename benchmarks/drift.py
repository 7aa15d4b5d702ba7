"""Measure how far long generated clips depart from what was asked: captions of held-out
rendered scenes are generated for 20 seconds, and one frame of each second is compared
with the renderer's own.

    python -m benchmarks.drift                               # at 480p
    python -m benchmarks.drift --res 1k --scenes 1003 1005
    python -m benchmarks.drift --weights FOLDER --sheet sheet.png

A line per scene has the mean LPIPS of every five seconds, and the last of them relative
to the first (goal: at most 1.15). ``--sheet`` shows a frame of every four seconds above
the renderer's.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.candidates import taken_from
from benchmarks.cascade import CPU, SCALE
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import GENERATED_FPS, LATENT_PX, latents_for, plan_generation
from ultraflash_cli.host import keep_freed_memory
from ultraflash_cli.metrics.lpips import learned_distance
from ultraflash_cli.models.build import build_text_to_video
from ultraflash_cli.models.device import choose_precision
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.latents import scene_caption, training_scene
from ultraflash_cli.video.stills import write_png

__all__ = ["Second", "followed", "main", "means_of"]

SCENES = (1001, 1003, 1005, 1007, 1009, 1014, 1034, 1036)
"""Two scenes with birds, two with balloons, and one each with a ball, a car, boats and a
lantern."""
PART_S = 5
"""Seconds whose frames are averaged."""
SHOWN_S = 4
"""Seconds from one picture of the sheet to the next."""

Second = tuple[Tensor, Tensor]
"""A generated frame and the renderer's, ``[3, H, W]`` in [0, 1]."""


@torch.inference_mode()
def followed(
    shelf: Shelf, profile: Profile, numbers: Sequence[int], *, seconds: int, scale: int
) -> Iterator[list[Second]]:
    """Generate a clip for each scene; yield the frame in the middle of every second."""
    config, words, size = profile.generator, profile.text_encoder, profile.base_size
    assert config is not None and words is not None, f"{profile.name} generates from words"
    latents = latents_for(seconds)
    plan = plan_generation(latents, chunk=config.chunk_latents, chunks_per_group=profile.chunks_per_group(config))
    model = build_text_to_video(shelf, profile, plan, scale=scale, long=False, low_frames=scale == 1, device=CPU)
    encoder: Any = shelf.take(profile, "text_encoder", words, device=CPU, dtype=torch.float32)
    dtype = next(model.sampler.network.parameters()).dtype
    for number in numbers:
        caption = scene_caption(0, number, np.random.default_rng(number))
        context = encoder.encode((caption,)).to(dtype)
        state = model.init_state(height=size[0] // LATENT_PX, width=size[1] // LATENT_PX, seed=number, context=context)
        renderer = Renderer(training_scene(0, number), height_px=scale * size[0], width_px=scale * size[1])
        clip: list[Second] = []
        done = 0
        for _ in plan.groups:
            state, group = model.step(state)
            frames = group.low_frames_bcthw if scale == 1 else group.frames_bcthw
            assert frames is not None, "a group has frames"
            for frame in frames[0].transpose(0, 1):
                at = divmod(done, GENERATED_FPS)
                if at[0] < seconds and at[1] == GENERATED_FPS // 2:
                    drawn = torch.from_numpy(renderer.frame(done / GENERATED_FPS)).permute(2, 0, 1)
                    clip.append((frame.float().clamp(0, 1), drawn.float() / 255))
                done += 1
        yield clip


def means_of(distances: Sequence[float]) -> list[float]:
    """Return the mean of each part of a clip, of a distance for every second."""
    ends = [*range(0, len(distances), PART_S), len(distances)]
    return [float(np.mean(distances[start:end])) for start, end in pairwise(ends)]


def _line(name: str, means: Sequence[float]) -> str:
    return f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} | {means[-1] / means[0]:.2f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of weights of runs (what ships)")
    parser.add_argument("--scenes", type=int, nargs="+", default=list(SCENES), help="numbers of scenes of seed 0")
    parser.add_argument("--seconds", type=int, default=20, help="of each clip (20)")
    parser.add_argument("--res", choices=("480p", "1k"), default="480p")
    parser.add_argument("--sheet", type=Path, help="also write a picture of all clips (PNG)")
    settings = parser.parse_args(arguments)
    keep_freed_memory()
    shelf, profile = taken_from(settings.weights)
    scale = SCALE if settings.res == "1k" else 1
    numbers = settings.scenes
    starts = range(0, settings.seconds, PART_S)
    parts = [f"{start} to {min(start + PART_S, settings.seconds)} s" for start in starts]
    print(f"| scene | {' | '.join(parts)} | last / first |\n|---|{'---:|' * (len(parts) + 1)}")
    dtype = choose_precision("auto", CPU)
    found: list[list[float]] = []
    pictures: list[np.ndarray] = []
    for number, clip in zip(
        numbers, followed(shelf, profile, numbers, seconds=settings.seconds, scale=scale), strict=True
    ):
        found.append(
            means_of([float(learned_distance(a[None, :, None], b[None, :, None], dtype=dtype)) for a, b in clip])
        )
        scene = training_scene(0, number)
        name = f"{scene.thing.kind} {scene.thing.motion}, {scene.place}" if scene.thing else scene.place
        print(_line(f"{number}: {name}", found[-1]), flush=True)
        if settings.sheet is not None:
            pictures += [_strip([second[which] for second in clip[::SHOWN_S]], scale) for which in (0, 1)]
    print(_line("mean", np.mean(found, axis=0).tolist()))
    if settings.sheet is not None:
        write_png(settings.sheet, np.concatenate(pictures))
    return 0


def _strip(frames: Sequence[Tensor], scale: int) -> np.ndarray:
    """Return frames side by side at a quarter of the base size's area, RGB ``[H, W,
    3]``."""
    wide = torch.cat([frame[:, :: 2 * scale, :: 2 * scale] for frame in frames], dim=2)
    return np.ascontiguousarray((wide.permute(1, 2, 0) * 255).round().byte().numpy())


if __name__ == "__main__":
    sys.exit(main())
