"""A generator without a network, and jobs that use it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.jobs.fakes import FakeGenerator
from ultraflash_cli.jobs.events import Chunk, Event
from ultraflash_cli.jobs.planning.generate import (
    GenerateJob,
    PreparedGeneration,
)
from ultraflash_cli.jobs.running.generate import GenerateReport, run_generation
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameGenerator

__all__ = ["PROMPT", "Build", "builder", "fake", "generate", "job"]

PROMPT = "A corgi on a beach"


Build = Callable[[PreparedGeneration], Built[FrameGenerator]]


def fake(prepared: PreparedGeneration, **options: Any) -> FakeGenerator:
    height, width = prepared.base_size
    return FakeGenerator(
        prepared.plan.pixel_frames,
        size=(prepared.scale * height, prepared.scale * width),
        low_size=prepared.base_size if prepared.low_spec is not None else None,
        **options,
    )


def builder(weights: str = "0", warnings: tuple[str, ...] = (), **options: Any) -> Build:
    return lambda prepared: Built(
        model=fake(prepared, **options),
        device="cpu",
        precision="fp32",
        weights={"tiny": weights},
        warnings=warnings,
    )


def job(folder: Path, **options: Any) -> GenerateJob:
    settings: dict[str, Any] = {"prompt": PROMPT, "model": "tiny-random", "res": "480p", "crf": 1, "threads": 1}
    if "output" not in options:
        settings["folder"] = folder
    return GenerateJob(**(settings | options))


def generate(
    made: GenerateJob,
    *,
    stop_at: int | None = None,
    build: Build | None = None,
    events: list[Event] | None = None,
    segment_frames: int = 12,
) -> GenerateReport:
    stop = Stop()

    def listen(event: Event) -> None:
        if events is not None:
            events.append(event)
        if stop_at is not None and isinstance(event, Chunk) and event.frames_done >= stop_at:
            stop.request(15)

    return run_generation(made, listen, stop=stop, build=build or builder(), segment_frames=segment_frames)
