"""Score `ultraflash upscale`, plain resampling and other tools on clips whose full-size
original is known.

Each clip is downscaled in three ways, enlarged again by every method, and compared with
the original:

    clean   bicubic to 1/scale of the size, stored without loss
    deg     gaussian blur of 0.8, bicubic to 1/scale, H.264 at crf 28
    aigc    what generators and their delivery do, drawn for each clip by its name and --seed (train/degradation.py)

    python -m benchmarks.quality --clips FOLDER --frames 8 --out quality.json
    python -m benchmarks.quality --clips FOLDER --scale 3
    python -m benchmarks.quality --details 0 0.5 --weights DIR      # also with less detail; other weights
    python -m benchmarks.quality --methods lanczos waifu2x-photo    # peers from PyPI: benchmarks/peers.py says which
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
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.likeness import is_there, likeness
from benchmarks.peers import PEERS, PeerMissing
from benchmarks.quality_tables import KINDS, SHOWN, Row, mean_rows, means_table
from benchmarks.rgb import Frame, read_rgb, write_rgb
from benchmarks.scores import measure
from benchmarks.variants import Variant
from ultraflash_cli.errors import UltraflashError
from ultraflash_cli.metrics.ffmpeg import View, read_planes, run_ffmpeg
from ultraflash_cli.train.degradation import AigcConfig, draw_aigc
from ultraflash_cli.train.operators import apply, to_log
from ultraflash_cli.video.probe import probe

__all__ = ["Case", "Setup", "main", "prepare"]

CLIP_SUFFIXES = {".mkv", ".mov", ".mp4", ".webm", ".y4m"}
SWS = "accurate_rnd+full_chroma_int"
RESAMPLERS = {
    "bicubic": "flags=bicubic",
    "lanczos": "flags=lanczos",
    "lanczos-unsharp": "flags=lanczos",
}
UNSHARP = "unsharp=5:5:0.6:5:5:0"
OURS = "ultraflash"
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
    operators: tuple[dict[str, Any], ...] = ()
    """Log of the degradation, if one was sampled."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings for running the methods."""

    scale: int = 2
    options: tuple[str, ...] = ()
    """More options for `ultraflash upscale`."""
    threads: int = 1
    """Threads of libvmaf and of the peers."""
    likeness: bool = False
    """Whether the learned distances are measured as well."""
    variants: dict[str, Variant] = field(default_factory=dict[str, Variant])
    """Variants of ``lite``."""
    peers: dict[str, Callable[[Frame], Frame]] = field(default_factory=dict[str, Callable[[Frame], Frame]])
    """Methods of other projects."""


def prepare(
    clip: Path, folder: Path, *, scale: int, frames: int, kinds: Sequence[str], seed: int = 0
) -> Iterator[Case]:
    """Cut the original to ``frames`` frames and a divisible size, and make the small
    inputs from it."""
    height, width = next(read_planes(View(clip))).y_hw.shape
    unit = 2 * scale  # the small picture has even sides
    width, height = width // unit * unit, height // unit * unit
    truth = folder / f"{clip.stem}.truth.mkv"
    cut = ["-an", "-frames:v", str(frames), "-vf", f"crop={width}:{height}:0:0"]
    run_ffmpeg(["-i", str(clip), *cut, *LOSSLESS, str(truth)], what=str(clip))
    shrink = f"scale={width // scale}:{height // scale}:flags=bicubic+{SWS},format=yuv420p"
    for kind in kinds:
        low = folder / f"{clip.stem}.{kind}.{'mp4' if kind == 'deg' else 'mkv'}"
        case = Case(clip=clip.stem, kind=kind, low=low, truth=truth, width_px=width, height_px=height)
        if kind == "clean":
            run_ffmpeg(["-i", str(truth), "-vf", shrink, *LOSSLESS, str(low)], what=str(clip))
        elif kind == "deg":
            codec = ["-c:v", "libx264", "-preset", "medium", "-crf", "28"]
            run_ffmpeg(["-i", str(truth), "-vf", f"gblur=sigma=0.8,{shrink}", *codec, str(low)], what=str(clip))
        else:
            case = degrade(case, scale=scale, seed=seed)
        yield case


def degrade(case: Case, *, scale: int, seed: int) -> Case:
    """Write the small input with the degradation that ``train/degradation.py`` samples
    for the clip's name; return the case with its log. The luma of the original is
    converted to RGB and back with the same matrix.
    """
    rng = np.random.default_rng((seed, zlib.crc32(case.clip.encode())))
    operators = draw_aigc(AigcConfig(), (case.height_px, case.width_px), scale, rng)
    truth = np.stack(list(read_rgb(case.truth, width_px=case.width_px, height_px=case.height_px)))
    write_rgb(case.low, apply(truth, operators), rate=probe(case.truth).average_rate)
    return replace(case, operators=tuple(to_log(operators)))


def enlarge(case: Case, method: str, output: Path, setup: Setup) -> None:
    """Write the enlarged clip losslessly to ``output``."""
    if method in RESAMPLERS:
        scaling = f"scale={case.width_px}:{case.height_px}:{RESAMPLERS[method]}+{SWS}"
        if method.endswith("unsharp"):
            scaling += f",{UNSHARP}"
        run_ffmpeg(["-i", str(case.low), "-vf", scaling, *LOSSLESS, str(output)], what=f"{method} on {case.clip}")
    elif method in setup.variants:
        setup.variants[method].upscale(case.low, output, scale=setup.scale, options=setup.options)
    elif method in setup.peers:
        double = setup.peers[method]
        low = read_rgb(case.low, width_px=case.width_px // setup.scale, height_px=case.height_px // setup.scale)
        write_rgb(output, map(double, low), rate=probe(case.low).average_rate)
    else:
        command = [installed_command(), "--quiet", "upscale", str(case.low), "-o", str(output), "-y"]
        subprocess.run([*command, "--res", f"{setup.scale}x", "--codec", "ffv1", *setup.options], check=True)


def installed_command() -> str:
    """Return the `ultraflash` that belongs to this Python, else the one on the path."""
    beside = Path(sys.executable).with_name("ultraflash")
    found = str(beside) if beside.exists() else shutil.which("ultraflash")
    if found is None:
        sys.exit("the ultraflash command is not installed here: pip install -e .")
    return found


def run_case(case: Case, method: str, folder: Path, setup: Setup) -> Row:
    """Enlarge, score, and delete the result."""
    output = folder / f"{case.clip}.{case.kind}.{method.replace(' ', '_')}.mkv"
    started = time.perf_counter()
    enlarge(case, method, output, setup)
    seconds = time.perf_counter() - started
    scores = measure(output, case.truth, threads=setup.threads)
    if setup.likeness:
        scores |= likeness(output, case.truth, width_px=case.width_px, height_px=case.height_px)
    output.unlink()
    return Row(method=method, kind=case.kind, clip=case.clip, seconds=seconds, scores=scores)


def report(rows: Sequence[Row], cases: Sequence[Case], settings: Mapping[str, object]) -> dict[str, object]:
    """Return all measurements and the environment as one JSON object."""
    packages = ("av", "imageio-ffmpeg", "numpy", "torch", "ultraflash")
    return {
        "schema": 1,
        "date": date.today().isoformat(),
        "device": {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in packages},
        "settings": settings,
        "degradations": {case.clip: case.operators for case in cases if case.operators},
        "means": [asdict(row) for row in mean_rows(rows)],
        "clips": [asdict(row) for row in rows],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; rejects requests that cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_clips = Path(__file__).resolve().parents[2] / "shared" / "data" / "eval"
    methods = (*RESAMPLERS, *PEERS, OURS)
    parser.add_argument("--clips", type=Path, default=default_clips, help="folder of full-size clips")
    parser.add_argument("--frames", type=int, default=8, help="frames of each clip (8)")
    parser.add_argument("--scale", type=int, choices=(2, 3), default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--methods", nargs="+", choices=methods, default=["bicubic", "lanczos", OURS])
    parser.add_argument("--details", nargs="+", type=float, default=[], help="also with lite's --detail at these")
    parser.add_argument("--weights", type=Path, help="take the files of lite from this folder")
    parser.add_argument("--options", type=shlex.split, default=[], help="more options for `ultraflash upscale`, quoted")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn degradations (0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of libvmaf and of peers (1)")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    settings = parser.parse_args(arguments)
    if settings.frames < 1:
        parser.error("--frames is at least 1")
    if not settings.clips.is_dir():
        parser.error(f"--clips: {settings.clips} is not a folder")
    if settings.scale != 2 and any(method in PEERS for method in settings.methods):
        parser.error("the peers work at --scale 2 alone")
    if (settings.weights or settings.details) and OURS not in settings.methods:
        parser.error(f"--weights and --details change the method {OURS}, which --methods leaves out")
    return settings


def set_up(settings: argparse.Namespace) -> tuple[list[str], Setup]:
    """Load the requirements of the methods; return those that can run, in order, and
    print those that are skipped."""
    variants: dict[str, Variant] = {}
    peers: dict[str, Callable[[Frame], Frame]] = {}
    methods: list[str] = []
    for method in settings.methods:
        if method in PEERS:
            try:
                peers[method] = PEERS[method].load(settings.threads)
            except PeerMissing as missing:
                print(f"{method} is skipped: {missing}", file=sys.stderr)
                continue
        methods.append(method)
        if method == OURS:
            if settings.weights:
                variants[method] = Variant(weights=settings.weights)
            for detail in settings.details:
                name = f"{OURS} --detail {detail:g}"
                variants[name] = Variant(detail=detail, weights=settings.weights)
                methods.append(name)
    setup = Setup(
        scale=settings.scale,
        options=tuple(settings.options),
        threads=settings.threads,
        likeness=is_there(),
        variants=variants,
        peers=peers,
    )
    return methods, setup


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table of means to stdout and progress to stderr, write the JSON."""
    settings = parse(arguments)
    clips = sorted(path for path in settings.clips.iterdir() if path.suffix.lower() in CLIP_SUFFIXES)
    if not clips:
        sys.exit(f"{settings.clips} holds no clip ({', '.join(sorted(CLIP_SUFFIXES))})")
    rows: list[Row] = []
    cases: list[Case] = []
    try:
        methods, setup = set_up(settings)
        hashes = Variant(weights=settings.weights).hashes(scale=settings.scale) if OURS in methods else {}
        with tempfile.TemporaryDirectory(prefix="quality_") as temporary:
            how = {name: getattr(settings, name) for name in ("scale", "frames", "kinds", "seed")}
            for clip in clips:
                for case in prepare(clip, Path(temporary), **how):
                    cases.append(case)
                    for method in methods:
                        row = run_case(case, method, Path(temporary), setup)
                        rows.append(row)
                        scores = "  ".join(
                            f"{name} {row.scores[name]:.{m.digits}f}" for name, m in SHOWN.items() if name in row.scores
                        )
                        print(f"{row.clip} {row.kind} {row.method}: {scores}  ({row.seconds:.1f} s)", file=sys.stderr)
    except UltraflashError as error:
        sys.exit(f"{error}")
    print(means_table(rows))
    if settings.out:
        used = {name: getattr(settings, name) for name in ("frames", "scale", "kinds", "seed", "options")}
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        found = report(rows, cases, used | {"methods": methods, "weights": hashes})
        settings.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
