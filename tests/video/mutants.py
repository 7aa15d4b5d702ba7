"""Damage the files of a folder in many ways and read the results: ``python -m
tests.video.mutants FOLDER 0 60``.

Prints a line before and after each reading, so that after a crash of the interpreter
the cause is known.
"""

import random
import sys
import traceback
from pathlib import Path

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.probe import probe


def mutated(content: bytes, seed: int) -> bytes:
    """Return damaged data: truncated, with single bits flipped, with a damaged head, or
    with a piece in the middle zeroed, duplicated or removed."""
    rng = random.Random(seed)
    data = bytearray(content)
    kind = seed % 6
    if kind == 0:
        return bytes(data[: rng.randrange(1, len(data))])
    if kind == 1:
        for _ in range(rng.randrange(1, 40)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(rng.randrange(1, 12)):
            data[rng.randrange(min(len(data), 800))] = rng.randrange(256)
    else:
        start = rng.randrange(len(data))
        piece = data[start : start + rng.randrange(1, 1 + len(data) // 4)]
        data[start : start + len(piece)] = {3: bytes(len(piece)), 4: piece * 2, 5: b""}[kind]
    return bytes(data)


def read_to_the_end(path: Path) -> str:
    """Return how reading ended, in one word."""
    try:
        info = probe(path)
        count, last = 0, None
        for frame in read_frames(info, alpha=count % 2 == 0, warn=lambda _: None):
            assert last is None or frame.pts > last, "time stamps grow"
            assert frame.duration > 0, "every frame lasts"
            assert frame.rgb_hwc.shape == (info.height_px, info.width_px, 3), "frames of one size"
            count, last = count + 1, frame.pts
    except InputError as error:
        assert "\n" not in str(error), "one line"
        return "refused"
    return f"{count} frames"


def main(folder: Path, first: int, count: int) -> int:
    """Read ``count`` mutants, cycling through the kinds of file; return 1 if one of
    them raised an unexpected error."""
    sources = sorted(path for path in folder.iterdir() if path.is_file() and not path.stem.startswith("mutant"))
    failures = 0
    for seed in range(first, first + count):
        source = sources[seed % len(sources)]
        path = source.with_stem("mutant")
        path.write_bytes(mutated(source.read_bytes(), seed * 7 // len(sources) + seed))
        print(seed, source.name, end=" ", flush=True)
        try:
            print(read_to_the_end(path), flush=True)
        except Exception:
            failures += 1
            print("FAILED", flush=True)
            traceback.print_exc()
        path.unlink()
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
