"""Several clips in one command: which ones, one after the other, what became of each."""

import glob
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
    "FoundClip",
    "Outcome",
    "find_clips",
    "is_several",
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


@dataclass(frozen=True, kw_only=True)
class FoundClip:
    """An input, and where it lies below the folder that was named."""

    source: Path
    below: Path = Path()


def is_several(inputs: Sequence[Path], *, images: bool) -> bool:
    """Tell whether the inputs, as they were named, make a batch, however many clips that turns out to be."""
    # os.path and not Path: what may not be looked at is no reason to fail here, it is refused in words later.
    return len(inputs) > 1 or _is_glob(inputs[0]) or (os.path.isdir(inputs[0]) and not images)


def find_clips(
    inputs: Iterable[Path], *, images: bool = False, recursive: bool = False, outputs: Path | None = None
) -> list[FoundClip]:
    """Replace globs by what they stand for and folders by the videos in them, in the order of their names.

    With `images` a folder is one clip. With `recursive` videos in the folders inside come along, but for those in
    `outputs`, where the results go. Hidden files are left out, and what `upscale` made of another file there
    (`in_1k.mp4` beside `in.mp4`). Raises InputError for a folder without video and a glob that fits nothing.
    """
    clips: list[FoundClip] = []
    for path in _expanded(inputs):
        if images or not os.path.isdir(path):
            clips.append(FoundClip(source=path))
            continue
        found: list[FoundClip] = []
        for folder in _folders(path, outputs) if recursive else [path]:
            found += [FoundClip(source=child, below=folder.relative_to(path)) for child in _videos(folder)]
        if not found:
            hint = "" if recursive else ", or --recursive for the folders inside"
            raise InputError(f"{path} is a folder without video files; name a file, a folder that holds some{hint}")
        clips += found
    return clips


def _is_glob(path: Path) -> bool:
    return glob.has_magic(str(path)) and not os.path.lexists(path)


def _expanded(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        if not _is_glob(path):
            yield path
            continue
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise InputError(f"{path}: nothing fits this name; check the folder and the pattern")
        yield from map(Path, found)


def _folders(path: Path, outputs: Path | None) -> Iterator[Path]:
    """Give a folder and those inside, hidden ones and `outputs` left out."""
    left_out = os.path.realpath(outputs) if outputs is not None else None
    for folder, inner, _ in os.walk(path, onerror=_refuse):
        inner[:] = sorted(
            name
            for name in inner
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) != left_out
        )
        yield Path(folder)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: {error.strerror}; check the folder and its permissions") from error


def _videos(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; check the folder and its permissions") from error
    found = [
        folder / name
        for name in names
        if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".") and os.path.isfile(folder / name)
    ]
    stems = {child.stem for child in found}
    return [child for child in found if _RESULT.sub("", child.stem) not in stems - {child.stem}]


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
