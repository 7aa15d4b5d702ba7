"""Update a list of weights from the hub: revision, size and sha256 of every file."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ultraflash_cli.errors import UsageError, WeightsError
from ultraflash_cli.files import write_whole
from ultraflash_cli.jobs.events import Listener, Transfer, Warned
from ultraflash_cli.jobs.weights.catalogue import Catalogue
from ultraflash_cli.weights.fetch import Hub, NotThere, RemoteFile, fetch, locate
from ultraflash_cli.weights.manifest import WeightEntry, manifest_text, package_folder
from ultraflash_cli.weights.search import HubSearch
from ultraflash_cli.weights.store import writing

__all__ = ["check_lock_target", "lock_weights"]

_INSTALLED = {"site-packages", "dist-packages"}


def check_lock_target(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError for a path inside an installed package, or for an existing file
    that must be kept."""
    place = out.resolve()
    if place.is_relative_to(package_folder().resolve()) or _INSTALLED & set(place.parts):
        raise UsageError(f"{out} is inside an installed package, which is never modified; choose another file")
    if out.is_dir():
        raise UsageError(f"{out} is a folder, expected a file")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; use -y to replace it")


def lock_weights(
    catalogue: Catalogue, names: Sequence[str], out: Path, *, hub: Hub, on_event: Listener, update: bool = False
) -> list[WeightEntry]:
    """Write the list to ``out`` with the named entries, or all on the hub, locked;
    return those entries. An unlocked location gets commit, size and sha256 from the
    hub; a locked one is compared with the hub and kept or, with ``update``, locked
    again. Files without a sha256 on the hub are small; they are downloaded, checked
    against their git id and hashed. A location that the hub does not have stays
    unlocked, with a warning. Raises WeightsError if the hub denies access, has none of
    an entry's locations, or has a file that differs from the list; nothing is written
    then.
    """
    chosen = [entry for name in names for entry in catalogue.choose(name)] if names else catalogue.entries.values()
    if withheld := hub.withheld:
        on_event(Warned(input=" ".join(names), message=withheld))
    locker = _Locker(catalogue, hub, on_event, update)
    entries = dict(catalogue.entries)
    locked: list[WeightEntry] = []
    for entry in chosen:
        if entry.repository is not None:
            entries[entry.name] = locker.locked(entry)
            locked.append(entries[entry.name])
    with writing(out):
        write_whole(out, manifest_text(entries, catalogue.sets).encode())
    return locked


class _Locker:
    """Fills in locations from the hub, requesting each file only once."""

    def __init__(self, catalogue: Catalogue, hub: Hub, on_event: Listener, update: bool) -> None:
        self._search = HubSearch(hub, catalogue.entries.values())
        self._hub = hub
        self._on_event = on_event
        self._update = update
        self._hashed: dict[tuple[str, str], RemoteFile] = {}

    def locked(self, entry: WeightEntry) -> WeightEntry:
        """Return the entry with every location locked that exists on the hub. Raises
        WeightsError if none does."""
        first, *others = entry.places
        refusals: list[WeightsError] = []
        places: list[WeightEntry] = []
        for place in (first, *others):
            try:
                places.append(self._place(place))
            except WeightsError as error:
                if place.locked and not isinstance(error, NotThere):
                    raise
                refusals.append(error)
                places.append(place)

        if len(refusals) == len(places):
            raise refusals[0]

        for error in refusals:
            self._on_event(Warned(input=entry.name, message=f"{error}; this entry is unchanged"))

        first, *others = places
        alternatives = tuple(
            replace(
                each,
                file=place.file,
                revision=place.revision,
                sha256=place.sha256,
                bytes=place.bytes,
            )
            for each, place in zip(entry.alternatives, others, strict=True)
        )
        return replace(first, alternatives=alternatives)

    def _place(self, place: WeightEntry) -> WeightEntry:
        if place.locked and not self._update:
            locate(self._hub, place)
            return place
        found = self._search.find(replace(place, revision=None, sha256=None, bytes=None)).remote
        key = (found.repository, found.path)
        if found.sha256 is None and key not in self._hashed:
            self._hashed[key] = replace(found, sha256=_hash_of(self._hub, found, self._on_event))
        remote = self._hashed.get(key, found)
        return replace(place, file=remote.path, revision=remote.revision, sha256=remote.sha256, bytes=remote.bytes)


def _hash_of(hub: Hub, remote: RemoteFile, on_event: Listener) -> str:
    def tell(have: int) -> None:
        on_event(Transfer(input=str(remote), bytes_done=have, bytes_total=remote.bytes, bytes_per_s=0.0))

    with tempfile.TemporaryDirectory() as folder:
        return fetch(hub, remote, Path(folder) / "file", tell)
