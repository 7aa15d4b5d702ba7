"""Several clips in one command: which ones, one after the other, what became of each."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ultraflash_cli.errors import InputError, Interrupted, UltraflashError, UsageError
from ultraflash_cli.jobs.events import Listener, Planned
from ultraflash_cli.jobs.generate import planned_generation, run_prepared_generation
from ultraflash_cli.jobs.generation_preflight import GenerateJob, PreparedGeneration, prepare_generation
from ultraflash_cli.jobs.model import Builder, GenerationBuilder, Models
from ultraflash_cli.jobs.preflight import Prepared, UpscaleJob, prepare
from ultraflash_cli.jobs.report import Report
from ultraflash_cli.jobs.stop import Stop
from ultraflash_cli.jobs.upscale import planned, run_prepared

if TYPE_CHECKING:
    from ultraflash_cli.engine.memory import MemoryPlan

__all__ = [
    "VIDEO_SUFFIXES",
    "Outcome",
    "find_clips",
    "plan_batch",
    "plan_generations",
    "run_batch",
    "run_generations",
]

J = TypeVar("J")
P = TypeVar("P", Prepared, PreparedGeneration)

VIDEO_SUFFIXES = frozenset(
    {
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".dv",
        ".f4v",
        ".flv",
        ".gif",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".nut",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    }
)
"""What counts as a video when a folder is searched; a file that is named is always tried."""

_RESULT = re.compile(r"_(1k|2k|2x|3x|\d+x\d+)(_part|_preview)?(_side_by_side)?$")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one clip: a report, a failure, or in a dry run a plan."""

    source: str
    """The input as events name it: a file, or a prompt."""
    label: str
    """What messages call it."""
    report: Report | None = None
    failure: UltraflashError | None = None
    plan: Planned | None = None
    memory: "MemoryPlan | None" = None
    """What a dry run has found that the model takes."""

    def as_json(self) -> dict[str, object]:
        """Give the one JSON object that `--json` writes for this clip."""
        if self.report is not None:
            return asdict(self.report)
        if self.plan is not None:
            needs: dict[str, object] = {} if self.memory is None else {"memory": self.memory.as_json()}
            return asdict(self.plan) | needs
        assert self.failure is not None, "a clip has a report, a plan or a failure"
        return {
            "input": self.source,
            "output": None,
            "error": str(self.failure),
            "exit_code": self.failure.exit_code,
        }


def find_clips(inputs: Iterable[Path]) -> list[Path]:
    """Replace folders by the videos in them, in the order of their names.

    Hidden files are left out, and what `upscale` made of another file there (`in_1k.mp4` beside `in.mp4`). Raises
    InputError for a folder without video.
    """
    clips: list[Path] = []
    for path in inputs:
        if not os.path.isdir(path):
            clips.append(path)
            continue
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; check the folder and its permissions") from error
        found = [
            path / name
            for name in names
            if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".") and os.path.isfile(path / name)
        ]
        stems = {child.stem for child in found}
        found = [child for child in found if _RESULT.sub("", child.stem) not in stems - {child.stem}]
        if not found:
            raise InputError(f"{path} is a folder without video files; name a file, or a folder that holds some")
        clips += found
    return clips


def run_batch(
    jobs: Sequence[UpscaleJob], on_event: Listener, *, stop: Stop, build: Builder | None = None
) -> Iterator[Outcome]:
    """Run the jobs in order and give each outcome as it comes; networks are loaded once for all of them.

    Interrupted is raised, and so is every error that is none of ours; the other failures are outcomes.
    """
    build = build or Models().upscaler

    def act(prepared: Prepared) -> Report:
        return run_prepared(prepared, on_event, stop=stop, build=build)

    return _each(jobs, _named, prepare, act)


def plan_batch(jobs: Sequence[UpscaleJob]) -> Iterator[Outcome]:
    """Check the jobs in order and give for each the plan or the failure; nothing is written or loaded."""
    models = Models()
    return _each(jobs, _named, prepare, lambda prepared: (planned(prepared), models.plan_upscaler(prepared)[2]))


def run_generations(
    jobs: Sequence[GenerateJob], on_event: Listener, *, stop: Stop, build: GenerationBuilder | None = None
) -> Iterator[Outcome]:
    """Run the jobs as `run_batch` does."""
    build = build or Models().generator

    def act(prepared: PreparedGeneration) -> Report:
        return run_prepared_generation(prepared, on_event, stop=stop, build=build)

    return _each(jobs, _prompted, prepare_generation, act)


def plan_generations(jobs: Sequence[GenerateJob]) -> Iterator[Outcome]:
    """Check the jobs as `plan_batch` does."""
    models = Models()
    return _each(
        jobs,
        _prompted,
        prepare_generation,
        lambda prepared: (planned_generation(prepared), models.plan_generator(prepared)[2]),
    )


def _named(job: UpscaleJob) -> tuple[str, str]:
    return str(job.source), str(job.source)


def _prompted(job: GenerateJob) -> tuple[str, str]:
    return job.line, job.output.name if job.output is not None else job.made_name


def _each(
    jobs: Iterable[J],
    names: Callable[[J], tuple[str, str]],
    ready: Callable[[J], P],
    act: "Callable[[P], Report | tuple[Planned, MemoryPlan]]",
) -> Iterator[Outcome]:
    taken: dict[Path, str] = {}
    for job in jobs:
        source, label = names(job)
        try:
            prepared = ready(job)
            output = prepared.output.resolve()
            if output in taken:
                raise UsageError(f"{label} and {taken[output]} would both become {prepared.output}; rename one")
            taken[output] = label
            done = act(prepared)
        except Interrupted:
            raise
        except UltraflashError as failure:
            yield Outcome(source=source, label=label, failure=failure)
        else:
            if isinstance(done, Report):
                yield Outcome(source=source, label=label, report=done)
            else:
                yield Outcome(source=source, label=label, plan=done[0], memory=done[1])
