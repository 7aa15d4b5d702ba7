"""A list of weights filled in from what the hub says now: revision, size and sha256 of every file."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.events import Listener, Transfer, Warned
from ultraflash_cli.jobs.pull import Catalogue
from ultraflash_cli.weights.fetch import Hub, RemoteFile, fetch, locate
from ultraflash_cli.weights.manifest import WeightEntry, manifest_text, package_folder
from ultraflash_cli.weights.store import writing

__all__ = ["check_lock_target", "lock_weights"]

_INSTALLED = {"site-packages", "dist-packages"}


def check_lock_target(out: Path, *, overwrite: bool) -> None:
    """Refuse, with a UsageError, a place inside an installed package, or a file that exists and is to be kept."""
    place = out.resolve()
    if place.is_relative_to(package_folder().resolve()) or _INSTALLED & set(place.parts):
        raise UsageError(f"{out} lies inside an installed package, which is never written to; name another file")
    if out.is_dir():
        raise UsageError(f"{out} is a folder, expected a file name")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; -y replaces it")


def lock_weights(
    catalogue: Catalogue, names: Sequence[str], out: Path, *, hub: Hub, on_event: Listener
) -> list[WeightEntry]:
    """Write the list to ``out`` with the named entries, or all of the hub, at the hub's current commits; return them.

    A file that the hub has no sha256 of is small; it is fetched, checked against its id in git and hashed. Raises
    WeightsError where the hub says no; nothing is written then.
    """
    chosen = [entry for name in names for entry in catalogue.choose(name)] if names else catalogue.entries.values()
    if withheld := hub.withheld:
        on_event(Warned(input=" ".join(names), message=withheld))
    entries = dict(catalogue.entries)
    locked: list[WeightEntry] = []
    commits: dict[str, str] = {}
    known: dict[tuple[str, str], RemoteFile] = {}
    for entry in chosen:
        if entry.repository is None:
            continue
        key = (entry.repository, entry.file)
        if key not in known:
            unlocked = replace(entry, revision=None, sha256=None, bytes=None)
            remote = locate(hub, unlocked, revision=commits.get(entry.repository))
            commits.setdefault(entry.repository, remote.revision)
            known[key] = remote if remote.sha256 else replace(remote, sha256=_hash_of(hub, remote, on_event))
        remote = known[key]
        filled = replace(entry, file=remote.path, revision=remote.revision, sha256=remote.sha256, bytes=remote.bytes)
        entries[entry.name] = filled
        locked.append(filled)
    with writing(out):
        part = out.with_name(f".{out.name}.part")
        part.write_text(manifest_text(entries, catalogue.sets), encoding="utf-8")
        part.replace(out)
    return locked


def _hash_of(hub: Hub, remote: RemoteFile, on_event: Listener) -> str:
    def tell(have: int) -> None:
        on_event(Transfer(input=str(remote), bytes_done=have, bytes_total=remote.bytes, bytes_per_s=0.0))

    with tempfile.TemporaryDirectory() as folder:
        return fetch(hub, remote, Path(folder) / "file", tell)
