"""The list of weights, ``weights.toml``: names, files, hashes, sizes, licences, and
sets of names."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from ultraflash_cli.errors import ConfigError, WeightsError

__all__ = ["Alternative", "WeightEntry", "WeightSet", "manifest_text", "package_folder", "read_manifest", "read_sets"]

HEADER = "# Every weight file: what code asks for by name, verified by size and sha256 before use.\n"


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another location of an entry's weights on the hub; omitted fields are those of
    the entry."""

    repository: str
    """``owner/name``."""
    file: str
    """Path inside the repository; ``*`` stands for any text."""
    licence: str
    """As the source states it."""
    revision: str | None = None
    """The commit to take; None while the location is unlocked."""
    sha256: str | None = None
    """Hash of the file; None while the location is unlocked."""
    bytes: int | None = None
    """Size of the file; None while the location is unlocked."""
    architecture: str | None = None
    """Architecture, if it differs from the entry's."""
    wrapper: str | None = None
    """The part of a checkpoint to use if it contains several networks."""
    note: str | None = None
    """Note for users before the download."""


@dataclass(frozen=True, kw_only=True)
class WeightEntry:
    """One weight file, inside the package or on the hub."""

    name: str
    """Name for code and users, such as ``lite/pixels``."""
    architecture: str
    """Architecture: the stage it belongs to, or for a file on the hub the key of its rules in ``convert.RULES``."""
    repository: str | None = None
    """``owner/name`` on the hub; None for a file inside the package."""
    file: str
    """Path inside the repository, where ``*`` stands for any text, or inside the package's ``weights`` folder."""
    revision: str | None = None
    """The commit to take; None while the entry is unlocked."""
    sha256: str | None = None
    """Hash of the file; None while the entry is unlocked."""
    bytes: int | None = None
    """Size of the file; None while the entry is unlocked."""
    licence: str
    """SPDX identifier as the source states it, or ``not confirmed``."""
    wrapper: str | None = None
    """The part of a checkpoint to use if it contains several networks; None for the
    usual order."""
    note: str | None = None
    """Note for users before the download."""
    optional: bool = False
    """Whether a set is pulled without it if it is not available."""
    fallback: str | None = None
    """Entry to use instead if this one is not installed."""
    alternatives: tuple[Alternative, ...] = ()
    """Other locations on the hub, in the order in which they are tried."""

    def __post_init__(self) -> None:
        pinned = (self.revision, self.sha256, self.bytes)
        if self.repository is None:
            if self.sha256 is None or self.bytes is None or self.revision is not None:
                raise ConfigError(f"{self.name}: a packaged file needs sha256 and bytes, and no revision")
        elif any(value is None for value in pinned) and any(value is not None for value in pinned):
            raise ConfigError(f"{self.name}: revision, sha256 and bytes must be given together or not at all")
        elif self.revision is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ConfigError(f"{self.name}: the revision must be a commit of 40 hex digits, got {self.revision!r}")

    @property
    def places(self) -> tuple["WeightEntry", ...]:
        """The entry at each of its locations, starting with its own, each without
        alternatives."""
        first = replace(self, alternatives=())
        others = [
            replace(first, **{**asdict(each), "architecture": each.architecture or self.architecture})
            for each in self.alternatives
        ]
        return (first, *others)

    @property
    def packaged(self) -> bool:
        """Whether the file came with the program."""
        return self.repository is None

    @property
    def locked(self) -> bool:
        """Whether the list identifies the file (commit, hash and size)."""
        return self.sha256 is not None

    @property
    def path(self) -> Path:
        """Path of a packaged file in this installation; files from the hub are in a ``WeightStore``."""
        assert self.packaged, f"{self.name} comes from the hub; ask a WeightStore for its path"
        return package_folder() / "weights" / self.file


@dataclass(frozen=True, kw_only=True)
class WeightSet:
    """A set of names that are requested together."""

    name: str
    """Name of the set."""
    about: str
    """Purpose of the set."""
    members: tuple[str, ...]
    """Names of weights."""


def read_manifest(path: Path | None = None) -> dict[str, WeightEntry]:
    """Return the entries by name. Raises WeightsError if the list is missing or malformed."""
    path = path or _manifest_path()
    return dict(_entries(path, _stamp(path)))


@lru_cache
def _entries(path: Path, _stamp: tuple[int, int]) -> dict[str, WeightEntry]:
    try:
        entries = [_entry(row) for row in _tables(path)["weights"]]
    except (KeyError, TypeError, ConfigError) as error:
        raise _unreadable(path, error) from error
    return {entry.name: entry for entry in entries}


def read_sets(path: Path | None = None) -> dict[str, WeightSet]:
    """Return the sets by name. Raises WeightsError if the list is missing or malformed."""
    path = path or _manifest_path()
    try:
        rows: list[dict[str, Any]] = _tables(path).get("sets", [])
        sets = [WeightSet(name=row["name"], about=row["about"], members=tuple(row["members"])) for row in rows]
    except (KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    return {each.name: each for each in sets}


def manifest_text(entries: Mapping[str, WeightEntry], sets: Mapping[str, WeightSet]) -> str:
    """Return the text of a list of weights: sets, then entries, each by name."""
    tables = [HEADER]
    tables += [_table("sets", asdict(sets[name])) for name in sorted(sets)]
    tables += [_table("weights", asdict(entries[name])) for name in sorted(entries)]
    return "\n".join(tables)


def package_folder() -> Path:
    """Return the folder of the installed package."""
    return Path(str(resources.files("ultraflash_cli")))


def _entry(row: Mapping[str, Any]) -> WeightEntry:
    fields = dict(row)
    alternatives = tuple(Alternative(**each) for each in fields.pop("alternatives", ()))
    entry = WeightEntry(**fields, alternatives=alternatives)
    assert entry.places, "every place is checked as an entry of its own"
    return entry


def _table(kind: str, values: Mapping[str, Any]) -> str:
    rest = dict(values)
    nested: Sequence[Mapping[str, Any]] = rest.pop("alternatives", ())
    lines = [f"{key} = {_toml(value)}" for key, value in rest.items() if value is not None and value is not False]
    table = "\n".join([f"[[{kind}]]", *lines]) + "\n"
    return "\n".join([table, *(_table(f"{kind}.alternatives", each) for each in nested)])


def _toml(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return "[\n" + "".join(f"  {_toml(item)},\n" for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _unreadable(path, error) from error


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes when the list is written again."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_mtime_ns, status.st_size


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path.name}: not a readable list of weights ({error}); reinstall ultraflash")


def _manifest_path() -> Path:
    """Return the list inside the installed package, or the repository's in an editable install."""
    packaged = package_folder() / "weights.toml"
    return packaged if packaged.exists() else Path(__file__).parents[2] / "weights.toml"
