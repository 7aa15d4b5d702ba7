"""Several clips in one command: which ones, one after the other, what became of each."""

import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ultraflash_cli.errors import InputError, Interrupted, UltraflashError, UsageError
from ultraflash_cli.jobs.events import Listener, Planned, Warned
from ultraflash_cli.jobs.planning.generate import GenerateJob, PreparedGeneration, prepare_generation
from ultraflash_cli.jobs.planning.inputs import is_address, missing
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob, prepare
from ultraflash_cli.jobs.running.generate import planned_generation, run_prepared_generation
from ultraflash_cli.jobs.running.loader import Builder, GenerationBuilder, Models
from ultraflash_cli.jobs.running.report import Report
from ultraflash_cli.jobs.running.upscale import planned, run_prepared
from ultraflash_cli.jobs.stop import Stop

if TYPE_CHECKING:
    from ultraflash_cli.engine.memory import MemoryPlan

__all__ = [
    "VIDEO_SUFFIXES",
    "FoundClip",
    "Outcome",
    "find_clips",
    "is_several",
    "missing_inputs",
    "names_a_file",
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

_RESULT = re.compile(r"_(\d+(k|p|x)|\d+x\d+)(_part|_preview)?(_side_by_side)?$")
_RESUMES = "; the same command with -n resumes there"
_NAMED = 3
"""How many of the files that are passed over in a folder a message names."""


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
    failure: InputError | None = None
    """Why it cannot be looked at: it is a folder inside a tree that may not be read."""


def is_several(inputs: Sequence[Path], *, images: bool) -> bool:
    """Tell whether the inputs, as they were named, make a batch, however many clips that turns out to be."""
    # os.path and not Path: what may not be looked at is no reason to fail here, it is refused in words later.
    return len(inputs) > 1 or _is_glob(inputs[0]) or (os.path.isdir(inputs[0]) and not images)


def names_a_file(output: Path) -> bool:
    """Tell whether an output that is to hold several clips is called like a file, and is no folder."""
    return not os.path.isdir(output) and output.suffix.lower() in (*VIDEO_SUFFIXES, ".png")


def missing_inputs(inputs: Sequence[Path], *, asks_output: bool) -> list[InputError]:
    """Give an error for each input that does not exist; `asks_output` says that no `-o` was given."""
    found: list[InputError] = []
    for path in inputs:
        if "%" in path.name or path == Path("-") or _is_glob(path):
            continue
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            meant = asks_output and path is inputs[-1] and path.suffix.lower() in VIDEO_SUFFIXES
            error = InputError(f"{path}: {missing(path, meant_as_output=meant)}")
            error.source = str(path)
            found.append(error)
        except OSError:
            continue  # refused in words when its turn comes
    return found


def find_clips(
    inputs: Sequence[Path],
    *,
    images: bool = False,
    recursive: bool = False,
    outputs: Path | None = None,
    on_event: Listener = lambda event: None,
) -> list[FoundClip]:
    """Replace globs by what they stand for and folders by the videos in them, in the order of their names.

    With `images` a folder is one clip. With `recursive` videos in the folders inside come along, but for those in
    `outputs`, where the results go. Hidden files are left out. What else is passed over is told in a warning: what
    `upscale` made of another file there (`in_1k.mp4` beside `in.mp4`), links to folders, folders that may not be
    read; the latter come last, with their failures. Raises InputError for a folder without video and a glob that fits
    nothing.
    """
    clips: list[FoundClip] = []
    failed: list[FoundClip] = []
    several = len(inputs) > 1
    for path in _expanded(inputs):
        if images or not os.path.isdir(path):
            clips.append(FoundClip(source=path))
            continue
        if several and outputs is not None and os.path.realpath(path) == os.path.realpath(outputs):
            on_event(Warned(input=str(path), message=f"{path} is where the results go, it is left out as an input"))
            continue
        search = _Search(path, recursive=recursive, outputs=outputs, on_event=on_event)
        found = search.clips()
        if not found and not search.failed:
            hint = "" if recursive else ", or --recursive for the folders inside"
            raise InputError(f"{path} is a folder without video files; name a file, a folder that holds some{hint}")
        clips += found
        failed += search.failed
    return clips + failed


class _Search:
    """The videos in a folder."""

    def __init__(self, top: Path, *, recursive: bool, outputs: Path | None, on_event: Listener) -> None:
        self._top = top
        self._recursive = recursive
        self._outputs = os.path.realpath(outputs) if outputs is not None else None
        self._on_event = on_event
        self.failed: list[FoundClip] = []

    def clips(self) -> list[FoundClip]:
        """Give the videos. Raises InputError where the folder itself may not be read."""
        found: list[FoundClip] = []
        folders = [self._top]
        while folders:
            folder = folders.pop()
            try:
                videos, inner = self._look(folder)
            except OSError as error:
                failure = InputError(f"{folder}: {error.strerror}; check the folder and its permissions")
                if folder == self._top:
                    raise failure from error
                self._warn(f"{folder}: {error.strerror}; the folder is left out")
                self.failed.append(FoundClip(source=folder, failure=failure))
                continue
            found += [FoundClip(source=child, below=folder.relative_to(self._top)) for child in videos]
            folders += reversed(inner)
        return found

    def _look(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Give the videos and the folders in a folder. Raises OSError where it may not be read."""
        videos: list[Path] = []
        inner: list[Path] = []
        links: list[str] = []
        for name in sorted(os.listdir(folder)):
            child = folder / name
            if name.startswith("."):
                continue
            is_video = child.suffix.lower() in VIDEO_SUFFIXES
            if not is_video and not self._recursive:
                continue
            try:
                mode = os.stat(child).st_mode
            except PermissionError:
                raise
            except OSError:
                if is_video:
                    self._warn(f"{child} is left out: it cannot be read, or is a link to nothing")
                continue
            if stat.S_ISDIR(mode):
                if os.path.islink(child):
                    links.append(name)
                elif os.path.realpath(child) != self._outputs:
                    inner.append(child)
            elif is_video and stat.S_ISREG(mode):
                videos.append(child)
        if links and self._recursive:
            self._warn(f"{folder}: links to folders are not followed: {_some(links)}; name a folder to take it in")
        return self._without_results(folder, videos), inner if self._recursive else []

    def _without_results(self, folder: Path, videos: list[Path]) -> list[Path]:
        stems = {child.stem for child in videos}
        results = [child for child in videos if _RESULT.sub("", child.stem) in stems - {child.stem}]
        if results:
            names = _some([child.name for child in results])
            self._warn(f"{folder}: left out as results of earlier runs: {names}; name a file to upscale it, too")
        return [child for child in videos if child not in set(results)]

    def _warn(self, message: str) -> None:
        self._on_event(Warned(input=str(self._top), message=message))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _is_glob(path: Path) -> bool:
    return glob.has_magic(str(path)) and not os.path.lexists(path) and not is_address(path)


def _expanded(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        if not _is_glob(path):
            yield path
            continue
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise InputError(f"{path}: nothing fits this name; check the folder and the pattern")
        yield from map(Path, found)


def run_batch(
    jobs: Iterable[UpscaleJob],
    on_event: Listener,
    *,
    stop: Stop,
    build: Builder | None = None,
    sources: Iterable[Path] = (),
) -> Iterator[Outcome]:
    """Run the jobs in order and give each outcome as it comes; networks are loaded once for all of them.

    No output may replace one of the `sources`. Interrupted is raised, and so is every error that is none of ours; the
    other failures are outcomes.
    """
    build = build or Models().upscaler

    def act(prepared: Prepared) -> Report:
        return run_prepared(prepared, on_event, stop=stop, build=build)

    return _each(jobs, _named, prepare, act, stop=stop, claims=_Claims(sources), rest=_RESUMES)


def plan_batch(jobs: Iterable[UpscaleJob], *, stop: Stop, sources: Iterable[Path] = ()) -> Iterator[Outcome]:
    """Check the jobs in order and give for each the plan or the failure; nothing is written or loaded."""
    models = Models()

    def act(prepared: Prepared) -> "tuple[Planned, MemoryPlan]":
        return planned(prepared), models.plan_upscaler(prepared)[2]

    return _each(jobs, _named, prepare, act, stop=stop, claims=_Claims(sources))


def run_generations(
    jobs: Iterable[GenerateJob], on_event: Listener, *, stop: Stop, build: GenerationBuilder | None = None
) -> Iterator[Outcome]:
    """Run the jobs as `run_batch` does."""
    build = build or Models().generator

    def act(prepared: PreparedGeneration) -> Report:
        return run_prepared_generation(prepared, on_event, stop=stop, build=build)

    return _each(jobs, _prompted, prepare_generation, act, stop=stop, rest=_RESUMES)


def plan_generations(jobs: Iterable[GenerateJob], *, stop: Stop) -> Iterator[Outcome]:
    """Check the jobs as `plan_batch` does."""
    models = Models()

    def act(prepared: PreparedGeneration) -> "tuple[Planned, MemoryPlan]":
        return planned_generation(prepared), models.plan_generator(prepared)[2]

    return _each(jobs, _prompted, prepare_generation, act, stop=stop)


def _named(job: UpscaleJob) -> tuple[str, str]:
    return str(job.source), str(job.source)


def _prompted(job: GenerateJob) -> tuple[str, str]:
    return job.line, job.output.name if job.output is not None else job.made_name


class _Claims:
    """Which output belongs to which input of a batch."""

    def __init__(self, sources: Iterable[Path]) -> None:
        self._sources = {os.path.realpath(source) for source in sources}
        self._taken: dict[str, str] = {}

    def check(self, label: str, output: Path, *, is_skipped: bool) -> None:
        """Raise UsageError for an output that another input has, or that is an input itself and not to be skipped."""
        place = os.path.realpath(output)
        if place in self._taken:
            raise UsageError(f"{label} and {self._taken[place]} would both become {output}; rename one")
        if place in self._sources and not is_skipped:
            raise UsageError(f"{label} would become {output}, which is an input, too; write elsewhere with -o")
        self._taken[place] = label


def _each(
    jobs: Iterable[J],
    names: Callable[[J], tuple[str, str]],
    ready: Callable[[J], P],
    act: "Callable[[P], Report | tuple[Planned, MemoryPlan]]",
    *,
    stop: Stop,
    claims: _Claims | None = None,
    rest: str = "",
) -> Iterator[Outcome]:
    """Give the outcome of each job; `rest` is said of those that a stop leaves."""
    for job in jobs:
        source, label = names(job)
        if stop.requested:
            raise stop.interruption(f"interrupted before {label}{rest}")
        try:
            prepared = ready(job)
            if claims is not None:
                # Of two inputs with one name the second is not done because the first is.
                claims.check(label, prepared.output, is_skipped=prepared.exists)
            done = act(prepared)
        except Interrupted as interrupted:
            interrupted.source = source
            raise
        except UltraflashError as failure:
            failure.source = source
            yield Outcome(source=source, label=label, failure=failure)
        else:
            if isinstance(done, Report):
                yield Outcome(source=source, label=label, report=done)
            else:
                yield Outcome(source=source, label=label, plan=done[0], memory=done[1])
