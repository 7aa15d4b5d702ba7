"""Runs under smaller memory plans."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.jobs.clips import decoded
from tests.jobs.doubler import Doubler, builder, job, upscale
from tests.jobs.running.ways import piped, same
from ultraflash_cli.errors import OutOfMemory
from ultraflash_cli.jobs.events import Event, Planned, Retrying, Started
from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameUpscaler


def hungry(sizes: dict[int, int], asked: list[str | None]) -> Callable[[Prepared], Built[FrameUpscaler]]:
    """Build models that need the planned memory; `sizes` are the plans by budget, and
    the model only fits into 100."""

    def build(prepared: Prepared) -> Built[FrameUpscaler]:
        asked.append(prepared.job.max_memory)
        budget = int(prepared.job.max_memory or 1000)
        fitting = [size for size in sizes if size <= budget]
        if not fitting:
            raise OutOfMemory("the smallest plan needs more")
        planned = max(fitting)
        model = Doubler(prepared, fails_at=None if planned <= 100 else 14)
        warnings = () if planned == 1000 else (f"for lack of memory: plan {sizes[planned]}",)
        made = builder(lambda _: model)(prepared)
        return replace(made, planned_bytes=planned, memory_plan=str(sizes[planned]), warnings=warnings)

    return build


def test_when_memory_runs_out_smaller_plans_are_tried_down_to_one_that_fits(clip: Path, tmp_path: Path) -> None:
    asked: list[str | None] = []
    events: list[Event] = []
    report = upscale(job(clip), build=hungry({1000: 0, 500: 0, 100: 1}, asked), events=events)
    assert asked == [None, "999", "499"]
    assert len([event for event in events if isinstance(event, Retrying)]) == 2
    resumed = [event.frames_resumed for event in events if isinstance(event, Started)]
    assert resumed == [0, 11, 0], "a plan with the same pixels goes on, another one begins again"
    assert report.warnings == (f"{clip}: for lack of memory: plan 0", f"{clip}: for lack of memory: plan 1")
    assert len([event for event in events if isinstance(event, Planned)]) == 1
    upscale(job(clip, tmp_path / "plain.mkv"))
    assert same(decoded(Path(report.output)), decoded(tmp_path / "plain.mkv"))


def test_without_a_smaller_plan_it_is_out_of_memory(clip: Path) -> None:
    with pytest.raises(OutOfMemory, match="smallest") as caught:
        upscale(job(clip), build=hungry({1000: 0, 500: 0}, []))
    assert caught.value.exit_code == 5


def test_a_used_up_pipe_is_not_tried_again(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory):
        upscale(job(Path("-"), tmp_path / "out.mkv", **piped(clip)), build=hungry({1000: 0, 100: 0}, []))
