"""Peak memory of `ultraflash upscale` on a clip and on one four times as long: it must not grow with the clip.

python benchmarks/memory.py --frames 48 --out memory.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality import installed_command
from ultraflash_cli.metrics.ffmpeg import run_ffmpeg

__all__ = ["main", "peak_bytes"]

LONGER = 4


def peak_bytes(frames: int, size: str, folder: Path) -> int:
    """Upscale a made clip of so many frames; return the peak resident memory that the command reports."""
    clip, output = folder / f"{frames}.mp4", folder / f"{frames}_1k.mp4"
    source = f"testsrc2=size={size}:rate=24,trim=end_frame={frames}"
    encode = ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "veryfast"]
    run_ffmpeg(["-f", "lavfi", "-i", source, *encode, str(clip)], what=str(clip))
    command = [installed_command(), "--quiet", "upscale", str(clip), "-o", str(output), "-y", "--json", "--res", "2x"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_rss_bytes"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both clips, print a line each, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=48, help="frames of the shorter clip (48)")
    parser.add_argument("--size", default="832x480", help="size of the source (832x480)")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    settings = parser.parse_args(arguments)
    found: dict[int, int] = {}
    with tempfile.TemporaryDirectory(prefix="memory_") as temporary:
        for frames in (settings.frames, LONGER * settings.frames):
            found[frames] = peak_bytes(frames, settings.size, Path(temporary))
            print(f"{frames} frames of {settings.size}: peak {found[frames] / 2**20:.0f} MiB", file=sys.stdout)
    if settings.out:
        settings.out.write_text(json.dumps({"size": settings.size, "peak_rss_bytes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
