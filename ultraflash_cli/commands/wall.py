"""Time a whole command, from file to file, for `ultraflash bench`."""

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from ultraflash_cli.bench.cases import RES, BenchCase, drifting_frames
from ultraflash_cli.bench.models import MeasuredModel
from ultraflash_cli.bench.report import WallTime
from ultraflash_cli.errors import UltraflashError
from ultraflash_cli.host import keep_freed_memory
from ultraflash_cli.jobs.events import Chunk, Event, Listener
from ultraflash_cli.jobs.planning.generate import GenerateJob, PreparedGeneration
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob
from ultraflash_cli.jobs.running.forecast import Forecaster
from ultraflash_cli.jobs.running.generate import run_generation
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.jobs.running.prepare import prepare, prepare_generation
from ultraflash_cli.jobs.running.report import Report
from ultraflash_cli.jobs.running.upscale import run
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameGenerator, FrameUpscaler, as_frame_generator, as_frame_upscaler
from ultraflash_cli.models.profile import find_profile
from ultraflash_cli.video.encode import MADE_TICKS, made_spec
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.segment import SegmentWriter

__all__ = ["measure_wall", "predict", "rate"]

_PROMPT = "A red boat drifts on a calm lake at sunrise."
_RATE = 24


def measure_wall(case: BenchCase) -> WallTime:
    """Run the command of a case in a temporary folder."""
    keep_freed_memory()
    first_group: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Chunk) and not first_group:
            first_group.append(event.frames_done)

    with tempfile.TemporaryDirectory(prefix="ultraflash-bench-") as name:
        report = (_upscale if case.kind == "upscale" else _generate)(case, Path(name), listen)
    encoder, first_s = report.encoder or {}, report.first_frame_s or 0.0
    return WallTime(
        frames=report.frames_out,
        seconds=report.seconds,
        fps=rate(report.frames_out, report.seconds, first_frames=sum(first_group), first_s=first_s),
        first_frame_seconds=report.first_frame_s,
        codec=str(encoder.get("codec", "unknown")),
        limit=report.limit,
    )


def rate(frames: int, seconds: float, *, first_frames: int, first_s: float) -> float:
    """Return the frames per second after the first group; a clip of a single group counts
    as a whole."""
    if first_frames >= frames or first_s >= seconds:
        return frames / seconds
    return (frames - first_frames) / (seconds - first_s)


def predict(cases: Sequence[BenchCase], wall: bool) -> float | None:
    """Predict the seconds that the models compute while some cases are measured, from
    their speed on a small picture. None if the work of a model depends on the clip."""
    forecaster, seconds = Forecaster(Models(times_short=True)), 0.0
    with tempfile.TemporaryDirectory(prefix="ultraflash-bench-") as name:
        for case in cases:
            try:
                if case.kind == "upscale":
                    prepared = prepare(_upscale_job(case, Path(name)))
                else:
                    prepared = prepare_generation(_generate_job(case, Path(name)))
                clip_s = forecaster.forecast(prepared).seconds
            except UltraflashError:
                return None
            if clip_s is None:
                return None
            # The model alone makes a generated clip twice: its work is counted first.
            seconds += clip_s * ((2 if case.kind == "generate" else 1) + wall)
    return seconds


def _upscale_job(case: BenchCase, folder: Path) -> UpscaleJob:
    source = folder / "source.mp4"
    _write_clip(case, source)
    return UpscaleJob(source=source, output=folder / "out.mp4", res=f"{case.scale}x", **_shared(case))


def _generate_job(case: BenchCase, folder: Path) -> GenerateJob:
    res = {times: name for name, times in RES.items()}[case.scale]
    return GenerateJob(prompt=_PROMPT, output=folder / "out.mp4", res=res, seconds=case.seconds, **_shared(case))


def _upscale(case: BenchCase, folder: Path, listen: Listener) -> Report:
    job = _upscale_job(case, folder)

    def build(prepared: Prepared) -> Built[FrameUpscaler]:
        model = MeasuredModel(case)
        upscaler = as_frame_upscaler(model.upscaler(prepared.plan), model.clock)
        return Built(model=upscaler, device=model.where, precision=model.precision, weights={})

    return run(job, listen, build=build if case.untrained else None)


def _generate(case: BenchCase, folder: Path, listen: Listener) -> Report:
    job = _generate_job(case, folder)

    def build(prepared: PreparedGeneration) -> Built[FrameGenerator]:
        model = MeasuredModel(case)
        assert model.context is not None, "what generates takes words"
        generator = as_frame_generator(model.video(prepared.plan), model.context, prepared.base_size, model.clock)
        return Built(model=generator, device=model.where, precision=model.precision, weights={})

    return run_generation(job, listen, build=build if case.untrained else None)


def _shared(case: BenchCase) -> dict[str, Any]:
    return {
        "model": case.model,
        "store": case.store,
        "device": case.device,
        "precision": case.precision,
        "cuda_graphs": case.graphs,
        "threads": case.threads,
    }


def _write_clip(case: BenchCase, path: Path) -> None:
    """Write a synthetic H.264 clip with two groups more than are timed."""
    count = case.frames + 8 * find_profile(case.model).group_latents
    spec = made_spec(
        width_px=case.width_px,
        height_px=case.height_px,
        rate=Fraction(_RATE),
        codec="h264",
        threads=case.threads,
    )
    with SegmentWriter(path, spec) as writer:
        for number, picture in enumerate(islice(drifting_frames(case.width_px, case.height_px), count)):
            writer.write(Frame(number * MADE_TICKS, MADE_TICKS, picture))
