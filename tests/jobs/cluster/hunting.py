"""Killing workers in the middle of a unit."""

import json
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["killing_a_worker"]


@contextmanager
def killing_a_worker(folder: Path) -> Generator[list[int]]:
    """Send SIGKILL to the first process that holds a lease in a work folder; yield the
    killed process."""
    killed: list[int] = []
    over = threading.Event()

    def hunt() -> None:
        while not over.is_set() and not killed:
            for lease in folder.glob("files/*/units/*/lease"):
                try:
                    process = int(json.loads(lease.read_text())["process"])
                except (OSError, ValueError, KeyError):
                    continue
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                break
            time.sleep(0.002)

    hunter = threading.Thread(target=hunt, daemon=True)
    hunter.start()
    try:
        yield killed
    finally:
        over.set()
        hunter.join()
