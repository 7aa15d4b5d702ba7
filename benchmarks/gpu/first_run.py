"""The first minutes on a GPU, most informative sections first: each section runs in a
separate process, all results are in one file.

    PYTHONPATH=.:kernels python -m benchmarks.gpu.first_run --out first_run.json --within 380
    PYTHONPATH=.:kernels python -m benchmarks.gpu.first_run --out first_run.json --only attention,graphs
    PYTHONPATH=.:kernels python -m benchmarks.gpu.first_run --out first_run.json --dry-run    # tiny, on a CPU

Run the same command again after a timeout: sections that have a result are skipped, and
failed ones are retried. An illegal memory access costs one section, because each runs
in a separate process. Needs torch and numpy, no weights.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["SECTIONS", "main", "remaining", "run_section"]

SECTIONS: Mapping[str, int] = {
    "facts": 40,
    "hopper": 60,
    "correct": 100,
    "attention": 120,
    "convolutions": 60,
    "profile_refine": 70,
    "profile_rest": 70,
    "graphs": 90,
    "fps_upscale_1k": 50,
    "fps_generate_1k": 70,
    "fps_upscale_2k": 60,
    "fps_generate_2k": 80,
    "fps_upscale_2k_stretch": 60,
    "fps_generate_1k_stretch": 70,
    "fps_upscale_2k_hopper": 60,
    "fps_generate_1k_hopper": 70,
    "fps_upscale_2k_stretch_hopper": 60,
    "fps_generate_1k_stretch_hopper": 70,
    "race": 60,
    "state": 40,
    "two_gpus": 90,
}
"""Time limit of each section in seconds, most informative sections first."""
LEAST_S = 20
"""Minimum time left to start a section."""
TOLD = 3000
"""Number of characters of an error output that are kept."""


def remaining(results: Mapping[str, Mapping[str, Any]], asked: Sequence[str]) -> list[str]:
    """Return the sections that have no result yet, in their order."""
    return [name for name in SECTIONS if name in asked and "result" not in results.get(name, {})]


def run_section(name: str, limit_s: float, *, dry: bool) -> dict[str, Any]:
    """Run one section in a separate process; return its result, or the reason why it
    has none."""
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder, "result.json")
        command = [sys.executable, "-m", "benchmarks.gpu.first_run", "--section", name, "--out", str(scratch)]
        if dry:
            command.append("--dry-run")
        try:
            done = subprocess.run(command, timeout=limit_s, check=False, capture_output=True, text=True)
            told = (done.stdout + done.stderr)[-TOLD:]
        except subprocess.TimeoutExpired as error:
            told = f"it took longer than {limit_s:.0f} s; {str(error.stdout or '')[-TOLD:]}"
        found: dict[str, Any] = json.loads(scratch.read_text()) if scratch.exists() else {"failed": told}
    return {"seconds": round(time.monotonic() - begun_s, 1), **found}


def _one(name: str, out: Path, *, dry: bool) -> None:
    """Run a section in this process, which was started for it."""
    from benchmarks.gpu import sections

    try:
        found: dict[str, Any] = {"result": sections.run(name, dry=dry)}
    except Exception:
        found = {"failed": traceback.format_exc()[-TOLD:]}
    _write(out, found)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(json.dumps(content, indent=1, default=str) + "\n")
    draft.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections without a result, as time allows; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("first_run.json"), help="the one file with all results")
    parser.add_argument("--within", type=float, default=570, metavar="S", help="seconds in all")
    parser.add_argument("--only", default=",".join(SECTIONS), metavar="NAME,...", help="sections")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU: proves the script")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.section:
        _one(asked.section, asked.out, dry=asked.dry_run)
        return 0

    names = asked.only.split(",")
    if unknown := set(names) - SECTIONS.keys():
        parser.error(f"no section is called {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    kind = "dry run" if asked.dry_run else "gpu"
    results: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    if results.get("kind", kind) != kind:
        parser.error(f"{asked.out} holds results of a {results['kind']}; --out names another file")
    results["kind"] = kind
    ends_s = time.monotonic() + asked.within
    for name in remaining(results, names):
        left_s = ends_s - time.monotonic()
        if left_s < LEAST_S:
            print(f"{name}: no time left; the same command goes on", flush=True)
            continue
        results[name] = run_section(name, min(SECTIONS[name], left_s), dry=asked.dry_run)
        _write(asked.out, results)
        state = "done" if "result" in results[name] else f"failed: {results[name]['failed'].strip()[-300:]}"
        print(f"{name}: {results[name]['seconds']:.0f} s, {state}", flush=True)
    return int(any("failed" in results.get(name, {}) for name in names))


if __name__ == "__main__":
    sys.exit(main())
