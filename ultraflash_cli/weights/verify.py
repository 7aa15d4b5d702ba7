"""Verify that a weight file is the one recorded in the list or its receipt."""

import hashlib
from pathlib import Path

from ultraflash_cli.errors import WeightsError
from ultraflash_cli.weights.manifest import WeightEntry
from ultraflash_cli.weights.store import WeightStore

__all__ = ["git_blob_of", "sha256_of", "verify"]


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_of(path: Path) -> str:
    """Return the git blob id of a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def verify(entry: WeightEntry, store: WeightStore | None = None, *, quick: bool = False) -> Path:
    """Return the path of a weight file after comparing it with the record. A file from
    the hub needs its ``store``. ``quick`` trusts size and modification time there and
    hashes only if the time differs. Raises WeightsError with what was found, what was
    expected and what to do.
    """
    if entry.packaged:
        assert entry.bytes is not None and entry.sha256 is not None, "the manifest checks this"
        return _compare(entry.name, entry.path, entry.bytes, entry.sha256, "reinstall ultraflash")
    assert store is not None, f"{entry.name} comes from the hub; say which store it is in"
    path, receipt, cure = store.path(entry), store.receipt(entry), f"run `ultraflash weights pull {entry.name}`"
    if receipt is None:
        raise WeightsError(f"{entry.name} is not installed; {cure}")
    locks = [place.sha256 for place in entry.places]
    if None not in locks and receipt.source_sha256 not in locks:
        raise WeightsError(
            f"{entry.name}: made from a file whose sha256 starts with {receipt.source_sha256[:12]}, "
            f"expected {' or '.join(str(lock)[:12] for lock in locks)}; {cure}"
        )
    if quick and path.exists() and (path.stat().st_size, path.stat().st_mtime_ns) == (receipt.bytes, receipt.mtime_ns):
        return path
    return _compare(entry.name, path, receipt.bytes, receipt.sha256, cure)


def _compare(name: str, path: Path, size: int, sha256: str, cure: str) -> Path:
    if not path.exists():
        raise WeightsError(f"{name}: {path.name} is missing; {cure}")
    got_size = path.stat().st_size
    if got_size != size:
        raise WeightsError(f"{name}: {path.name} has {got_size} bytes, expected {size}; {cure}")
    got = sha256_of(path)
    if got != sha256:
        raise WeightsError(f"{name}: sha256 of {path.name} starts with {got[:12]}, expected {sha256[:12]}; {cure}")
    return path
