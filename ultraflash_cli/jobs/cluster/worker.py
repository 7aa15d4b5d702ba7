"""Claim units of a plan, compute them and put them in place until none is left, on any
number of machines."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ultraflash_cli.buffers import SEGMENT_FRAMES
from ultraflash_cli.errors import (
    DeviceError,
    InputError,
    Interrupted,
    OutOfMemory,
    OutputError,
    UltraflashError,
    UsageError,
    WeightsError,
)
from ultraflash_cli.files import sync_folder, write_whole
from ultraflash_cli.jobs.cluster.described import from_json
from ultraflash_cli.jobs.cluster.lease import Holder, Lease, Watch, claim, this_process
from ultraflash_cli.jobs.cluster.tasks import Build, as_facts, prepared_again, task_of
from ultraflash_cli.jobs.cluster.units import DEATHS, FAILURES, Plan, Unit, read_json, remove_folder
from ultraflash_cli.jobs.events import Chunk, Done, Event, Listener
from ultraflash_cli.jobs.planning.generate import PreparedGeneration
from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.jobs.resume.entries import as_read, count_frames, difference
from ultraflash_cli.jobs.resume.owned_files import LOCK, take_away
from ultraflash_cli.jobs.resume.work_folder import OutputLock
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.jobs.running.run import compute, fingerprint
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.work import Work
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.oom import free_memory
from ultraflash_cli.video.partial import output_errors

__all__ = ["UnitOutcome", "Worker", "share_of"]

_LOOK_S = 2.0
"""Interval at which an idle worker checks the units of others."""
_ENDS_THE_WORKER = (DeviceError, WeightsError, UsageError, OutputError)
"""Errors of the machine rather than the unit, which another machine may be able to
compute."""


@dataclass(frozen=True, kw_only=True)
class UnitOutcome:
    """The outcome of a unit that this worker has claimed."""

    unit: Unit
    host: str
    frames: int = 0
    """Number of frames that this worker has computed."""
    seconds: float = 0.0
    fps: float | None = None
    device: str | None = None
    failure: UltraflashError | None = None
    final: bool = False
    """Whether this was the last attempt, so that the unit is not tried again."""
    lost: bool = False
    """Whether another worker took it over or was faster."""

    @property
    def state(self) -> str:
        """`done`, `lost`, `retried` for a first failure, `failed` for the last one."""
        if self.failure is None:
            return "lost" if self.lost else "done"
        return "failed" if self.final else "retried"

    def as_json(self) -> dict[str, object]:
        """Return the JSON object that `--json` writes for this unit."""
        told: dict[str, object] = {
            "input": self.unit.file.input,
            "output": self.unit.file.output,
            "unit": self.unit.number,
            "units": self.unit.file.units,
            "state": self.state,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "fps": self.fps,
            "device": self.device,
            "host": self.host,
        }
        if self.failure is not None:
            told |= {"error": str(self.failure), "exit_code": self.failure.exit_code}
        return told


def share_of(units: list[Unit], *, index: int | None, of: int | None) -> list[Unit]:
    """Return the units of worker `index` among `of` workers, that is every `of`-th one;
    without `of`, only unit `index`; without `index`, all. Raises UsageError.
    """
    if index is None:
        if of is not None:
            raise UsageError("--of needs --index; give both, or neither for all units")
        return units
    if index < 0 or (of is not None and not 0 <= index < of):
        wanted = "at least 0" if of is None else f"between 0 and {of - 1} with --of {of}"
        raise UsageError(f"--index must be {wanted}, got {index}")
    return units[index : index + 1] if of is None else units[index::of]


class Worker:
    """Computes units one after another, keeping the model loaded between them."""

    def __init__(
        self,
        plan: Plan,
        on_event: Listener,
        *,
        stop: Stop | None = None,
        store: Path | None = None,
        device: str | None = None,
        build: Build | None = None,
        segment_frames: int = SEGMENT_FRAMES,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Args:
        plan: the plan whose units are computed.
        on_event: receives the events of the units.
        stop: requests the end; the current group is finished and kept for another
            worker.
        store: folder of the downloaded weights of this machine.
        device: where the model runs; None for the device of the plan.
        build: loads the models instead of `Models`.
        segment_frames: approximate minimum number of frames in a segment.
        clock: seconds of this machine.
        wait: sleeps for the given number of seconds.
        """
        self.plan = plan
        self.holder: Holder = this_process()
        self.stop = stop or Stop()
        self._on_event = on_event
        self._store = store
        self._device = device
        self._models = Models(times_short=True)
        self._build = build
        self._segment_frames = segment_frames
        self._clock = clock
        self._wait = wait
        self._watch = Watch()
        self._prepared: tuple[int, Prepared | PreparedGeneration] | None = None
        self._built: tuple[int, str | None, Built[Any]] | None = None

    def run(self, units: list[Unit]) -> Iterator[UnitOutcome]:
        """Compute the remaining units, and wait for those of other workers, which may
        die. Failures of a unit are outcomes; errors of this machine and Interrupted are
        raised.
        """
        left = list(units)
        failed_here: set[Path] = set()
        while left:
            found = False
            # Units that failed here are left to others while there is anything else to
            # do.
            for unit in sorted(left, key=lambda unit: unit.folder in failed_here):
                self.check_stop()
                if self.plan.is_settled(unit):
                    left.remove(unit)
                    continue

                outcome = self.compute(unit)
                if outcome is None:
                    continue

                found = True
                if outcome.failure is not None:
                    failed_here.add(unit.folder)
                yield outcome
                if failed_here:
                    break
            if not found and left:
                self._wait(_LOOK_S)

    def check_stop(self) -> None:
        """Raise Interrupted once a stop was requested."""
        if self.stop.requested:
            raise self.stop.interruption("interrupted; finished units and segments are kept, other workers continue")

    def compute(self, unit: Unit) -> UnitOutcome | None:
        """Claim a unit and compute it; returns None if another worker has it, or has finished it."""
        lease = self._claim(unit)
        if lease is None:
            return None
        with lease:
            if self.plan.is_settled(unit):
                return None
            return self._attempt(unit, lease)

    def _claim(self, unit: Unit) -> Lease | None:
        path = unit.folder / "lease"
        with output_errors(path):
            lease = claim(path, self.holder)
            if lease is None and self._watch.take_away(path, self._clock()):
                _note_death(unit, self.plan, self.holder.host)
                lease = claim(path, self.holder)
        return lease

    def _attempt(self, unit: Unit, lease: Lease) -> UnitOutcome:
        folder = unit.folder / f"try-{self.holder.owner}"
        try:
            return self._compute(unit, lease, folder)
        except Interrupted:
            raise
        except _ENDS_THE_WORKER:
            if lease.is_mine:
                raise
            return UnitOutcome(unit=unit, host=self.holder.host, lost=True)
        except Exception as error:
            failure = error if isinstance(error, UltraflashError) else _unexpected(error)

        self._built = None
        free_memory()
        if not lease.is_mine:
            return UnitOutcome(unit=unit, host=self.holder.host, lost=True)

        failure.source = unit.file.input
        with output_errors(unit.folder):
            _note_failure(unit, self.plan, failure, self.holder.host)
            # The next attempt starts from scratch: the existing files may be the cause
            # of the failure.
            remove_folder(folder)
        return UnitOutcome(unit=unit, host=self.holder.host, failure=failure, final=unit.has_failed)

    def _compute(self, unit: Unit, lease: Lease, folder: Path) -> UnitOutcome:
        prepared = self._prepare(unit)

        def build(wanted: Any) -> Built[Any]:
            built = self._load(unit, wanted)
            self._check_settings(unit, fingerprint(task, built))
            return built

        task = task_of(prepared, build, unit, segment_frames=self._segment_frames)
        with output_errors(unit.folder):
            _inherit(unit, folder)
        with ExitStack() as stack:
            lock = stack.enter_context(OutputLock(folder))
            work = Work(
                Path(unit.file.output),
                lock,
                folder,
                name=unit.file.input,
                label=unit.name,
                resume=True,
                overwrite=True,
                listener=self._listener(lease, unit),
                stop=self.stop,
            )
            started_s, started_cpu_s = self._clock(), time.process_time()
            built, progress = compute(task, work, clock=self._clock)
            journal = work.journal
            if unit.span is not None and journal.frames != unit.span.end:
                raise InputError(
                    f"{unit.file.input}: ends after frame {journal.frames}, but the plan expects more; run `plan` again"
                )
            speeds = progress.measured(device=built.device, stages={})
            told = {
                "built": as_facts(built),
                "frames": journal.frames - journal.first_frame,
                "findings": task.findings(built),
                "warnings": work.warnings,
                "seconds": speeds["seconds"],
                "resumed": speeds["frames_resumed"],
                "cpu_seconds": round(time.process_time() - started_cpu_s, 3),
                "host": self.holder.host,
                "owner": self.holder.owner,
                "bench_fps": round(1 / built.frame_seconds, 3) if built.frame_seconds else None,
            }
            with output_errors(folder):
                write_whole(folder / "unit.json", json.dumps(told).encode())
        outcome = UnitOutcome(
            unit=unit,
            host=self.holder.host,
            frames=journal.frames - journal.first_frame - speeds["frames_resumed"],
            seconds=self._clock() - started_s,
            fps=speeds["fps_wall"],
            device=built.device,
        )
        if not _put_in_place(folder, unit):
            return replace(outcome, lost=True)
        self._on_event(
            Done(
                input=unit.file.input,
                output=unit.name,
                frames=outcome.frames,
                seconds=outcome.seconds,
                fps=outcome.fps or 0.0,
            )
        )
        return outcome

    def _prepare(self, unit: Unit) -> Prepared | PreparedGeneration:
        if self._prepared is None or self._prepared[0] != unit.file.number:
            job = from_json(unit.file.job, store=self._store)
            if self._device is not None:
                job = replace(job, device=self._device)
            self._prepared = unit.file.number, prepared_again(job, to_write=False, encodes_here=True)
        return self._prepared[1]

    def _load(self, unit: Unit, prepared: Any) -> Built[Any]:
        """Return the model of a file; consecutive units of a file share it."""
        key = unit.file.number, prepared.job.max_memory
        if self._built is None or self._built[:2] != key:
            self._built = None
            upscales = isinstance(prepared, Prepared)
            build: Build = self._build or (self._models.upscaler if upscales else self._models.generator)
            self._built = *key, build(prepared)
        return self._built[2]

    def _check_settings(self, unit: Unit, found: dict[str, object]) -> None:
        """Raise UsageError if this machine would compute different pixels than the
        first one."""
        path = self.plan.settings_path(unit.file)
        with output_errors(path):
            if not path.exists():
                _write_first(path, found)
        kept = read_json(path)
        changed = difference(kept, as_read(found)) if kept is not None else "the settings cannot be read"
        if changed is not None:
            raise UsageError(
                f"{unit.name}: other workers compute this file in another way ({changed} here); "
                "use machines of one kind, or set --device and --precision in the plan"
            )

    def _listener(self, lease: Lease, unit: Unit) -> Listener:
        first = 0 if unit.span is None else unit.span.first

        def listen(event: Event) -> None:
            if isinstance(event, Chunk):
                lease.frames_done, lease.fps = event.frames_done - first, event.fps
            self._on_event(event)

        return listen


def _unexpected(error: Exception) -> UltraflashError:
    failure = UltraflashError(f"unexpected {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _inherit(unit: Unit, folder: Path) -> None:
    """Take over the folder of the previous worker by a rename, so that it can no longer write there."""
    for path in sorted(unit.tries, key=count_frames, reverse=True):
        if path == folder:
            continue
        if folder.exists():
            remove_folder(path)
            continue
        with suppress(FileNotFoundError):
            path.rename(folder)
            # Its owner may be suspended, with this file locked.
            (folder / LOCK).unlink(missing_ok=True)


def _put_in_place(folder: Path, unit: Unit) -> bool:
    """Move a finished copy into place; returns False if there is one already."""
    with output_errors(unit.done_folder):
        try:
            folder.rename(unit.done_folder)
        except FileNotFoundError:
            return False  # taken over
        except OSError:
            if not unit.is_done:
                raise
            remove_folder(folder)
            return False
        sync_folder(unit.folder)
    return True


def _note_failure(unit: Unit, plan: Plan, failure: UltraflashError, host: str) -> None:
    told = {"error": str(failure), "exit_code": failure.exit_code, "host": host, "unit": unit.number}
    number = 1 + len(unit.failures)
    write_whole(unit.folder / f"failure-{min(number, FAILURES)}.json", json.dumps(told).encode())
    if number >= FAILURES:
        write_whole(plan.failed_path(unit.file), json.dumps(told).encode())


def _note_death(unit: Unit, plan: Plan, host: str) -> None:
    """Record that a worker died computing a unit; several in a row without another
    finished segment fail the unit."""
    path = unit.folder / "deaths.json"
    before = read_json(path) or {}
    frames = max(map(count_frames, unit.tries), default=0)
    count = before["count"] + 1 if before.get("frames") == frames else 1
    if count < DEATHS:
        write_whole(path, json.dumps({"count": count, "frames": frames}).encode())
        return
    failure = OutOfMemory(f"{count} workers in a row were killed while computing it, probably for lack of memory")
    for _ in range(FAILURES):
        _note_failure(unit, plan, failure, host)


def _write_first(path: Path, content: dict[str, object]) -> None:
    """Write a file unless another process was faster."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    write_whole(draft, json.dumps(content).encode())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:
        if not path.exists():
            draft.replace(path)
    finally:
        take_away(draft)
        sync_folder(path.parent)
