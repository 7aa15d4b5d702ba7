"""Check that every stage of a model matters, by the effect of its output on held-out
rendered scenes. `upscale` and `generate` run normally. Then each stage's output is
replaced by zeros, shuffled in time, and mirrored; the prompt embeddings are replaced by
zeros, and by those of a different scene. A line per stage shows the smallest loss among
these:

    name dB lpips_percent ok|FAIL

in signal-to-noise ratio and, if stlpips-pytorch is installed, in learned distance, both measured
against the scene. A loss of less than 0.5 dB and less than 10 % is a FAIL, because such a stage has
no visible effect; the exit status is then 1.

    python -m benchmarks.stages                    # rendered scenes
    python -m benchmarks.stages --clips FOLDER     # `upscale` also on clips
    python -m benchmarks.stages --weights FOLDER   # `generate` with weights of runs
"""

import argparse
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.autoencoder import HELD_OUT, SIZES, held_out
from benchmarks.candidates import taken_from
from ultraflash_cli.engine import regroup
from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.schedule import plan_generation
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.errors import UsageError
from ultraflash_cli.metrics.lpips import learned_distance, weights_path
from ultraflash_cli.models.build import build_text_to_video, build_upscaler
from ultraflash_cli.models.profile import find_profile
from ultraflash_cli.models.shelf import Config, Shelf
from ultraflash_cli.train.latents import draw_scene, scene_caption, training_scene
from ultraflash_cli.video.plain import read_plain_frames

__all__ = ["Line", "Subject", "checked", "generated", "main", "refined", "upscaled"]

LEAST_DB = 0.5
LEAST_PERCENT = 10.0
CPU = torch.device("cpu")

Change = Callable[[Tensor], Tensor]
"""Change applied to a stage's output ``[B, C, T, H, W]``."""


def put_out(x: Tensor) -> Tensor:
    """Return zeros."""
    return torch.zeros_like(x)


def shuffled(x: Tensor) -> Tensor:
    """Return frames in a different order; two are exchanged."""
    return x.roll(x.shape[2] // 2 if x.shape[2] > 2 else 0, 2).flip(2)


def mirrored(x: Tensor) -> Tensor:
    """Return frames mirrored left to right."""
    return x.flip(-1)


CHANGES: tuple[Change, ...] = (put_out, shuffled, mirrored)


@dataclass(frozen=True)
class Subject:
    """A path through some stages, on clips with a known ground truth."""

    stages: Mapping[str, Any]
    """Stages by name: objects with a ``step`` that returns a state and an output."""
    run: Callable[[int, bool], Tensor]
    """Function from the number of a clip, and whether to use a different clip's prompt,
    to frames [B, 3, T, H, W]."""
    truth: Sequence[Tensor]
    """Ground truth of each clip."""
    words: Callable[[Change], Any] | None = None
    """Opens a context in which the prompt embeddings are changed; None if no stage
    reads a prompt."""


@dataclass(frozen=True)
class Line:
    """The effect of a stage."""

    name: str
    lost_db: float
    lost_percent: float | None
    """Loss of similarity in percent; None without a learned distance."""

    @property
    def ok(self) -> bool:
        """Whether the stage has an effect."""
        return self.lost_db >= LEAST_DB or (self.lost_percent or 0.0) >= LEAST_PERCENT

    def __str__(self) -> str:
        percent = "-" if self.lost_percent is None else f"{self.lost_percent:.1f}"
        return f"{self.name} {self.lost_db:.2f} {percent} {'ok' if self.ok else 'FAIL'}"


def checked(subject: Subject, *, likeness: bool = True) -> Iterator[Line]:
    """Yield the effect of every stage of a subject, measured by the change of its
    output that costs least.

    Without ``likeness`` the signal-to-noise ratio alone decides.
    """
    likeness = likeness and _has_likeness()
    untouched = _quality(subject, likeness)
    for name, stage in subject.stages.items():
        costs: list[tuple[float, float | None]] = []
        for change in CHANGES:
            with _changed(stage, change):
                costs.append(_cost(untouched, _quality(subject, likeness)))
        yield _least(name, costs)
    if subject.words is not None:
        with subject.words(put_out):
            costs = [_cost(untouched, _quality(subject, likeness))]
        costs.append(_cost(untouched, _quality(subject, likeness, others_words=True)))
        yield _least("text_encoder", costs)


@contextmanager
def _changed(stage: Any, change: Change) -> Generator[None]:
    plain = stage.step

    def step(state: Any, inputs: Any) -> tuple[Any, Tensor]:
        state, out = plain(state, inputs)
        return state, change(out)

    stage.step = step
    try:
        yield
    finally:
        del stage.step


def _least(name: str, costs: Sequence[tuple[float, float | None]]) -> Line:
    """Return the change that costs least by the rule."""
    return min((Line(name, *cost) for cost in costs), key=_weight)


def _weight(line: Line) -> float:
    return max(line.lost_db / LEAST_DB, (line.lost_percent or 0.0) / LEAST_PERCENT)


def _quality(subject: Subject, likeness: bool, *, others_words: bool = False) -> tuple[float, float | None]:
    """Return the mean signal-to-noise ratio and learned distance of all clips."""
    ratios: list[float] = []
    distances: list[float] = []
    for number, truth in enumerate(subject.truth):
        out = subject.run(number, others_words).float().clamp(0, 1)
        ratios.append(-10 * float(torch.log10((out - truth).square().mean().clamp_min(1e-8))))
        if likeness:
            middle = slice(truth.shape[2] // 2, truth.shape[2] // 2 + 1)
            distances.append(float(learned_distance(out[:, :, middle], truth[:, :, middle])))
    return float(np.mean(ratios)), float(np.mean(distances)) if distances else None


def _cost(untouched: tuple[float, float | None], touched: tuple[float, float | None]) -> tuple[float, float | None]:
    percent = None
    if untouched[1] is not None and touched[1] is not None:
        percent = 100 * (touched[1] / max(untouched[1], 1e-4) - 1)
    return untouched[0] - touched[0], percent


def _has_likeness() -> bool:
    try:
        weights_path()
    except UsageError:
        return False
    return True


def upscaled(profile: Profile, clips: Sequence[Tensor], *, scale: int = 2) -> Subject:
    """Return the results of `upscale` for downscaled clips [1, 3, T, H, W]; H and W are
    multiples of 32."""
    height, width = (side // scale for side in clips[0].shape[3:])
    plan = plan_upscale(width, height, res=f"{scale}x", multiple_px=profile.multiple_px)
    cascade = build_upscaler(Shelf(), profile, plan, device=CPU).cascade
    small = [F.interpolate(clip[0].transpose(0, 1), scale_factor=1 / scale, mode="area") for clip in clips]

    @torch.inference_mode()
    def run(number: int, _others_words: bool) -> Tensor:
        state = cascade.init_state(height=height, width=width)
        return regroup.run(cascade, state, small[number].transpose(0, 1)[None])[1]

    refiner: Any = cascade.refiner
    found = {"encoder": cascade.encoder}
    found |= {name: getattr(refiner, name, None) for name in ("upsampler", "sr_dit", "decoder")}
    found["pixels"] = getattr(refiner, "path", None)
    return Subject({f"upscale/{name}": stage for name, stage in found.items() if stage is not None}, run, clips)


def refined(profile: Profile, clips: Sequence[Tensor], *, scale: int = 2) -> Subject:
    """Return the results of the part of `generate` that follows the generator, for
    latents of downscaled clips [1, 3, T, H, W]; H and W are multiples of 64 and T of 4,
    the first frame four times."""
    height, width = (side // scale for side in clips[0].shape[3:])
    profile, shelf = profile.at_scale(scale), Shelf()
    assert isinstance(profile.encoder, EncoderConfig) and profile.sr_dit is not None, f"{profile.name} has the stages"
    upsampling, decoding = profile.latent_stages
    parts: dict[str, Config] = {"encoder": profile.encoder, "upsampler": upsampling, "decoder": decoding}
    parts["sr_dit"] = profile.sr_dit
    found: dict[str, Any] = {
        part: shelf.take(profile, part, config, device=CPU, dtype=torch.float32) for part, config in parts.items()
    }
    refiner = Refiner(profile, found["upsampler"], found["sr_dit"], found["decoder"])
    small = [F.interpolate(clip[0].transpose(0, 1), scale_factor=1 / scale, mode="area") for clip in clips]

    @torch.inference_mode()
    def run(number: int, _others_words: bool) -> Tensor:
        shown = small[number].transpose(0, 1)[None]
        encoder = found["encoder"]
        _, latents = encoder.step(encoder.init_state(batch=1, height=height, width=width), shown)
        state = refiner.init_state(height=height // 8, width=width // 8)
        made: list[Tensor] = []
        for group in latents.split(profile.group_latents, dim=2):
            state, (_, frames) = refiner.run_group(state, group)
            made.append(frames)
        return torch.cat(made, dim=2)

    return Subject({f"refine/{name}": stage for name, stage in found.items()}, run, clips)


def generated(
    profile: Profile,
    *,
    count: int,
    latents: int,
    size: tuple[int, int],
    scale: int = 1,
    shelf: Shelf | None = None,
) -> Subject:
    """Return the results of `generate` for the captions of held-out scenes without rain
    or snow."""
    assert profile.generator is not None, f"{profile.name} generates"
    numbers = [n for n in range(HELD_OUT, HELD_OUT + 20 * count) if training_scene(0, n).weather in ("clear", "clouds")]
    numbers = [n for n in numbers if training_scene(0, n).thing is not None][:count]
    shelf, config = shelf or Shelf(), profile.generator
    plan = plan_generation(latents, chunk=config.chunk_latents, chunks_per_group=profile.chunks_per_group(config))
    model = build_text_to_video(shelf, profile, plan, scale=scale, long=False, low_frames=scale == 1, device=CPU)
    assert profile.text_encoder is not None, f"{profile.name} reads words"
    words: Any = shelf.take(profile, "text_encoder", profile.text_encoder, device=CPU, dtype=torch.float32)
    captions = [scene_caption(0, n, np.random.default_rng(n)) for n in numbers]
    with torch.inference_mode():
        contexts = list(words.encode(tuple(captions)).split(1))
    dtype = next(model.sampler.network.parameters()).dtype
    changes: list[Change] = []

    @torch.inference_mode()
    def run(number: int, others_words: bool) -> Tensor:
        context = contexts[(number + 1) % len(contexts) if others_words else number].to(dtype)
        for change in changes:
            context = change(context)
        state = model.init_state(height=size[0] // 8, width=size[1] // 8, context=context)
        frames: list[Tensor] = []
        for _ in plan.groups:
            state, group = model.step(state)
            made = group.low_frames_bcthw if group.frames_bcthw is None else group.frames_bcthw
            assert made is not None, "a group has frames"
            frames.append(made.float())
        return torch.cat(frames, dim=2)

    @contextmanager
    def changed_words(change: Change) -> Generator[None]:
        changes.append(change)
        yield
        changes.clear()

    large = size[0] * scale, size[1] * scale
    drop = profile.alignment.drop_front
    truth = [draw_scene(0, n, plan.total_latents, large)[None, :, drop:] for n in numbers]
    refiner: Any = model.refiner
    found = {"generator": model.sampler, "low_decoder": model.low_decoder}
    found |= {name: getattr(refiner, name, None) for name in ("upsampler", "sr_dit", "decoder")}
    found["pixels"] = getattr(refiner, "path", None)
    stages = {f"generate/{name}": stage for name, stage in found.items() if stage is not None}
    return Subject(stages, run, truth, changed_words)


def _clips(folder: Path, frames: int) -> list[Tensor]:
    """Return the middle of every clip of a folder."""
    found: list[Tensor] = []
    for path in sorted(folder.iterdir()):
        shown = np.stack([frame for frame, _ in zip(read_plain_frames(path), range(frames), strict=False)])
        height, width = (side // 32 * 32 for side in shown.shape[1:3])
        found.append(torch.from_numpy(shown[:, :height, :width]).permute(3, 0, 1, 2)[None].float() / 255)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per stage; return 1 if one has no effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--clips", type=Path, help="folder of clips for `upscale`, beside the drawn scenes")
    parser.add_argument("--weights", type=Path, help="folder of weights of runs, whose `generate` is checked")
    parser.add_argument("--count", type=int, default=3, help="drawn scenes (3)")
    parser.add_argument("--frames", type=int, default=12, help="of each clip that is upscaled (12)")
    settings = parser.parse_args(arguments)
    subjects = _subjects(settings)
    if settings.weights is not None:
        subjects = [lambda: _generated(settings, *taken_from(settings.weights))]
    failed = False
    for subject in subjects:
        for line in checked(subject()):
            failed |= not line.ok
            print(line, flush=True)
    return int(failed)


def _subjects(settings: argparse.Namespace) -> list[Callable[[], Subject]]:
    profile = find_profile(settings.model)
    drawn = [clip.frames_cthw[None, :, : settings.frames] for clip in _drawn(settings.count)]
    subjects = [lambda: upscaled(profile, drawn)]
    if settings.clips:
        subjects += [lambda clip=clip: upscaled(profile, [clip]) for clip in _clips(settings.clips, settings.frames)]
    if profile.generator is not None:
        subjects.append(lambda: _generated(settings, Shelf(), profile))
    return subjects


def _generated(settings: argparse.Namespace, shelf: Shelf, profile: Profile) -> Subject:
    return generated(profile, count=settings.count, latents=6, size=profile.base_size, scale=2, shelf=shelf)


def _drawn(count: int) -> list[Any]:
    return list(held_out(count, SIZES["480p"], falling=False))


if __name__ == "__main__":
    sys.exit(main())
