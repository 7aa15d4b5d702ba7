"""Our field meter compared with FFmpeg's idet on twelve generated clips: `python -m
benchmarks.fields [--json FILE]`."""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np

from tests.video.old_clips import Luma, moment, telecined, woven, write
from ultraflash_cli.video.interlace import FieldMeter

__all__ = ["CLIPS", "compare", "main"]

_FRAMES = 50
MPEG2 = {"codec": "mpeg2video", "options": {"qmin": "8", "qmax": "8", "flags": "+ilme+ildct", "g": "12"}}
X264 = {"codec": "libx264", "options": {"crf": "26", "preset": "veryfast", "flags": "+ilme+ildct"}}


def _noisy(frames: Sequence[Luma], strength: float = 6.0) -> list[Luma]:
    rng = np.random.default_rng(1)
    return [(frame + rng.normal(0, strength, frame.shape)).round().clip(16, 235).astype(np.uint8) for frame in frames]


def _moments(count: int, *, speed: float = 3.0, size: tuple[int, int] = (320, 240)) -> list[Luma]:
    return [moment(number, speed=speed, size=size) for number in range(count)]


def _tiles(count: int) -> list[Luma]:
    """Return a game picture with doubled pixels that scrolls up by two lines per
    frame."""
    tiles = np.random.default_rng(2).integers(20, 230, (120 + count, 160), dtype=np.uint8)
    whole = tiles.repeat(2, axis=0).repeat(2, axis=1)
    return [whole[2 * number : 2 * number + 240] for number in range(count)]


def _credits(count: int) -> list[Luma]:
    """Return white text on black that rolls by two lines per field; with one it would
    look like scrolling doubled lines."""
    rng = np.random.default_rng(3)
    page = np.full((240 + 2 * count, 320), 16, np.uint8)
    for top in range(0, 220 + 2 * count, 14):
        page[top : top + 9, 40:280] = np.where(rng.random((9, 240)) < 0.5, 16, 220)
    return [page[2 * number : 2 * number + 240] for number in range(count)]


def _rising(count: int) -> list[Luma]:
    """Return a detailed picture that moves down by most of a line per frame, as under a
    rising camera."""
    y, x = np.mgrid[0:240, 0:320].astype(np.float64)
    rng = np.random.default_rng(4)
    waves = [(rng.uniform(0.05, 0.9), rng.uniform(0.05, 0.5), rng.uniform(0, 6)) for _ in range(40)]

    def at(shift: float) -> Luma:
        whole = np.sum([np.sin((y - shift) * down + x * across + phase) for down, across, phase in waves], axis=0)
        return (128 + 14 * whole).round().clip(16, 235).astype(np.uint8)

    return [at(0.8 * number) for number in range(count)]


def _film() -> list[Luma]:
    return [moment(2.5 * number, size=(320, 240)) for number in range(_FRAMES * 4 // 5)]


CLIPS: dict[str, tuple[str, Callable[[], list[Luma]], dict[str, Any]]] = {
    "progressive": ("progressive", lambda: _moments(_FRAMES, speed=6), X264),
    "progressive, noisy": ("progressive", lambda: _noisy(_moments(_FRAMES, speed=6)), MPEG2),
    "progressive, a game of doubled pixels scrolls": ("progressive", lambda: _tiles(_FRAMES), {}),
    "progressive, the camera rises slowly": ("progressive", lambda: _rising(_FRAMES), X264),
    "top field first": ("tff", lambda: woven(_moments(2 * _FRAMES)), MPEG2),
    "bottom field first": ("bff", lambda: woven(_moments(2 * _FRAMES), top_first=False), X264),
    "top field first, noisy": ("tff", lambda: _noisy(woven(_moments(2 * _FRAMES))), MPEG2),
    "top field first, slow": ("tff", lambda: woven(_moments(2 * _FRAMES, speed=0.7)), MPEG2),
    "bottom field first, rolling text": ("bff", lambda: woven(_credits(2 * _FRAMES), top_first=False), MPEG2),
    "telecined, top field first": ("telecined", lambda: telecined(_film()), MPEG2),
    "telecined, bottom field first": ("telecined", lambda: telecined(_film(), top_first=False), X264),
    "telecined, noisy": ("telecined", lambda: _noisy(telecined(_film())), MPEG2),
}
"""Description, pictures and coding of each clip, by name."""


def by_meter(path: Path) -> str:
    """Return the field meter's verdict."""
    meter = FieldMeter()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            meter.push(frame)
    return meter.result()


def by_idet(path: Path) -> tuple[str, dict[str, int]]:
    """Return the majority of idet's counts, and the counts themselves. Repeated fields
    in at least a fifth of the frames count as telecine.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-i", str(path)]
    done = subprocess.run([*command, "-vf", "idet", "-f", "null", "-"], capture_output=True, text=True, check=True)
    counts: dict[str, int] = {}
    for line in done.stderr.splitlines():
        if "Repeated Fields" in line or "Multi frame" in line:
            counts |= {name: int(count) for name, count in re.findall(r"(\w+): +(\d+)", line)}
    repeated = counts["Top"] + counts["Bottom"]
    if repeated >= (repeated + counts["Neither"]) / 5:
        return "telecined", counts
    best = max(("TFF", "BFF", "Progressive", "Undetermined"), key=counts.__getitem__)
    return {"Undetermined": "unknown"}.get(best, best.lower()), counts


def compare(folder: Path) -> list[dict[str, Any]]:
    """Make the clips in a folder and run both detectors on each."""
    rows: list[dict[str, Any]] = []
    for number, (name, (wanted, pictures, coding)) in enumerate(CLIPS.items()):
        path = write(folder / f"{number}.mkv", pictures(), rate=Fraction(30000, 1001), **coding)
        idet, counts = by_idet(path)
        rows.append({"clip": name, "is": wanted, "field meter": by_meter(path), "idet": idet, "idet counts": counts})
    return rows


def main() -> None:
    """Print the table; write it as JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder))
    for row in rows:
        marks = ["" if row[who] == row["is"] else "  (wrong)" for who in ("field meter", "idet")]
        print(f"{row['clip']:46} {row['field meter']}{marks[0]:10} {row['idet']}{marks[1]}")
    right = {who: sum(row[who] == row["is"] for row in rows) for who in ("field meter", "idet")}
    print(f"right of {len(rows)}: {right}")
    if options.json:
        options.json.write_text(json.dumps({"right": right, "clips": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
