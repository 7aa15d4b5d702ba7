"""Install files into the store, pulled or provided by the user: check, convert and keep
them with a receipt."""

import json
import shutil
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from ultraflash_cli.errors import InputError, OutputError, UsageError, WeightsError
from ultraflash_cli.host import free_bytes, shortage
from ultraflash_cli.jobs.resume.work_folder import OutputLock
from ultraflash_cli.jobs.weights.catalogue import Catalogue
from ultraflash_cli.weights.detect import READS_LOW_FRAMES
from ultraflash_cli.weights.manifest import WeightEntry
from ultraflash_cli.weights.store import Receipt, VerifiedBy, WeightStore, writing
from ultraflash_cli.weights.verify import sha256_of

__all__ = ["Pulled", "import_file", "install", "left_out", "report", "require_free"]


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """One entry after a pull."""

    name: str
    state: Literal["packaged", "ready", "pulled", "imported", "left out"]
    licence: str
    """Licence as stated at the file's origin."""
    path: str | None
    """The usable file."""
    bytes: int | None
    """Size in bytes."""
    sha256: str | None
    """Its hash."""
    repository: str | None
    revision: str | None
    """The commit it was taken at."""
    verified_by: VerifiedBy | None
    """Reference that the download was checked against; None for a file of the
    package."""
    note: str | None = None


def import_file(catalogue: Catalogue, name: str | None, source: Path, *, store: WeightStore) -> Pulled:
    """Import a user's file into the store, recognised by its contents. Raises
    UsageError if it matches several entries and none is named, InputError if the file
    is missing, WeightsError if its contents are wrong.
    """
    if not source.is_file():
        raise InputError(f"{source}: no such file; check the path")

    entry = _entry_of(catalogue, name, source)
    sha256, size = sha256_of(source), source.stat().st_size
    entry = next((place for place in entry.places if place.sha256 == sha256), _unlocked_place(entry, source))
    if entry.sha256 is not None and (sha256, size) != (entry.sha256, entry.bytes):
        raise WeightsError(
            f"{source}: {size} bytes, sha256 starts with {sha256[:12]}; expected {entry.bytes} bytes, "
            f"{entry.sha256[:12]} for {entry.name}; run `ultraflash weights pull {entry.name}`"
        )

    with OutputLock(store.downloads):
        store.tidy()
        require_free(store, size)
        receipt = install(
            entry,
            source,
            store,
            name=str(source),
            repository=None,
            revision=entry.revision,
            source_name=source.name,
            source_sha256=sha256,
            verified_by="lock" if entry.locked else "keys",
        )

    return report(entry, store, "imported", receipt)


def install(
    entry: WeightEntry,
    path: Path,
    store: WeightStore,
    *,
    name: str,
    repository: str | None,
    revision: str | None,
    source_name: str,
    source_sha256: str,
    verified_by: VerifiedBy,
) -> Receipt:
    """Convert a checked file to that of an entry and put it in place, with its
    receipt."""
    part = store.part(entry)
    try:
        with writing(part):
            if entry.architecture == "tokenizer":
                _check_tokenizer_file(path, name)
                shutil.copyfile(path, part)
            else:
                from ultraflash_cli.models.architectures import expected_shapes
                from ultraflash_cli.weights.convert import convert

                expected = expected_shapes(entry.architecture)
                convert(path, part, entry.architecture, expected, prefer=entry.wrapper, name=name)
            found = part.stat()
        receipt = Receipt(
            name=entry.name,
            repository=repository,
            revision=revision,
            source=source_name,
            source_bytes=path.stat().st_size,
            source_sha256=source_sha256,
            verified_by=verified_by,
            bytes=found.st_size,
            sha256=sha256_of(part),
            mtime_ns=found.st_mtime_ns,
            architecture=entry.architecture,
            licence=entry.licence,
        )
        store.add(entry, part, receipt)
    finally:
        part.unlink(missing_ok=True)
    return receipt


def _check_tokenizer_file(path: Path, name: str) -> None:
    """Reject files that cannot be part of a tokenizer: invalid JSON or an invalid
    model."""
    content = path.read_bytes()
    if Path(name).suffix == ".json":
        try:
            json.loads(content)
        except ValueError as error:
            raise WeightsError(f"{name}: not readable as JSON ({error})") from error
    elif not content.startswith(b"\n"):  # the first field of a sentencepiece model, a list of pieces
        raise WeightsError(f"{name}: not a sentencepiece model")


def _entry_of(catalogue: Catalogue, name: str | None, source: Path) -> WeightEntry:
    """Return the entry for a user's file: the named one, else the one that matches its
    content."""
    if name is not None:
        entries = catalogue.choose(name)
        if len(entries) != 1 or entries[0].packaged:
            raise UsageError(f"--from imports one file of a published model, not {name!r}")
        return entries[0]
    from ultraflash_cli.weights.convert import read_checkpoint, recognise

    architecture = recognise(read_checkpoint(source))
    fitting = [
        entry
        for entry in catalogue.entries.values()
        if not entry.packaged and any(_takes(place, architecture) for place in entry.places)
    ]
    named = [e for e in fitting if any(fnmatch(source.name, Path(place.file).name) for place in e.places)]
    if len(fitting) == 1 or len(named) == 1:
        return (named if len(named) == 1 else fitting)[0]
    if not fitting:
        what = "no known network" if architecture is None else f"{architecture}, which is not in the list"
        raise WeightsError(f"{source}: its tensors belong to {what}; `ultraflash weights list` shows all")
    raise UsageError(f"{source} could be {' or '.join(entry.name for entry in fitting)}; give its NAME")


def _unlocked_place(entry: WeightEntry, source: Path) -> WeightEntry:
    """Return the location of an entry that a user's file may replace: the one that
    matches its content, else the first unlocked one."""
    places = [place for place in entry.places if not place.locked] or [entry.places[0]]
    found = {place.architecture for place in places}
    if len(found) == 1 and found.isdisjoint(READS_LOW_FRAMES):
        return places[0]
    from ultraflash_cli.weights.convert import read_checkpoint, recognise

    architecture = recognise(read_checkpoint(source))
    place = next((place for place in places if _takes(place, architecture)), None)
    return places[0] if place is None or architecture is None else replace(place, architecture=architecture)


def _takes(place: WeightEntry, architecture: str | None) -> bool:
    """Return whether a user's file of this architecture may replace a location."""
    return architecture in (place.architecture, READS_LOW_FRAMES.get(place.architecture, place.architecture))


def require_free(store: WeightStore, needed: int) -> None:
    free = free_bytes(store.root)
    if free < needed:
        raise OutputError(
            f"disk full: {store.root} has {shortage(free, needed)}; free some space or set ULTRAFLASH_HOME to another "
            "folder"
        )


def report(
    entry: WeightEntry,
    store: WeightStore,
    state: Literal["packaged", "ready", "pulled", "imported"],
    receipt: Receipt | None = None,
) -> Pulled:
    receipt = receipt or (None if entry.packaged else store.receipt(entry))
    return Pulled(
        name=entry.name,
        state=state,
        licence=(receipt.licence if receipt else "") or entry.licence,
        path=str(store.path(entry)),
        bytes=receipt.bytes if receipt else entry.bytes,
        sha256=receipt.sha256 if receipt else entry.sha256,
        repository=receipt.repository if receipt else None,
        revision=receipt.revision if receipt else None,
        verified_by=receipt.verified_by if receipt else None,
    )


def left_out(entry: WeightEntry, reason: str) -> Pulled:
    return Pulled(
        name=entry.name,
        state="left out",
        licence=entry.licence,
        path=None,
        bytes=None,
        sha256=None,
        repository=entry.repository,
        revision=None,
        verified_by=None,
        note=reason,
    )
