"""The local store of weights from the hub, each with a receipt of its source."""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ultraflash_cli.errors import OutputError, WeightsError
from ultraflash_cli.files import place_file, write_whole
from ultraflash_cli.weights.manifest import WeightEntry

__all__ = ["Receipt", "VerifiedBy", "WeightStore", "writing"]

VerifiedBy = Literal["lock", "hub", "git", "keys"]
"""How a download was checked: by the list's sha256, the hub's LFS sha256, the hub's git
blob id, or only its tensors (a user's file)."""

_RECEIPT = ".receipt.json"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Origin and identity of a file in the store."""

    name: str
    """Name of the entry."""
    repository: str | None
    """Repository of the file; None for a user's own file."""
    revision: str | None
    """Commit that the file was downloaded from."""
    source: str
    """Path in the repository, or the name of the user's file."""
    source_bytes: int
    """Size of the downloaded file."""
    source_sha256: str
    """Hash of the downloaded file."""
    verified_by: VerifiedBy
    """How the download was verified."""
    bytes: int
    """Size of the file in the store."""
    sha256: str
    """Hash of the file in the store."""
    mtime_ns: int
    """Modification time of the file, for quick checks."""
    architecture: str = ""
    """Architecture of the network; empty in receipts of version 0.1."""
    licence: str = ""
    """Licence stated at its origin; empty in receipts of version 0.1."""


class WeightStore:
    """A folder of weights: ``weights/NAME`` with a receipt next to each, and
    ``downloads`` for incomplete downloads."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def downloads(self) -> Path:
        """Folder of incomplete downloads."""
        return self.root / "downloads"

    def path(self, entry: WeightEntry) -> Path:
        """Return the path of the usable file, existing or not, in the package or in
        this store."""
        if entry.packaged:
            return entry.path
        path = self.root / "weights" / entry.name
        return path if entry.architecture == "tokenizer" else path.with_name(f"{path.name}.safetensors")

    def folder(self, prefix: str) -> Path:
        """Return the folder of the entries whose names start with ``prefix``, such as
        ``wan/tokenizer``."""
        return self.root / "weights" / prefix

    def receipt(self, entry: WeightEntry) -> Receipt | None:
        """Return the receipt of an entry's file; None if there is no readable one."""
        try:
            return Receipt(**json.loads(self._receipt_path(entry).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def installed(self, entry: WeightEntry) -> bool:
        """Return whether the file exists with the right size; ``verify`` checks more
        thoroughly."""
        expected = entry.bytes if entry.packaged else getattr(self.receipt(entry), "bytes", None)
        try:
            return expected is not None and self.path(entry).stat().st_size == expected
        except OSError:
            return False

    def sha256(self, entry: WeightEntry) -> str:
        """Return the recorded hash of the usable file. Raises WeightsError if it is not installed."""
        receipt = None if entry.packaged else self.receipt(entry)
        known = entry.sha256 if entry.packaged else receipt and receipt.sha256
        if known is None:
            raise WeightsError(f"{entry.name} is not installed; run `ultraflash weights pull {entry.name}`")
        return known

    def add(self, entry: WeightEntry, part: Path, receipt: Receipt) -> None:
        """Move a finished file into place, then its receipt. Raises OutputError if that
        fails."""
        path = self.path(entry)
        with writing(path):
            place_file(part, path)
            write_whole(self._receipt_path(entry), (json.dumps(asdict(receipt), indent=1) + "\n").encode())

    def part(self, entry: WeightEntry) -> Path:
        """Return the path for preparing an entry's file before ``add`` moves it;
        creates both folders."""
        part = self.downloads / f"{entry.name.replace('/', '--')}.made"
        with writing(part):
            self.path(entry).parent.mkdir(parents=True, exist_ok=True)
            part.parent.mkdir(parents=True, exist_ok=True)
        return part

    def tidy(self) -> None:
        """Remove the remains of a killed conversion; no other process may be
        running."""
        with writing(self.downloads):
            for file in [*self.downloads.glob("*.made"), *self.downloads.glob(".tmp*")]:
                file.unlink()

    def download(self, entry: WeightEntry, identity: str) -> Path:
        """Return the path for a download; downloads for the same entry with a different
        identity are removed."""
        assert entry.repository is not None, "a file of the package is not downloaded"
        path = self.downloads / f"{_stem(entry)}.{identity[:16]}.part"
        with writing(path):
            self.downloads.mkdir(parents=True, exist_ok=True)
            for other in self.downloads.glob(f"{_stem(entry)}.*.part"):
                if other != path:
                    other.unlink(missing_ok=True)
        return path

    def remove(self, entry: WeightEntry) -> int:
        """Remove an entry's file, its receipt and partial downloads; return the bytes
        freed."""
        assert entry.repository is not None, "a file of the package is not removed"
        path = self.path(entry)
        doomed = [self._receipt_path(entry), path]
        doomed += self.downloads.glob(f"{_stem(entry)}.*.part")
        freed = 0
        with writing(path):
            for file in doomed:
                if file.is_file():
                    freed += file.stat().st_size
                    file.unlink()
        for folder in _ancestors(path.parent, self.root):
            with suppress(OSError):
                folder.rmdir()
        return freed

    def _receipt_path(self, entry: WeightEntry) -> Path:
        path = self.path(entry)
        return path.with_name(path.name + _RECEIPT)


def _stem(entry: WeightEntry) -> str:
    """Return the name prefix of an entry's downloads."""
    return entry.name.replace("/", "--")


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Convert system errors in the block to an OutputError that names ``path`` and what
    to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path} cannot be written: {reason}; free some space or set ULTRAFLASH_HOME to another folder"
        ) from error


def _ancestors(folder: Path, root: Path) -> Sequence[Path]:
    """Return ``folder`` and its ancestors below ``root``."""
    return [each for each in (folder, *folder.parents) if each.is_relative_to(root) and each != root]
