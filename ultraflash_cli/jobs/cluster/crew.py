"""Worker processes on this machine: one per device, or several that share the CPU
cores."""

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultraflash_cli.errors import UltraflashError
from ultraflash_cli.jobs.cluster.overview import LOOK_S, Overview
from ultraflash_cli.jobs.cluster.units import DEATHS
from ultraflash_cli.jobs.running.stop import Stop

__all__ = ["compute_by_processes"]

_PR_SET_PDEATHSIG = 1
_FAILED = (0, 1, 3, 5, 9)
"""Exit codes of a worker that has finished its work, including failed units."""


@dataclass
class _Process:
    device: str
    running: subprocess.Popen[bytes]
    log: Path


def compute_by_processes(
    overview: Overview,
    devices: Sequence[str],
    *,
    stop: Stop,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Compute the units of a plan in one process per entry of `devices`, which may
    contain a device several times. A killed process is replaced. Raises Interrupted,
    and errors of this machine.
    """
    overview.begin(device=f"{len(devices)} processes ({', '.join(devices)})")

    folder = overview.plan.folder
    crew = [_start(folder, device, number) for number, device in enumerate(devices)]
    deaths = 0
    left = len(overview.left)
    try:
        while overview.look():
            if stop.requested:
                raise stop.interruption("interrupted; finished units and segments are kept, the same command resumes")
            if len(overview.left) < left:
                left, deaths = len(overview.left), 0
            for number, process in enumerate(crew):
                code = process.running.poll()
                if code is not None and code < 0 and deaths < DEATHS:
                    deaths += 1
                    crew[number] = _start(folder, process.device, number)
            if all(process.running.poll() is not None for process in crew):
                if overview.look():
                    _raise_reason(crew)
                break
            wait(LOOK_S)
    finally:
        _end(crew)


def _start(folder: Path, device: str, number: int) -> _Process:
    log = folder / f"worker-{number}.log"
    command = [sys.executable, "-m", "ultraflash_cli", "worker", str(folder), "--any", "--device", device]
    with log.open("wb") as errors:
        running = subprocess.Popen(
            [*command, "--quiet", "--progress", "plain"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            # Ctrl-C is handled by the parent, which shuts them down cleanly.
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform.startswith("linux") else None,
        )
    return _Process(device, running, log)


def _end_with_parent() -> None:
    """Ask the system to terminate this process when its parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(crew: Sequence[_Process]) -> None:
    """Let the processes finish their current groups, and wait for them."""
    for process in crew:
        if process.running.poll() is None:
            process.running.send_signal(signal.SIGTERM)
    for process in crew:
        process.running.wait()
        process.log.unlink(missing_ok=True)


def _raise_reason(crew: Sequence[_Process]) -> None:
    """Raise the error that explains why no process is working any more."""
    for process in crew:
        code = process.running.returncode
        lines = process.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if code not in _FAILED:
            reason = said[-1] if said else f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            failure = UltraflashError(f"worker on {process.device}: {reason}")
            failure.exit_code = code if code > 0 else 1
            raise failure
    raise UltraflashError("all workers exited before every unit was done; run the same command again")
