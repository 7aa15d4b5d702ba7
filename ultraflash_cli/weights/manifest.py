"""The one list of weights, ``weights.toml``: names, files, hashes, sizes, licences."""

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ultraflash_cli.errors import WeightsError

__all__ = ["WeightEntry", "read_manifest"]


@dataclass(frozen=True, kw_only=True)
class WeightEntry:
    """One weight file."""

    name: str
    """What code and users ask for, such as ``lite/decoder``."""
    architecture: str
    """The stage it belongs to."""
    file: str
    """Path inside the package's ``weights`` folder."""
    sha256: str
    """Hash of the file."""
    bytes: int
    """Size of the file."""
    licence: str
    """SPDX identifier."""

    @property
    def path(self) -> Path:
        """Where the file lies in this installation."""
        return Path(str(resources.files("ultraflash_cli.weights").joinpath(self.file)))


def read_manifest(path: Path | None = None) -> dict[str, WeightEntry]:
    """Return the entries by name. Raises WeightsError where the list is missing or malformed."""
    path = path or _manifest_path()
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["weights"]
        entries = [WeightEntry(**row) for row in rows]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{path.name}: not a readable list of weights ({error}). Reinstall ultraflash.") from error
    return {entry.name: entry for entry in entries}


def _manifest_path() -> Path:
    """Return the list inside the installed package, or the repository's in an editable install."""
    packaged = Path(str(resources.files("ultraflash_cli").joinpath("weights.toml")))
    return packaged if packaged.exists() else Path(__file__).parents[2] / "weights.toml"
