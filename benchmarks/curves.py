"""Measure what settings of the cascade cost in time and in likeness to the truth:
the key budget and the KV cache of the SR transformer, and the rules of
`--cache-management`.

Captions of held-out rendered scenes are generated at 1K, and compared with the
renderer's own frames; one setting at a time departs from the profile. All settings
advance together, group by group in alternating order, and CPU time is counted, so that
other work on the machine hardly matters. A stage that does the same work under several
settings counts with its shortest time.

    python -m benchmarks.curves --out curves.json --svg curves.svg
    python -m benchmarks.curves --weights FOLDER           # weights of runs
    python -m benchmarks.curves_page docs/quality.md --svg docs/curves.svg

The last one updates the page and its picture from benchmarks/results.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.candidates import taken_from
from benchmarks.cascade import SCALE, held_out_scenes
from benchmarks.curve_settings import Setting, generator_of, key_blocks, settings_of
from benchmarks.curves_page import CURVES, Row, svg, table
from ultraflash_cli.engine.cache_policy import RefreshGate
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import (
    GENERATED_FPS,
    GenerationPlan,
    latents_for,
    plan_generation,
)
from ultraflash_cli.engine.text_to_video import TextToVideo, TextToVideoState
from ultraflash_cli.host import keep_freed_memory
from ultraflash_cli.metrics.lpips import learned_distance, weights_path
from ultraflash_cli.models.build import build_text_to_video, find_scorer, take_base_decoder
from ultraflash_cli.models.device import choose_precision
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.latents import scene_caption, training_scene
from ultraflash_cli.train.validation import change_error

__all__ = ["CpuClock", "main", "measure", "report"]

CPU = torch.device("cpu")
SHOWN_EVERY = 40
"""Interval of the frames compared by LPIPS, which costs as much as making ten."""
PIECE = 8
"""Number of frames compared at a time, to limit memory."""
REST = "rest"
"""Everything outside the stages."""


class CpuClock:
    """A ``StageTimer`` of CPU time, which time spent waiting for a core does not
    affect."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Time the computations inside the block."""
        began = time.process_time()
        yield
        self._seconds[stage] += time.process_time() - began

    def take(self) -> dict[str, float]:
        """Return the seconds of each stage since the last call."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken


class _Scores:
    """Scores of one clip, to which frames are added group by group."""

    def __init__(self, shown: Sequence[int], dtype: torch.dtype) -> None:
        self._shown = set(shown)
        self._dtype = dtype
        self._frames = 0
        self._last: tuple[Tensor, Tensor] | None = None
        self._squares: list[float] = []
        self._distances: list[float] = []

    def add(self, frames_bcthw: Tensor, truth_thwc: Tensor) -> None:
        """Compare the next frames, nominally in [0, 1], with those of the renderer,
        which are uint8."""
        for at in range(0, frames_bcthw.shape[2], PIECE):
            out = frames_bcthw[:, :, at : at + PIECE].float().clamp(0, 1)
            truth = truth_thwc[at : at + PIECE].permute(3, 0, 1, 2)[None].float() / 255
            for index in range(out.shape[2]):
                if self._frames + index in self._shown:
                    pair = out[:, :, index : index + 1], truth[:, :, index : index + 1]
                    self._distances.append(float(learned_distance(*pair, dtype=self._dtype)))

            self._frames += out.shape[2]
            if self._last is not None:
                out, truth = (torch.cat(pair, dim=2) for pair in zip(self._last, (out, truth), strict=True))
            changes = out.shape[2] - 1
            self._squares += [change_error(out, truth) ** 2] * changes
            self._last = out[:, :, -1:].clone(), truth[:, :, -1:].clone()

    @property
    def lpips(self) -> float:
        """The mean over the frames shown."""
        return float(np.mean(self._distances))

    @property
    def tdiff(self) -> float:
        """In 8-bit levels."""
        return float(np.sqrt(np.mean(self._squares)))


class _Subject:
    """A setting's model, the clip that it is generating, and its results."""

    def __init__(self, setting: Setting, shelf: Shelf, plan: GenerationPlan) -> None:
        self.setting = setting
        self.lpips: list[float] = []
        self.tdiff: list[float] = []
        self.skipped: list[float] = []
        self.seconds: list[dict[str, float]] = []
        self._clock = CpuClock()
        self._model = self._build(shelf, plan)
        self._state: TextToVideoState | None = None
        self._scores: _Scores | None = None

    def _build(self, shelf: Shelf, plan: GenerationPlan) -> TextToVideo:
        profile, gate = self.setting.profile, None
        if self.setting.refresh is not None:
            judge = take_base_decoder(shelf, profile, device=CPU, precision="auto")
            gate = RefreshGate(judge, find_scorer(), self.setting.refresh)
        return build_text_to_video(
            shelf,
            profile,
            plan,
            scale=SCALE,
            long=False,
            low_frames=False,
            device=CPU,
            gate=gate,
            timer=self._clock,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the generator."""
        return next(self._model.sampler.network.parameters()).dtype

    def begin(self, context: Tensor, scores: _Scores, *, seed: int) -> None:
        """Start a clip."""
        height, width = (side // 8 for side in self.setting.profile.base_size)
        self._state = self._model.init_state(height=height, width=width, seed=seed, context=context)
        self._scores = scores

    def step(self) -> Tensor:
        """Generate the next group's frames."""
        assert self._state is not None, "a clip has begun"
        began = time.process_time()
        self._state, group = self._model.step(self._state)
        total = time.process_time() - began
        stages = self._clock.take()
        self.seconds.append(stages | {REST: total - sum(stages.values())})
        assert group.frames_bcthw is not None, "a group has frames"
        return group.frames_bcthw

    def compare(self, frames_bcthw: Tensor, truth_thwc: Tensor) -> None:
        """Add frames to the clip's scores."""
        assert self._scores is not None, "a clip has begun"
        self._scores.add(frames_bcthw, truth_thwc)

    def end(self) -> None:
        """Note the scores of the clip."""
        assert self._scores is not None and self._state is not None, "a clip has begun"
        self.lpips.append(self._scores.lpips)
        self.tdiff.append(self._scores.tdiff)
        generator = self._state.generator
        self.skipped.append(generator.refreshes_skipped / generator.chunks)


@torch.inference_mode()
def measure(
    settings: Sequence[Setting],
    shelf: Shelf,
    profile: Profile,
    plan: GenerationPlan,
    numbers: Sequence[int],
) -> list[Row]:
    """Return a row for each setting; equal ones are measured once.

    ``profile`` is the model's own, which must be among the settings; ``numbers`` are
    those of the scenes.
    """
    distinct: list[Setting] = []
    for setting in settings:
        if not any(setting.equals(other) for other in distinct):
            distinct.append(setting)
    subjects = [_Subject(setting, shelf, plan) for setting in distinct]
    dtype = choose_precision("auto", CPU)
    shown = range(SHOWN_EVERY // 2, plan.total_frames, SHOWN_EVERY) or [plan.total_frames // 2]

    words: Any = shelf.take(profile, "text_encoder", profile.prompt_encoder, device=CPU, dtype=torch.float32)
    for seed, number in enumerate(numbers):
        caption = scene_caption(0, number, np.random.default_rng(number))
        context = words.encode((caption,))
        for subject in subjects:
            subject.begin(context.to(subject.dtype), _Scores(shown, dtype), seed=seed)
        _generate(subjects, number, plan)
        for subject in subjects:
            subject.end()

    seconds = _seconds_per_frame(subjects, plan.total_frames * len(numbers))
    return _rows(settings, subjects, seconds, profile)


def _generate(subjects: Sequence[_Subject], number: int, plan: GenerationPlan) -> None:
    """Generate a scene's clip with every setting and compare it, group by group."""
    height, width = (SCALE * side for side in subjects[0].setting.profile.base_size)
    renderer = Renderer(training_scene(0, number), height_px=height, width_px=width)
    drawn = 0
    for group in range(len(plan.groups)):
        truth: Tensor | None = None
        for subject in subjects if group % 2 == 0 else subjects[::-1]:
            frames = subject.step()
            if truth is None:
                times = range(drawn, drawn + frames.shape[2])
                truth = torch.from_numpy(np.stack([renderer.frame(at / GENERATED_FPS) for at in times]))
            subject.compare(frames, truth)
            del frames
        assert truth is not None, "there are settings"
        drawn += len(truth)
        sys.stderr.write(f"\rscene {number}: {drawn} of {plan.total_frames} frames ")
    sys.stderr.write("\n")


def _seconds_per_frame(subjects: Sequence[_Subject], frames: int) -> list[dict[str, float]]:
    """Return the seconds of each stage under each setting. Where a stage does the same
    work, the shortest time of each group counts for all."""
    stages = list(dict.fromkeys(name for each in subjects for name in each.seconds[0]))
    found: list[dict[str, float]] = []
    for subject in subjects:
        seconds: dict[str, float] = {}
        for stage in stages:
            alike = [
                other.seconds
                for other in subjects
                if stage in other.seconds[0] and subject.setting.same_work(other.setting, stage)
            ]
            if stage in subject.seconds[0]:
                shortest = [min(s[stage] for s in same) for same in zip(*alike, strict=True)]
                seconds[stage] = sum(shortest) / frames
        found.append(seconds)
    return found


def _rows(
    settings: Sequence[Setting],
    subjects: Sequence[_Subject],
    seconds: Sequence[dict[str, float]],
    profile: Profile,
) -> list[Row]:
    """Return the row of each setting from the results of those that differ."""
    size = [SCALE * side // 8 for side in profile.base_size]
    rows: list[Row] = []
    for setting in settings:
        [at] = [i for i, each in enumerate(subjects) if setting.equals(each.setting)]
        subject, sr_dit = subjects[at], setting.profile.sr_dit
        is_profile = setting.profile == profile and setting.refresh is None
        rows.append(
            Row(
                curve=setting.curve,
                setting=setting.name,
                is_profile=is_profile,
                key_blocks=None if sr_dit is None else key_blocks(sr_dit, *size),
                seconds_per_frame=sum(seconds[at].values()),
                sr_seconds_per_frame=seconds[at].get("sr_dit", 0.0),
                seconds_by_stage=seconds[at],
                lpips=float(np.mean(subject.lpips)),
                tdiff=float(np.mean(subject.tdiff)),
                lpips_by_scene=subject.lpips,
                tdiff_by_scene=subject.tdiff,
                passes_skipped=float(np.mean(subject.skipped)),
            )
        )
    return rows


def report(rows: Sequence[Row], settings: dict[str, Any], hashes: dict[str, str]) -> dict[str, Any]:
    """Return all measurements, settings and the environment as one JSON object."""
    return {
        "schema": 1,
        "date": date.today().isoformat(),
        "device": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "precision": str(choose_precision("auto", CPU)).removeprefix("torch."),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("numpy", "torch", "ultraflash")},
        "settings": settings,
        "weights": hashes,
        "rows": [asdict(row) for row in rows],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of weights of runs (what ships)")
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--count", type=int, default=3, help="scenes (3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each clip (5)")
    parser.add_argument("--rules-count", type=int, default=2, help="scenes for the rules (2)")
    parser.add_argument("--rules-seconds", type=float, default=20.0, help="of each clip for the rules (20)")
    parser.add_argument("--out", type=Path, help="JSON file for everything")
    parser.add_argument("--svg", type=Path, help="picture of the curves")
    settings = parser.parse_args(arguments)
    if min(settings.count, settings.rules_count) < 1:
        parser.error("--count and --rules-count must be at least 1")
    if min(settings.seconds, settings.rules_seconds) <= 0:
        parser.error("--seconds and --rules-seconds must be positive")
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON and picture."""
    settings = _parse(arguments)
    weights_path()  # raises without the weights of LPIPS
    keep_freed_memory()
    shelf, profile = taken_from(settings.weights)
    if profile.sr_dit is None:
        print(f"{profile.name} has no SR transformer here; only rules are measured", file=sys.stderr)

    rows: list[Row] = []
    asked = set(settings.curves)
    runs = (
        (asked - {"rules"}, settings.count, settings.seconds),
        (asked & {"rules"}, settings.rules_count, settings.rules_seconds),
    )
    for names, count, seconds in runs:
        generator = generator_of(profile)
        plan = plan_generation(
            latents_for(seconds, chunk=generator.chunk_latents),
            chunk=generator.chunk_latents,
            chunks_per_group=profile.chunks_per_group(generator),
        )
        curves = [curve for curve in CURVES if curve in names]
        points = [point for curve in curves for point in settings_of(curve, profile, plan)]
        if points:
            rows += measure(points, shelf, profile, plan, held_out_scenes(count))

    print(table(rows))
    how = {
        "model": profile.name if settings.weights is None else settings.weights.name,
        "scenes": settings.count,
        "seconds": settings.seconds,
        "rules_scenes": settings.rules_count,
        "rules_seconds": settings.rules_seconds,
    }
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report(rows, how, shelf.hashes), indent=1)
        settings.out.write_text(text + "\n", encoding="utf-8")
    if settings.svg is not None:
        settings.svg.write_text(svg(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
