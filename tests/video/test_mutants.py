"""Damaged files end in frames or in a refusal: no other error, no hang, no crash."""

import subprocess
import sys
from pathlib import Path

from tests.video.clips import ffmpeg

SOURCES = {
    "a.mp4": "-c:v libx264 -preset ultrafast -g 5",
    "b.mkv": "-c:v libx264 -preset ultrafast -g 5",
    "c.webm": "-c:v libvpx-vp9 -cpu-used 8",
    "d.ts": "-c:v mpeg2video -q:v 4",
    "e.avi": "-c:v mpeg4 -q:v 4",
    "f.mov": "-c:v prores_ks",
    "g.gif": "",
    "h.mpg": "-c:v mpeg1video",
    "i.nut": "-c:v ffv1",
    "j.mp4": "-c:v libx265 -preset ultrafast -x265-params log-level=none",
    "k.y4m": "-pix_fmt yuv420p",
    "l.png": "-frames:v 1",
    "m.flv": "-c:v flv",
}
COUNT = 60


def test_damaged_files_give_frames_or_a_refusal_and_nothing_else(tmp_path: Path) -> None:
    for name, arguments in SOURCES.items():
        source = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=0.4"]
        ffmpeg(*source, *arguments.split(), str(tmp_path / name))
    done = subprocess.run(
        [sys.executable, "-m", "tests.video.mutants", str(tmp_path), "0", str(COUNT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    ends = [line.split(" ", 2)[2] for line in done.stdout.splitlines()]
    assert len(ends) == COUNT
    assert 5 < ends.count("refused") < COUNT - 10
