"""Parity runner: ``python -m tests.golden DIR`` runs vector sets through the stages as the product uses them.

One line per set: name, largest absolute difference, whether all masks are exact (-
where a set has none), and ok, FAIL or skip. An exception is a FAIL, a set of no known
type a skip. The exit code is 1 if any set failed.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.parity import coding, generation, refinement, whole_cascade
from tests.parity.vector_set import SetResult, VectorSet

__all__ = ["RUNNERS", "SetResult", "find_sets", "main", "run_set"]

RUNNERS: dict[str, Callable[[VectorSet], None]] = {
    **coding.RUNNERS,
    **generation.RUNNERS,
    **refinement.RUNNERS,
    **whole_cascade.RUNNERS,
}
"""Runner of each set, by the longest prefix of its name."""


def find_sets(root: Path) -> Iterator[Path]:
    """Yield the folders and files under ``root`` (itself included) that hold one vector set, in order of path."""
    if root.is_file():
        yield root
        return
    children = sorted(root.iterdir())
    folders = [path for path in children if path.is_dir()]
    if (root / "config.json").exists() or (not folders and (children or _runner(root.stem))):
        yield root
        return
    for child in children:
        if child.is_dir() or (child.suffix == ".json" and _runner(child.stem)):
            yield from find_sets(child)


def _runner(name: str) -> Callable[[VectorSet], None] | None:
    known = [prefix for prefix in RUNNERS if name.startswith(prefix)]
    return RUNNERS[max(known, key=len)] if known else None


def run_set(path: Path) -> SetResult:
    """Run one set; never raises because of its contents."""
    runner = _runner(path.stem)
    if runner is None:
        return SetResult(path.name, "skip")
    try:
        vectors = VectorSet(path)
        with torch.no_grad():
            runner(vectors)
    except Exception as error:
        return SetResult(path.name, "FAIL", reason=f"{type(error).__name__}: {error}")
    status = "FAIL" if vectors.failures else "ok"
    return SetResult(path.name, status, vectors.max_abs, vectors.masks_exact, "; ".join(vectors.failures))


def main(arguments: list[str] | None = None) -> int:
    """Run all sets under the folder named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Run golden vectors.")
    parser.add_argument("folder", type=Path, help="one vector set or a tree of them")
    root: Path = parser.parse_args(arguments).folder.resolve()
    if not root.exists():
        parser.error(f"{root} does not exist")
    failed = False
    for path in find_sets(root):
        result = run_set(path)
        print(result, flush=True)
        if result.reason:
            print(f"  {result.name}: {result.reason}", file=sys.stderr)
        failed |= result.status == "FAIL"
    return int(failed)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
