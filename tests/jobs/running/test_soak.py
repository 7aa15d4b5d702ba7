"""Many small clips in one process: memory, descriptors and threads stay constant."""

import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.jobs.clips import make_clip
from tests.jobs.doubler import Doubler, builder, job
from ultraflash_cli.jobs.batch import run_batch
from ultraflash_cli.jobs.events import Done, Event
from ultraflash_cli.jobs.running.stop import Stop

CLIPS = 2000
OBJECTS, BYTES = 500, 8 << 20
"""Objects and bytes that a thousand clips may leave behind: half an object and eight
kilobytes per clip."""
PROCESS = Path("/proc/self")


@dataclass(frozen=True, kw_only=True)
class Held:
    """Resources of this process."""

    descriptors: int
    threads: int
    objects: int
    resident_bytes: int

    @classmethod
    def now(cls) -> Self:
        gc.collect()
        (line,) = (line for line in (PROCESS / "status").read_text().splitlines() if line.startswith("VmRSS"))
        return cls(
            descriptors=len(os.listdir(PROCESS / "fd")),
            threads=threading.active_count(),
            objects=len(gc.get_objects()),
            resident_bytes=int(line.split()[1]) * 1024,
        )


@pytest.mark.skipif(not (PROCESS / "status").exists(), reason="this system does not say what a process holds")
def test_two_thousand_clips_in_one_batch_leave_nothing_behind(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mkv", frames=1, width=16, height=16, audio=False)
    sources = [tmp_path / f"{number:04d}.mkv" for number in range(CLIPS)]
    for source in sources:
        os.link(clip, source)
    held: list[Held] = []
    done = 0

    def listen(event: Event) -> None:
        nonlocal done
        if isinstance(event, Done):
            done += 1
            Path(event.output).unlink()
            if done % (CLIPS // 2) == 0:
                held.append(Held.now())

    jobs = [job(source, codec="ffv1", crf=None) for source in sources]
    failures = [outcome for outcome in run_batch(jobs, listen, stop=Stop(), build=builder(Doubler)) if outcome.failure]
    assert (failures, done) == ([], CLIPS)
    half, whole = held
    assert (whole.descriptors, whole.threads) == (half.descriptors, half.threads)
    assert whole.objects - half.objects < OBJECTS
    assert whole.resident_bytes - half.resident_bytes < BYTES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in (clip, *sources))
