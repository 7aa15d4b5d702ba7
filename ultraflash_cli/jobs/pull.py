"""Weights brought to this machine: what is missing found out, transferred, checked, converted, kept with a receipt."""

import difflib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ultraflash_cli.errors import InputError, OutputError, UsageError, WeightsError
from ultraflash_cli.jobs.events import Listener, PullPlanned, Transfer, Warned
from ultraflash_cli.jobs.host import free_bytes
from ultraflash_cli.jobs.journal import OutputLock
from ultraflash_cli.settings import Settings
from ultraflash_cli.weights.fetch import Hub, RemoteFile, check_download, fetch, locate
from ultraflash_cli.weights.manifest import WeightEntry, WeightSet, read_manifest, read_sets
from ultraflash_cli.weights.store import Receipt, VerifiedBy, WeightStore, writing
from ultraflash_cli.weights.verify import sha256_of, verify

__all__ = [
    "Catalogue",
    "PullPlan",
    "Pulled",
    "Source",
    "hub_of",
    "import_file",
    "open_store",
    "plan_pull",
    "read_catalogue",
    "run_pull",
]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The list of weights: single ones and sets."""

    entries: Mapping[str, WeightEntry]
    sets: Mapping[str, WeightSet]

    def choose(self, name: str) -> list[WeightEntry]:
        """Return the entries that a name means: one, a set's, or all below it (``wan``, ``wan/tokenizer``).

        Raises UsageError, with the nearest names, for one that means nothing.
        """
        if name in self.entries:
            return [self.entries[name]]
        if name in self.sets:
            return [self.entries[member] for member in self.sets[name].members]
        below = [entry for each, entry in self.entries.items() if each.startswith(f"{name.rstrip('/')}/")]
        if not name or not below:
            near = difflib.get_close_matches(name, [*self.sets, *self.entries], n=2, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else "`ultraflash weights list` names them."
            raise UsageError(f"no weights are called {name!r}; {hint}")
        return below


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file at the hub and what is to be made of it."""

    remote: RemoteFile
    entries: tuple[WeightEntry, ...]
    """More than one where only the file's content tells which of them it is."""
    by_name: frozenset[str]
    """Those that were asked for by their own name: they have to be in it."""


@dataclass(frozen=True, kw_only=True)
class PullPlan:
    """What a pull is going to do, known before a byte is transferred."""

    store: WeightStore
    hub: Hub
    asked: tuple[str, ...]
    ready: tuple[WeightEntry, ...]
    """Installed already, or part of the package."""
    left_out: tuple[tuple[WeightEntry, str], ...]
    """Members of a set that cannot be had, with the reason."""
    sources: tuple[Source, ...]

    @property
    def transfer_bytes(self) -> int:
        """What has to come over the network, parts that are here already included."""
        return sum(source.remote.bytes for source in self.sources if source.remote.cached is None)


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """One entry after a pull."""

    name: str
    state: Literal["packaged", "ready", "pulled", "imported", "left out"]
    path: str | None
    """The usable file."""
    bytes: int | None
    """Its size."""
    sha256: str | None
    """Its hash."""
    repository: str | None
    revision: str | None
    """The commit it was taken at."""
    verified_by: VerifiedBy | None
    """What the download was checked against; None for a file of the package."""
    note: str | None = None


def open_store(settings: Settings) -> WeightStore:
    """Return the store of this user."""
    return WeightStore(settings.home)


def hub_of(settings: Settings, *, offline: bool = False) -> Hub:
    """Return the hub that the environment names. Raises UsageError for an address that is none."""
    return Hub(
        endpoint=settings.hub_endpoint,
        token=settings.hub_token,
        cache=settings.hub_cache,
        offline=offline or settings.offline,
    )


def read_catalogue() -> Catalogue:
    """Return the program's own list of weights."""
    return Catalogue(entries=read_manifest(), sets=read_sets())


def plan_pull(
    catalogue: Catalogue, names: Sequence[str], *, store: WeightStore, hub: Hub, on_event: Listener
) -> PullPlan:
    """Find out what is missing and what the hub has of it.

    The hub is asked only for what is missing. Raises UsageError (unknown name), WeightsError (the hub says no, or
    there is no network), OutputError (not enough space).
    """
    chosen: dict[str, WeightEntry] = {}
    by_name: set[str] = set()
    for name in names:
        entries = catalogue.choose(name)
        chosen |= {entry.name: entry for entry in entries}
        by_name |= {name} & catalogue.entries.keys()
    ready, missing = _divide(chosen.values(), store, on_event)
    if missing and not hub.offline and (withheld := hub.withheld):
        on_event(Warned(input=" ".join(names), message=withheld))
    left_out: list[tuple[WeightEntry, str]] = []
    sources: list[Source] = []
    commits: dict[str, str] = {}
    for entries in _by_file(missing):
        twin = _installed_twin(catalogue, entries[0], store)
        if twin is not None and not by_name & {entry.name for entry in entries}:
            left_out += [(entry, f"the hub's {entry.file} is {twin.name}") for entry in entries]
            continue
        remote = locate(hub, entries[0], revision=commits.get(entries[0].repository or ""))
        commits.setdefault(remote.repository, remote.revision)
        _refuse_twin(entries[0], remote, twin, store)
        sources.append(Source(remote=remote, entries=entries, by_name=frozenset(by_name & {e.name for e in entries})))
    plan = PullPlan(
        store=store,
        hub=hub,
        asked=tuple(names),
        ready=tuple(ready),
        left_out=tuple(left_out),
        sources=tuple(sources),
    )
    _check_space(store, [source.remote for source in sources])
    on_event(
        PullPlanned(
            input=" ".join(names),
            files=tuple(str(source.remote) for source in sources),
            licences=tuple(sorted({entry.licence for source in sources for entry in source.entries})),
            bytes_total=plan.transfer_bytes,
        )
    )
    return plan


def run_pull(plan: PullPlan, on_event: Listener, *, clock: Callable[[], float] = time.monotonic) -> list[Pulled]:
    """Do what the plan says and return what became of each entry.

    Raises WeightsError for a transfer that failed or a file that is not what it should be, OutputError where the disk
    refuses or another pull is at work. What has arrived is kept for the next time.
    """
    done = [_report(entry, plan.store, "packaged" if entry.packaged else "ready") for entry in plan.ready]
    done += [_left_out(entry, reason) for entry, reason in plan.left_out]
    if plan.sources:
        with OutputLock(plan.store.downloads):
            plan.store.tidy()
            for source in plan.sources:
                done += _pull(plan, source, on_event, clock)
    return done


def import_file(catalogue: Catalogue, name: str | None, source: Path, *, store: WeightStore) -> Pulled:
    """Take a file that the user has into the store, recognised by what is in it.

    Raises UsageError where it could be several entries and none is named, InputError where there is no such file,
    WeightsError where it is not what it should be.
    """
    if not source.is_file():
        raise InputError(f"{source}: no such file; check the path")
    entry = _entry_of(catalogue, name, source)
    sha256, size = sha256_of(source), source.stat().st_size
    if entry.sha256 is not None and (sha256, size) != (entry.sha256, entry.bytes):
        raise WeightsError(
            f"{source}: {size} bytes, sha256 starts {sha256[:12]}; expected {entry.bytes} bytes, "
            f"{entry.sha256[:12]} for {entry.name}. Run `ultraflash weights pull {entry.name}`."
        )
    with OutputLock(store.downloads):
        store.tidy()
        _require_free(store, size)
        receipt = _install(
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
    return _report(entry, store, "imported", receipt)


def _divide(
    entries: Iterable[WeightEntry], store: WeightStore, on_event: Listener
) -> tuple[list[WeightEntry], list[WeightEntry]]:
    """Tell what is there and sound from what has to be fetched; damage is said, not taken for soundness."""
    ready: list[WeightEntry] = []
    missing: list[WeightEntry] = []
    for entry in entries:
        try:
            verify(entry, store, quick=True)
            ready.append(entry)
        except WeightsError as error:
            if entry.packaged:
                raise
            if store.receipt(entry) is not None:
                on_event(Warned(input=entry.name, message=f"{_first_sentence(error)}; it is pulled again"))
            missing.append(entry)
    return ready, missing


def _by_file(entries: Iterable[WeightEntry]) -> list[tuple[WeightEntry, ...]]:
    """Put entries together that are one file at the hub."""
    files: dict[tuple[str | None, ...], list[WeightEntry]] = {}
    for entry in entries:
        files.setdefault((entry.repository, entry.file, entry.revision), []).append(entry)
    return [tuple(each) for each in files.values()]


def _installed_twin(catalogue: Catalogue, entry: WeightEntry, store: WeightStore) -> WeightEntry | None:
    """Return another entry that was made from the same file of the hub."""
    for other in catalogue.entries.values():
        same = (other.repository, other.file) == (entry.repository, entry.file)
        if same and other.name != entry.name and store.installed(other):
            return other
    return None


def _refuse_twin(entry: WeightEntry, remote: RemoteFile, twin: WeightEntry | None, store: WeightStore) -> None:
    """Refuse a file, before its transfer, of which another entry was made already."""
    receipt = store.receipt(twin) if twin is not None else None
    if twin is not None and receipt is not None and receipt.source_sha256 == remote.sha256:
        raise WeightsError(
            f"{entry.name}: {remote} holds weights of {twin.architecture}, expected {entry.architecture}. "
            f"They are installed as {twin.name}."
        )


def _pull(plan: PullPlan, source: Source, on_event: Listener, clock: Callable[[], float]) -> list[Pulled]:
    """Bring one file and make its entries of it."""
    remote, store = source.remote, plan.store
    path, sha256 = _cached(remote, on_event)
    part: Path | None = None
    if path is None:
        if plan.hub.offline:
            raise WeightsError(f"{remote}: the network is not to be used. Pull it without --offline.")
        path = part = store.download(source.entries[0], remote.identity)
        began_s, had = clock(), part.stat().st_size if part.exists() else 0

        def tell(have: int) -> None:
            seconds = clock() - began_s
            rate = (have - had) / seconds if seconds > 0 else 0.0
            event = Transfer(input=str(remote), bytes_done=have, bytes_total=remote.bytes, bytes_per_s=rate)
            on_event(event)

        sha256 = fetch(plan.hub, remote, part, tell)
    done: list[Pulled] = []
    refusals: list[tuple[WeightEntry, WeightsError]] = []
    for entry in source.entries:
        try:
            receipt = _install(
                entry,
                path,
                store,
                name=str(remote),
                repository=remote.repository,
                revision=remote.revision,
                source_name=remote.path,
                source_sha256=sha256,
                verified_by=remote.verified_by,
            )
            done.append(_report(entry, store, "pulled", receipt))
        except WeightsError as error:
            refusals.append((entry, error))
    for entry, error in refusals:
        if entry.name in source.by_name or not done:
            kept = f" `ultraflash weights rm {entry.name}` removes the download." if part is not None else ""
            raise WeightsError(f"{entry.name}: {error}{kept}") from error
        done.append(_left_out(entry, _first_sentence(error)))
    if part is not None:
        part.unlink()
    return done


def _cached(remote: RemoteFile, on_event: Listener) -> tuple[Path | None, str]:
    """Return the file in the folder of the hub's own tools and its hash, if it is there and right."""
    if remote.cached is None:
        return None, ""
    try:
        return remote.cached, check_download(remote, remote.cached)
    except WeightsError as error:
        on_event(Warned(input=str(remote), message=f"{_first_sentence(error)} in {remote.cached}; it is fetched anew"))
        return None, ""


def _install(
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
    """Make an entry's file from a checked one and put it into its place, with its receipt."""
    part = store.part(entry)
    try:
        with writing(part):
            if entry.architecture == "tokenizer":
                _check_tokenizer_file(path, name)
                shutil.copyfile(path, part)
            else:
                from ultraflash_cli.jobs.architectures import expected_shapes
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
        )
        store.add(entry, part, receipt)
    finally:
        part.unlink(missing_ok=True)
    return receipt


def _check_tokenizer_file(path: Path, name: str) -> None:
    """Refuse what cannot be a part of a tokenizer: broken JSON, or a model that is none."""
    content = path.read_bytes()
    if Path(name).suffix == ".json":
        try:
            json.loads(content)
        except ValueError as error:
            raise WeightsError(f"{name}: not readable as JSON ({error}).") from error
    elif not content.startswith(b"\n"):  # the first field of a sentencepiece model, a list of pieces
        raise WeightsError(f"{name}: not a sentencepiece model.")


def _entry_of(catalogue: Catalogue, name: str | None, source: Path) -> WeightEntry:
    """Return the entry a user's file is for: the one named, else the one that its content says."""
    if name is not None:
        entries = catalogue.choose(name)
        if len(entries) != 1 or entries[0].packaged:
            raise UsageError(f"--from takes one file for one name from the hub, not for {name!r}")
        return entries[0]
    from ultraflash_cli.weights.convert import read_checkpoint, recognise

    architecture = recognise(read_checkpoint(source))
    fitting = [e for e in catalogue.entries.values() if not e.packaged and e.architecture == architecture]
    named = [entry for entry in fitting if Path(entry.file).name == source.name]
    if len(fitting) == 1 or len(named) == 1:
        return (named if len(named) == 1 else fitting)[0]
    if not fitting:
        what = "no known network" if architecture is None else f"{architecture}, which nothing in the list is for"
        raise WeightsError(f"{source}: its tensors belong to {what}. `ultraflash weights list` names what there is.")
    raise UsageError(f"{source} could be {' or '.join(entry.name for entry in fitting)}; name the one it is")


def _check_space(store: WeightStore, remotes: Sequence[RemoteFile]) -> None:
    """Refuse a disk that cannot hold every result, and the largest download beside its own."""
    if remotes:
        downloads = [remote.bytes for remote in remotes if remote.cached is None]
        have = sum(part.stat().st_size for part in store.downloads.glob("*.part"))
        _require_free(store, sum(remote.bytes for remote in remotes) + max(0, max(downloads, default=0) - have))


def _require_free(store: WeightStore, needed: int) -> None:
    free = free_bytes(store.root)
    if free < needed:
        raise OutputError(
            f"disk full: {store.root} has {free / 1e9:.2f} GB free, about {needed / 1e9:.2f} GB are needed; free some "
            "space or name another folder in ULTRAFLASH_HOME"
        )


def _report(
    entry: WeightEntry,
    store: WeightStore,
    state: Literal["packaged", "ready", "pulled", "imported"],
    receipt: Receipt | None = None,
) -> Pulled:
    receipt = receipt or (None if entry.packaged else store.receipt(entry))
    return Pulled(
        name=entry.name,
        state=state,
        path=str(store.path(entry)),
        bytes=receipt.bytes if receipt else entry.bytes,
        sha256=receipt.sha256 if receipt else entry.sha256,
        repository=receipt.repository if receipt else None,
        revision=receipt.revision if receipt else None,
        verified_by=receipt.verified_by if receipt else None,
    )


def _left_out(entry: WeightEntry, reason: str) -> Pulled:
    return Pulled(
        name=entry.name,
        state="left out",
        path=None,
        bytes=None,
        sha256=None,
        repository=entry.repository,
        revision=None,
        verified_by=None,
        note=reason,
    )


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].removesuffix(".")
