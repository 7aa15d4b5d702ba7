"""Whether a weight file is the one that the list means."""

import hashlib
from pathlib import Path

from ultraflash_cli.errors import WeightsError
from ultraflash_cli.weights.manifest import WeightEntry

__all__ = ["sha256_of", "verify"]


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(entry: WeightEntry) -> Path:
    """Return the path of a weight file after comparing size and hash. Raises WeightsError, saying which differs."""
    path = entry.path
    if not path.exists():
        raise WeightsError(f"{entry.name}: {path.name} is missing. Reinstall ultraflash.")
    size = path.stat().st_size
    if size != entry.bytes:
        raise WeightsError(f"{entry.name}: {path.name} has {size} bytes, expected {entry.bytes}. Reinstall ultraflash.")
    got = sha256_of(path)
    if got != entry.sha256:
        raise WeightsError(
            f"{entry.name}: sha256 of {path.name} starts {got[:12]}, expected {entry.sha256[:12]}. "
            "Reinstall ultraflash."
        )
    return path
