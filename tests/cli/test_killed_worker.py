"""The three commands as processes: a worker that is killed during a unit costs nothing
but time."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import COMMAND, ultraflash
from tests.jobs.clips import make_clip
from ultraflash_cli.main import main
from ultraflash_cli.video.plain import read_plain_frames

OPTIONS = ("--res", "2x", "--model", "tiny-lite", "--device", "cpu", "--threads", "1", "--enc-opt", "preset=ultrafast")
LONG, SHORT = 256, 24
PIPE_BYTES = 4096
"""Pipe capacity for the events of about 17 groups of 8 frames: a worker whose output is
no longer read blocks long before its unit ends."""


def objects(*arguments: object) -> list[dict[str, Any]]:
    """Run a command that succeeds, and return its JSON."""
    done = ultraflash(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def stuck_amid_a_unit(work: Path) -> subprocess.Popen[str]:
    """Start a worker, and return it once it has finished the first segment of a unit
    and waits for its reader."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    worker = subprocess.Popen(
        [*COMMAND, "worker", str(work), "--progress", "json"], stderr=writing, stdout=subprocess.DEVNULL, text=True
    )
    os.close(writing)
    worker.stderr = os.fdopen(reading, encoding="utf-8")
    heard: list[str] = []
    # One byte at a time: reading ahead would free space in the pipe.
    while True:
        letters = bytearray()
        while not letters.endswith(b"\n"):
            if not (letter := os.read(reading, 1)):
                pytest.fail(f"the worker ended: {heard}")
            letters += letter
        heard.append(letters.decode())
        event = json.loads(letters)
        if event["event"] == "chunk" and event["frames_safe"]:
            return worker


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a pipe of one page is Linux's")
def test_two_workers_one_killed_amid_a_unit_make_the_frames_of_one_machine(tmp_path: Path) -> None:
    films = [
        make_clip(tmp_path / "a.mkv", frames=LONG + SHORT, cut_at=LONG),
        make_clip(tmp_path / "b.mkv", frames=SHORT),
    ]
    work, there, here = tmp_path / "work", tmp_path / "there", tmp_path / "here"
    *_, total = objects("plan", *films, "-o", there, "--work-dir", work, "--unit-frames", 20, *OPTIONS)
    assert (total["files"], total["units"]) == (2, 3)

    first = stuck_amid_a_unit(work)
    second = subprocess.Popen([*COMMAND, "worker", str(work), "--json"], stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    others = [json.loads(second.stdout.readline()) for _ in range(2)]
    assert [unit["frames"] for unit in others] == [SHORT, SHORT], "the long unit is taken"

    first.send_signal(signal.SIGKILL)
    first.wait()
    rest, _ = second.communicate(timeout=300)
    (taken_over,) = [json.loads(line) for line in rest.splitlines()]
    assert first.returncode == -signal.SIGKILL and second.returncode == 0
    assert taken_over["state"] == "done" and 0 < taken_over["frames"] < LONG, "resumed after the finished segment"

    assert [report["frames_out"] for report in objects("join", work)] == [LONG + SHORT, SHORT]
    assert main(["upscale", *map(str, films), "-o", str(here), *OPTIONS]) == 0
    for film in films:
        a, b = (folder / f"{film.stem}_2x.mkv" for folder in (there, here))
        assert digests(a) == digests(b)
        assert a.read_bytes() == b.read_bytes()
    if first.stderr is not None:
        first.stderr.close()


def digests(path: Path) -> list[str]:
    return [hashlib.sha256(frame.tobytes()).hexdigest() for frame in read_plain_frames(path)]
