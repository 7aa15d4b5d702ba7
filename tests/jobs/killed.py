"""Small upscales that kill themselves: `python -m tests.jobs.killed SOURCE FOLDER SEED
COUNT [units]`.

The first one is left alone and makes `whole.mkv`. Each of the others sends itself
SIGKILL at a call of one of our functions that is chosen by SEED, every fourth one
during the join; then another process continues with it. A line of JSON tells of each.
With `units` a run is a plan, a worker and a join. Every run is a process of its own,
forked from this one, which has no threads and no torch.
"""

import json
import os
import random
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from tests.jobs.doubler import builder, job
from ultraflash_cli.jobs.cluster.join import join_units
from ultraflash_cli.jobs.cluster.planner import plan_units
from ultraflash_cli.jobs.cluster.units import read_plan
from ultraflash_cli.jobs.cluster.worker import Worker
from ultraflash_cli.jobs.events import Event, Started
from ultraflash_cli.jobs.resume.entries import count_frames
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.upscale import run

_JOIN = "put_in_place"
"""First function of the join."""


class _Watch:
    """Counts the calls of our own functions in all threads, those of work and join apart."""

    def __init__(self, phase: str | None = None, last: int = 0) -> None:
        self.calls = {"work": 0, "join": 0}
        self._phase = "work"
        self._last = (phase, last)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or "ultraflash_cli" not in frame.f_code.co_filename:
            return
        if frame.f_code.co_name == _JOIN:
            self._phase = "join"
        self.calls[self._phase] += 1
        if (self._phase, self.calls[self._phase]) == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


def _by_units(source: Path, output: Path) -> int:
    """Plan, work and join; return the number of frames that existed before."""
    folder, stop = output.with_suffix(".units"), Stop()
    for planned in plan_units([job(source, output)], folder, _ignore, stop=stop, least_frames=6):
        assert planned.failure is None, planned.failure
    plan = read_plan(folder)
    units = plan.units
    done = [count_frames(each) for unit in units for each in (unit.done_folder, *unit.tries)]
    joined = [plan.joined(file) for file in plan.files.values()]
    worker = Worker(plan, _ignore, build=builder(), segment_frames=12)
    assert all(outcome.failure is None for outcome in worker.run(units))
    for outcome in join_units(plan, _ignore, stop=stop, segment_frames=12):
        assert outcome.failure is None, outcome.failure
    return sum(done) + sum(each["frames_out"] for each in joined if each is not None)


def _ignore(event: Event) -> None:
    return None


def _upscale(source: Path, output: Path, watch: _Watch | None, *, by_units: bool) -> dict[str, int]:
    resumed = 0

    def hear(event: Event) -> None:
        nonlocal resumed
        if isinstance(event, Started):
            resumed = event.frames_resumed

    if watch is not None:
        threading.setprofile(watch)
        sys.setprofile(watch)
    try:
        if by_units:
            resumed = _by_units(source, output)
        else:
            run(job(source, output), hear, build=builder(), segment_frames=12)
    finally:
        sys.setprofile(None)
    return {"resumed": resumed} | (watch.calls if watch is not None else {})


def _forked(source: Path, output: Path, watch: _Watch | None, *, by_units: bool) -> tuple[int, dict[str, int]]:
    """Return the exit status of an upscale in a separate process, and its output if it
    finished."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        status = 1
        try:
            os.write(writing, json.dumps(_upscale(source, output, watch, by_units=by_units)).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        said = answers.read()
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said or b"{}")


def main(source: Path, folder: Path, seed: int, count: int, *, by_units: bool = False) -> None:
    """Run the upscales described in the module's docstring."""
    draws = random.Random(seed)
    _, calls = _forked(source, folder / "whole.mkv", _Watch(), by_units=by_units)
    for number in range(count):
        phase = "join" if number % 4 == 3 else "work"
        # Every other kill of the work comes late, because many calls precede the end of
        # the first segment.
        earliest = calls[phase] * 2 // 3 if phase == "work" and number % 2 == 0 else 1
        moment = draws.randint(earliest, calls[phase])
        output = folder / f"{number:02d}.mkv"
        killed, _ = _forked(source, output, _Watch(phase, moment), by_units=by_units)
        there = output.exists()
        ended, said = _forked(source, output, None, by_units=by_units) if killed else (0, {})
        told = {"phase": phase, "killed": killed, "there": there, "ended": ended, "resumed": said.get("resumed", 0)}
        sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), by_units="units" in sys.argv[5:])
