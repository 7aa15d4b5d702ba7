"""Score `ultraflash upscale` beside plain resampling on clips whose full-size original is known.

Each clip is made small in two ways, enlarged again by every method, and compared with itself:

    clean   bicubic to 1/scale of the size, stored without loss
    deg     gaussian blur of 0.8, bicubic to 1/scale, H.264 at crf 28

    python -m benchmarks.quality --clips FOLDER --frames 8 --out quality.json
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ultraflash_cli.metrics.ffmpeg import read_luma, run_ffmpeg
from ultraflash_cli.metrics.registry import METRICS, measure

__all__ = ["Case", "Row", "main", "mean_rows", "table"]

CLIP_SUFFIXES = {".mkv", ".mov", ".mp4", ".webm", ".y4m"}
KINDS = ("clean", "deg")
SWS = "accurate_rnd+full_chroma_int"
RESAMPLERS = ("bicubic", "lanczos")
LOSSLESS = ["-pix_fmt", "yuv420p", "-c:v", "ffv1"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One low-resolution input and the original it came from."""

    clip: str
    kind: str
    low: Path
    truth: Path
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one method reached on one case, or in the mean over all clips of a kind."""

    method: str
    kind: str
    clip: str
    seconds: float
    """Wall time of the whole process, decoding and lossless encoding included."""
    scores: dict[str, float]


def prepare(clip: Path, folder: Path, *, scale: int, frames: int, kinds: Sequence[str]) -> Iterator[Case]:
    """Cut the original to ``frames`` frames and a size that divides, and make the small inputs from it."""
    height, width = next(read_luma(clip, frames=1)).shape
    unit = 2 * scale  # the small picture has even sides
    width, height = width // unit * unit, height // unit * unit
    truth = folder / f"{clip.stem}.truth.mkv"
    cut = ["-an", "-frames:v", str(frames), "-vf", f"crop={width}:{height}:0:0"]
    run_ffmpeg(["-i", str(clip), *cut, *LOSSLESS, str(truth)], what=str(clip))
    shrink = f"scale={width // scale}:{height // scale}:flags=bicubic+{SWS},format=yuv420p"
    for kind in kinds:
        low = folder / f"{clip.stem}.{kind}.{'mkv' if kind == 'clean' else 'mp4'}"
        if kind == "clean":
            make = ["-vf", shrink, *LOSSLESS]
        else:
            make = ["-vf", f"gblur=sigma=0.8,{shrink}", "-c:v", "libx264", "-preset", "medium", "-crf", "28"]
        run_ffmpeg(["-i", str(truth), *make, str(low)], what=str(clip))
        yield Case(clip=clip.stem, kind=kind, low=low, truth=truth, width_px=width, height_px=height)


def enlarge(case: Case, method: str, output: Path, *, scale: int, options: Sequence[str]) -> None:
    """Write the enlarged clip losslessly to ``output``."""
    if method in RESAMPLERS:
        scaling = f"scale={case.width_px}:{case.height_px}:flags={method}+{SWS}"
        run_ffmpeg(["-i", str(case.low), "-vf", scaling, *LOSSLESS, str(output)], what=f"{method} on {case.clip}")
        return
    command = [installed_command(), "--quiet", "upscale", str(case.low), "-o", str(output), "-y"]
    subprocess.run([*command, "--res", f"{scale}x", "--codec", "ffv1", *options], check=True)


def installed_command() -> str:
    """Return the `ultraflash` that belongs to this Python, else the one on the path."""
    beside = Path(sys.executable).with_name("ultraflash")
    found = str(beside) if beside.exists() else shutil.which("ultraflash")
    if found is None:
        sys.exit("the ultraflash command is not installed here: pip install -e .")
    return found


def run_case(case: Case, method: str, folder: Path, *, scale: int, options: Sequence[str], threads: int) -> Row:
    """Enlarge, score, and delete the result."""
    output = folder / f"{case.clip}.{case.kind}.{method}.mkv"
    started = time.perf_counter()
    enlarge(case, method, output, scale=scale, options=options)
    seconds = time.perf_counter() - started
    scores = measure(output, case.truth, threads=threads)
    output.unlink()
    return Row(method=method, kind=case.kind, clip=case.clip, seconds=seconds, scores=scores)


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each kind and method: the mean over its clips, in order of appearance."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.method), []).append(row)
    return [
        Row(
            method=method,
            kind=kind,
            clip="mean",
            seconds=float(np.mean([row.seconds for row in group])),
            scores={name: float(np.mean([row.scores[name] for row in group])) for name in METRICS},
        )
        for (kind, method), group in sorted(groups.items(), key=lambda item: KINDS.index(item[0][0]))
    ]


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    heads = [f"{metric.title} {metric.unit}".strip() for metric in METRICS.values()]
    lines = ["| input | method | " + " | ".join(heads) + " |", "|---|---" + "|---:" * len(heads) + "|"]
    for row in rows:
        cells = [f"{row.scores[name]:.{metric.digits}f}" for name, metric in METRICS.items()]
        lines.append(f"| {row.kind} | {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(rows: Sequence[Row], settings: dict[str, object]) -> dict[str, object]:
    """Return everything that was measured, and where, as one JSON object."""
    packages = ("av", "imageio-ffmpeg", "numpy", "torch", "ultraflash")
    return {
        "schema": 1,
        "date": date.today().isoformat(),
        "device": {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in packages},
        "settings": settings,
        "means": [asdict(row) for row in mean_rows(rows)],
        "clips": [asdict(row) for row in rows],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; refuses what cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_clips = Path(__file__).resolve().parents[2] / "shared" / "data" / "eval"
    parser.add_argument("--clips", type=Path, default=default_clips, help="folder of full-size clips")
    parser.add_argument("--frames", type=int, default=8, help="frames of each clip (8)")
    parser.add_argument("--scale", type=int, choices=(2, 3), default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--methods", nargs="+", choices=(*RESAMPLERS, "ultraflash"), default=[*RESAMPLERS, "ultraflash"]
    )
    parser.add_argument("--options", type=shlex.split, default=[], help="more options for `ultraflash upscale`, quoted")
    parser.add_argument("--threads", type=int, default=1, help="threads of libvmaf (1)")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    settings = parser.parse_args(arguments)
    if settings.frames < 1:
        parser.error("--frames is at least 1")
    if not settings.clips.is_dir():
        parser.error(f"--clips: {settings.clips} is not a folder")
    return settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table of means to stdout and progress to stderr, write the JSON."""
    settings = parse(arguments)
    clips = sorted(path for path in settings.clips.iterdir() if path.suffix.lower() in CLIP_SUFFIXES)
    if not clips:
        sys.exit(f"{settings.clips} holds no clip ({', '.join(sorted(CLIP_SUFFIXES))})")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="quality_") as temporary:
        folder = Path(temporary)
        for clip in clips:
            for case in prepare(clip, folder, scale=settings.scale, frames=settings.frames, kinds=settings.kinds):
                for method in settings.methods:
                    row = run_case(
                        case,
                        method,
                        folder,
                        scale=settings.scale,
                        options=settings.options,
                        threads=settings.threads,
                    )
                    rows.append(row)
                    numbers = "  ".join(f"{name} {row.scores[name]:.{m.digits}f}" for name, m in METRICS.items())
                    print(f"{row.clip} {row.kind} {row.method}: {numbers}  ({row.seconds:.1f} s)", file=sys.stderr)
    print(table(mean_rows(rows)))
    if settings.out:
        used = {name: getattr(settings, name) for name in ("frames", "scale", "kinds", "methods", "options")}
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text(json.dumps(report(rows, used), indent=1) + "\n")


if __name__ == "__main__":
    main()
