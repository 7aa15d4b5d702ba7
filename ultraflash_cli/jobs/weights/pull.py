"""Pull weights: find out what is missing, then download, check and convert it, and keep
it with a receipt."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultraflash_cli.errors import WeightsError
from ultraflash_cli.jobs.events import Listener, PullPlanned, Transfer, Warned
from ultraflash_cli.jobs.resume.work_folder import OutputLock
from ultraflash_cli.jobs.weights.catalogue import Catalogue
from ultraflash_cli.jobs.weights.install import Pulled, install, left_out, report, require_free
from ultraflash_cli.settings import Settings
from ultraflash_cli.weights.fetch import Hub, RemoteFile, check_download, fetch
from ultraflash_cli.weights.licences import licence_of
from ultraflash_cli.weights.manifest import WeightEntry
from ultraflash_cli.weights.search import Found, HubSearch
from ultraflash_cli.weights.store import WeightStore
from ultraflash_cli.weights.verify import verify

__all__ = ["PullPlan", "Source", "hub_of", "open_store", "plan_pull", "run_pull"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file on the hub, and the entries to make from it."""

    remote: RemoteFile
    entries: tuple[WeightEntry, ...]
    """The entries, more than one if only the file's content distinguishes them; each
    with the location where it was found."""
    by_name: frozenset[str]
    """Entries that were requested by name and must therefore be in the file."""
    how: tuple[str, ...] = ()
    """Explanations of how files were found, if they are not the first ones in the
    list."""


@dataclass(frozen=True, kw_only=True)
class PullPlan:
    """The plan of a pull, made before anything is downloaded."""

    store: WeightStore
    hub: Hub
    asked: tuple[str, ...]
    ready: tuple[WeightEntry, ...]
    """Entries that are installed already or part of the package."""
    left_out: tuple[tuple[WeightEntry, str], ...]
    """Members of a set that are not available, with the reason."""
    sources: tuple[Source, ...]

    @property
    def transfer_bytes(self) -> int:
        """Bytes to download, including parts that are here already."""
        return sum(source.remote.bytes for source in self.sources if source.remote.cached is None)


def open_store(settings: Settings) -> WeightStore:
    """Return the store of this user."""
    return WeightStore(settings.home)


def hub_of(settings: Settings, *, offline: bool = False) -> Hub:
    """Return the hub configured in the environment. Raises UsageError for an invalid
    address."""
    return Hub(
        endpoint=settings.hub_endpoint,
        token=settings.hub_token,
        cache=settings.hub_cache,
        offline=offline or settings.offline,
    )


def plan_pull(
    catalogue: Catalogue,
    names: Sequence[str],
    *,
    store: WeightStore,
    hub: Hub,
    on_event: Listener,
    commercial: bool = False,
) -> PullPlan:
    """Determine which entries are missing, and find them on the hub; only missing
    entries are looked up. ``commercial`` restricts the pull to weights that may be used
    commercially. Raises UsageError (unknown name), WeightsError (the hub denies access,
    or there is no network), OutputError (not enough space).
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
    if commercial:
        _refuse_installed(ready, store)
    search = HubSearch(hub, catalogue.entries.values(), commercial=commercial)
    without: list[tuple[WeightEntry, str]] = []
    found: list[Found] = []
    for entry in missing:
        optional = entry.optional and entry.name not in by_name
        try:
            found.append(search.find(entry))
        except WeightsError as error:
            if not optional or type(error) is not WeightsError:
                raise
            without.append((entry, _finding(error)))

    sources = _by_file(found, by_name)
    plan = PullPlan(
        store=store,
        hub=hub,
        asked=tuple(names),
        ready=tuple(ready),
        left_out=tuple(without),
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
    """Carry out the plan and return the result for each entry. Raises WeightsError for
    a failed transfer or a wrong file, OutputError for disk errors or if another pull is
    running. Partial downloads are kept for the next time.
    """
    done = [report(entry, plan.store, "packaged" if entry.packaged else "ready") for entry in plan.ready]
    done += [left_out(entry, reason) for entry, reason in plan.left_out]
    if plan.sources:
        with OutputLock(plan.store.downloads):
            plan.store.tidy()
            for source in plan.sources:
                done += _pull(plan, source, on_event, clock)
    return done


def _divide(
    entries: Iterable[WeightEntry], store: WeightStore, on_event: Listener
) -> tuple[list[WeightEntry], list[WeightEntry]]:
    """Separate the intact installed entries from those to download; damaged ones are
    reported and downloaded again."""
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
                on_event(Warned(input=entry.name, message=f"{_finding(error)}; pulling it again"))
            missing.append(entry)
    return ready, missing


def _by_file(found: Iterable[Found], by_name: set[str]) -> list[Source]:
    """Group the entries that are one file on the hub."""
    files: dict[tuple[str, str, str], list[Found]] = {}
    for each in found:
        remote = each.remote
        files.setdefault((remote.repository, remote.path, remote.revision), []).append(each)
    return [
        Source(
            remote=group[0].remote,
            entries=tuple(each.place for each in group),
            by_name=frozenset(by_name & {each.place.name for each in group}),
            how=tuple(each.how for each in group if each.how),
        )
        for group in files.values()
    ]


def _refuse_installed(ready: Iterable[WeightEntry], store: WeightStore) -> None:
    """Reject installed weights that may not be used commercially. Raises
    WeightsError."""
    for entry in ready:
        receipt = None if entry.packaged else store.receipt(entry)
        stated = (receipt.licence if receipt else "") or entry.licence
        if not licence_of(stated).commercial:
            raise WeightsError(
                f"{entry.name}: installed under {stated}, which does not allow commercial use or is not confirmed; "
                f"`ultraflash weights rm {entry.name}` removes it"
            )


def _pull(plan: PullPlan, source: Source, on_event: Listener, clock: Callable[[], float]) -> list[Pulled]:
    """Download one file and install its entries."""
    remote, store = source.remote, plan.store
    path, sha256 = _cached(remote, on_event)
    part: Path | None = None
    if path is None:
        if plan.hub.offline:
            raise WeightsError(f"{remote}: --offline is set; run again without it")
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
            receipt = install(
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
            done.append(report(entry, store, "pulled", receipt))
        except WeightsError as error:
            refusals.append((entry, error))
    for entry, error in refusals:
        if entry.name in source.by_name or not done:
            kept = f" `ultraflash weights rm {entry.name}` removes the download." if part is not None else ""
            raise WeightsError(f"{entry.name}: {error}{kept}") from error
        done.append(left_out(entry, _finding(error)))
    if part is not None:
        part.unlink()
    return done


def _cached(remote: RemoteFile, on_event: Listener) -> tuple[Path | None, str]:
    """Return the file in the hub library's cache and its hash, or (None, "") if it is missing or corrupt."""
    if remote.cached is None:
        return None, ""
    try:
        return remote.cached, check_download(remote, remote.cached)
    except WeightsError as error:
        on_event(Warned(input=str(remote), message=f"{_finding(error)} in {remote.cached}; downloading it again"))
        return None, ""


def _check_space(store: WeightStore, remotes: Sequence[RemoteFile]) -> None:
    """Raise an error if the disk lacks room for all results plus the largest
    download."""
    if remotes:
        downloads = [remote.bytes for remote in remotes if remote.cached is None]
        have = sum(part.stat().st_size for part in store.downloads.glob("*.part"))
        require_free(store, sum(remote.bytes for remote in remotes) + max(0, max(downloads, default=0) - have))


def _finding(error: Exception) -> str:
    return str(error).partition("; ")[0]
