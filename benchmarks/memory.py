"""Peak memory of `ultraflash upscale` on a clip and on a longer one: it must not grow with the clip.

python -m benchmarks.memory --seconds 6,60 --size 96x64 --model tiny-random,lite --out memory.json
python -m benchmarks.memory --seconds 2,8
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

RATE = 24


def peak_bytes(seconds: int, size: str, model: str, folder: Path, *, threads: int) -> int:
    """Upscale a generated clip of this length; return the peak resident memory that the
    command reports."""
    clip, output = folder / f"{seconds}.mp4", folder / f"{seconds}_2x.mp4"
    source = f"testsrc2=size={size}:rate={RATE}:duration={seconds}"
    encode = ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "veryfast"]
    run_ffmpeg(["-f", "lavfi", "-i", source, *encode, str(clip)], what=str(clip))
    command = [installed_command(), "--quiet", "upscale", str(clip), "-o", str(output), "-y", "--json", "--res", "2x"]
    options = ["--model", model, "--device", "cpu", "--threads", str(threads)]
    done = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True)
    report = json.loads(done.stdout.splitlines()[-1])
    if report["frames_out"] != RATE * seconds:
        sys.exit(f"{output.name} has {report['frames_out']} frames, expected {RATE * seconds}")
    return int(report["peak_rss_bytes"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every clip with every model, print a line for each, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", default="6,60", help=f"lengths of the clips, of {RATE} frames a second (6,60)")
    parser.add_argument("--size", default="832x480", help="size of the source (832x480)")
    parser.add_argument("--model", default="lite", help="models, with commas between (lite)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    settings = parser.parse_args(arguments)
    lengths = [int(seconds) for seconds in settings.seconds.split(",")]
    found: dict[str, dict[int, int]] = {}
    with tempfile.TemporaryDirectory(prefix="memory_") as temporary:
        for model in settings.model.split(","):
            peaks = found[model] = {}
            for seconds in lengths:
                peaks[seconds] = peak_bytes(seconds, settings.size, model, Path(temporary), threads=settings.threads)
                growth = 100 * (peaks[seconds] / peaks[lengths[0]] - 1)
                mib = peaks[seconds] / 2**20
                print(f"{model}, {seconds} s of {settings.size}: peak {mib:.0f} MiB ({growth:+.1f} %)", flush=True)
    if settings.out:
        numbers = {"size": settings.size, "fps": RATE, "threads": settings.threads, "peak_rss_bytes_by_seconds": found}
        settings.out.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
