"""Several clips in one command: which files, one after the other, what became of each."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ultraflash_cli.errors import InputError, Interrupted, UltraflashError, UsageError
from ultraflash_cli.jobs.events import Listener, Planned
from ultraflash_cli.jobs.preflight import Prepared, UpscaleJob, prepare
from ultraflash_cli.jobs.stop import Stop
from ultraflash_cli.jobs.upscale import Builder, UpscaleReport, planned, run_prepared

__all__ = ["VIDEO_SUFFIXES", "Outcome", "find_clips", "plan_batch", "run_batch"]

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

    source: Path
    report: UpscaleReport | None = None
    failure: UltraflashError | None = None
    plan: Planned | None = None

    def as_json(self) -> dict[str, object]:
        """Give the one JSON object that `--json` writes for this clip."""
        if self.report is not None:
            return asdict(self.report)
        if self.plan is not None:
            return asdict(self.plan)
        assert self.failure is not None, "a clip has a report, a plan or a failure"
        return {
            "input": str(self.source),
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
    """Run the jobs in order and give each outcome as it comes.

    Interrupted is raised, and so is every error that is none of ours; the other failures are outcomes.
    """
    return _each(jobs, lambda prepared: _ran(prepared, run_prepared(prepared, on_event, stop=stop, build=build)))


def plan_batch(jobs: Sequence[UpscaleJob]) -> Iterator[Outcome]:
    """Check the jobs in order and give for each the plan or the failure; nothing is written."""
    return _each(jobs, lambda prepared: Outcome(source=prepared.job.source, plan=planned(prepared)))


def _ran(prepared: Prepared, report: UpscaleReport) -> Outcome:
    return Outcome(source=prepared.job.source, report=report)


def _each(jobs: Sequence[UpscaleJob], act: Callable[[Prepared], Outcome]) -> Iterator[Outcome]:
    taken: dict[Path, Path] = {}
    for job in jobs:
        try:
            prepared = prepare(job)
            output = prepared.output.resolve()
            if output in taken:
                raise UsageError(f"{job.source} and {taken[output]} would both become {prepared.output}; rename one")
            taken[output] = job.source
            outcome = act(prepared)
        except Interrupted:
            raise
        except UltraflashError as failure:
            outcome = Outcome(source=job.source, failure=failure)
        yield outcome
