"""`ultraflash weights`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.errors import Interrupted, UsageError, WeightsError
from ultraflash_cli.help_page import HeadedCommand, HeadedGroup
from ultraflash_cli.options import JsonOption, as_path, with_console
from ultraflash_cli.streams import TextOutput

if TYPE_CHECKING:
    from ultraflash_cli.jobs.weights.install import Pulled
    from ultraflash_cli.jobs.weights.pull import PullPlan
    from ultraflash_cli.weights.manifest import WeightEntry
    from ultraflash_cli.weights.store import WeightStore

__all__ = ["app"]

app = typer.Typer(cls=HeadedGroup, no_args_is_help=True, help="List, download, verify and remove model weights.")

NamesArgument = Annotated[list[str], typer.Argument(metavar="NAME", help="Weights or a set, as in `weights list`.")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Do not use the network (like HF_HUB_OFFLINE).")]


@app.command("list", cls=HeadedCommand)
@with_console(hidden=True)
def list_weights(console: Console, json: JsonOption = False) -> None:
    """List weights and sets, with sizes and licences."""
    from ultraflash_cli.jobs.weights.catalogue import read_catalogue
    from ultraflash_cli.jobs.weights.pull import open_store
    from ultraflash_cli.weights.licences import licence_of

    catalogue, store = read_catalogue(), open_store(console.settings)
    for entry in catalogue.entries.values():
        installed = store.installed(entry)
        if json:
            sets = [each.name for each in catalogue.sets.values() if entry.name in each.members]
            state = {"path": str(store.path(entry)), "installed": installed, "locked": entry.locked, "sets": sets}
            console.data(asdict(entry) | state | {"allows": asdict(licence_of(_licence(entry, store)))})
            continue
        size = store.path(entry).stat().st_size if installed else entry.bytes
        state = "built in" if entry.packaged else "installed" if installed else "not installed"
        unlocked = "" if entry.locked else ", unlocked"
        licence = _licence(entry, store)
        console.text(f"{entry.name:38}  {_megabytes(size):>12}  {licence:16}  {state}{unlocked}")
    if not json:
        for each in catalogue.sets.values():
            console.text(f"{each.name + ' (set)':38}  {each.about}")
        if any(entry.bytes is None for entry in catalogue.entries.values()):
            console.info("size on pull: only the hub knows it; `weights pull` shows it before it asks")


@app.command("pull", cls=HeadedCommand)
@with_console(hidden=True)
def pull_weights(
    console: Console,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Weights or a set, as in `weights list`."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", parser=as_path, help="Import a local file; its tensors identify it."),
    ] = None,
    offline: OfflineOption = False,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Only weights whose licence allows commercial use.")
    ] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask before downloading.")] = False,
    json: JsonOption = False,
) -> None:
    """Download weights, check them and convert them once.

    Size and licence are shown first. On a terminal it asks before downloading. Interrupted downloads resume.
    """
    from ultraflash_cli.jobs.weights.catalogue import read_catalogue
    from ultraflash_cli.jobs.weights.install import import_file
    from ultraflash_cli.jobs.weights.pull import hub_of, open_store, plan_pull, run_pull

    catalogue, store = read_catalogue(), open_store(console.settings)
    if source is not None:
        if names and len(names) > 1:
            raise UsageError("--from imports one file; give at most one NAME")
        _show(console, import_file(catalogue, names[0] if names else None, source, store=store), json)
        return
    if not names:
        raise UsageError(f"give a NAME such as {' or '.join(catalogue.sets)}; `ultraflash weights list` shows all")
    hub = hub_of(console.settings, offline=offline)
    plan = plan_pull(catalogue, names, store=store, hub=hub, on_event=console.on_event, commercial=commercial)
    if plan.sources:
        _offer(console, plan)
        if (
            plan.transfer_bytes
            and not yes
            and TextOutput(sys.stdin).isatty()
            and not typer.confirm("Download them?", err=True)
        ):
            raise Interrupted("nothing was downloaded")
    for pulled in run_pull(plan, console.on_event):
        _show(console, pulled, json)


@app.command("verify", cls=HeadedCommand)
@with_console(hidden=True)
def verify_weights(
    console: Console,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which weights; by default all installed ones.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Check weights against their hashes, and for NaN or infinite values."""
    from ultraflash_cli.jobs.weights.catalogue import read_catalogue
    from ultraflash_cli.jobs.weights.pull import open_store

    catalogue, store = read_catalogue(), open_store(console.settings)
    chosen = {entry.name: entry for name in names or [] for entry in catalogue.choose(name)}

    # Imported late, since this imports torch.
    from ultraflash_cli.weights.load import read_tensors
    from ultraflash_cli.weights.verify import verify

    if not names:
        chosen = {
            name: entry
            for name, entry in catalogue.entries.items()
            if entry.packaged or store.receipt(entry) is not None
        }
    failure: WeightsError | None = None
    for name, entry in chosen.items():
        problem = None
        try:
            path = verify(entry, store)
            if path.suffix == ".safetensors":
                read_tensors(path)
        except WeightsError as error:
            problem = str(error)
            failure = error
        if json:
            console.data({"name": name, "ok": problem is None, "problem": problem})
        else:
            console.text(f"{'ok' if problem is None else 'fail':4}  {problem or name}")
    return failure.exit_code if failure is not None else 0


@app.command("licences", cls=HeadedCommand)
@with_console(hidden=True)
def show_licences(
    console: Console,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Which weights; all by default.")] = None,
    json: JsonOption = False,
) -> None:
    """Show what the licence of each weight file allows."""
    from ultraflash_cli.jobs.weights.catalogue import read_catalogue
    from ultraflash_cli.weights.licences import licence_of

    catalogue = read_catalogue()
    chosen = [entry for name in names for entry in catalogue.choose(name)] if names else catalogue.entries.values()
    places = [place for entry in chosen for place in entry.places]
    for name, source, stated in dict.fromkeys((p.name, p.repository or "built in", p.licence) for p in places):
        licence = licence_of(stated)
        if json:
            allows = {key: value for key, value in asdict(licence).items() if key != "name"}
            console.data({"name": name, "source": source, "licence": licence.name} | allows)
            continue
        use = {True: "commercial use allowed", False: "non-commercial only", None: "not confirmed"}[licence.commercial]
        console.text(f"{name:38}  {source:36}  {licence.name:16}  {use}: {licence.conditions}")


@app.command("path", cls=HeadedCommand)
@with_console(hidden=True)
def weights_path(console: Console, names: NamesArgument, json: JsonOption = False) -> None:
    """Print the path of installed weights."""
    from ultraflash_cli.jobs.weights.catalogue import read_catalogue
    from ultraflash_cli.jobs.weights.pull import open_store
    from ultraflash_cli.weights.verify import verify

    catalogue, store = read_catalogue(), open_store(console.settings)
    for entry in [entry for name in names for entry in catalogue.choose(name)]:
        path = verify(entry, store, quick=True)
        if json:
            console.data({"name": entry.name, "path": str(path)})
        else:
            console.text(str(path))


@app.command("rm", cls=HeadedCommand)
@with_console(hidden=True)
def remove_weights(console: Console, names: NamesArgument, json: JsonOption = False) -> None:
    """Remove downloaded weights, including partial downloads."""
    from ultraflash_cli.jobs.weights.catalogue import read_catalogue
    from ultraflash_cli.jobs.weights.pull import open_store

    catalogue, store = read_catalogue(), open_store(console.settings)
    entries = {entry.name: entry for name in names for entry in catalogue.choose(name)}
    built_in = [name for name, entry in entries.items() if entry.packaged]
    if built_in:
        raise UsageError(f"built-in weights cannot be removed: {', '.join(built_in)}")
    for entry in entries.values():
        freed = store.remove(entry)
        if json:
            console.data({"name": entry.name, "freed_bytes": freed})
        else:
            console.text(f"{entry.name:38}  {_megabytes(freed) + ' freed' if freed else 'not installed'}")


@app.command("lock", cls=HeadedCommand)
@with_console(hidden=True)
def lock_weights(
    console: Console,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which weights; by default all on the hub.")
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", parser=as_path, help="The list to write; never the one in use."),
    ],
    update: Annotated[
        bool, typer.Option("--update", help="Also update existing locks to the hub's current commit.")
    ] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Replace the file if it exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Write the list of weights with commits and hashes from the hub.

    For maintainers. Locked entries are compared with the hub and kept.
    """
    from ultraflash_cli.jobs.weights.catalogue import read_catalogue
    from ultraflash_cli.jobs.weights.pull import hub_of
    from ultraflash_cli.jobs.weights.relock import check_lock_target
    from ultraflash_cli.jobs.weights.relock import lock_weights as lock

    check_lock_target(out, overwrite=yes)
    hub = hub_of(console.settings)
    for entry in lock(read_catalogue(), names or [], out, hub=hub, on_event=console.on_event, update=update):
        if json:
            console.data(asdict(entry))
        else:
            console.text(f"{entry.name:38}  {entry.revision}  {entry.sha256}")


def _licence(entry: "WeightEntry", store: "WeightStore") -> str:
    """Return the licence of the installed file, or else of the first location in the
    list."""
    receipt = None if entry.packaged else store.receipt(entry)
    return (receipt.licence if receipt else "") or entry.licence


def _offer(console: Console, plan: "PullPlan") -> None:
    """Show the planned downloads with their licences and checks."""
    from ultraflash_cli.weights.licences import licence_of

    against = {
        "lock": "checked against the list",
        "hub": "unlocked: the hub's current commit {commit}, checked against the hub's sha256",
        "git": "unlocked: the hub's current commit {commit}, checked against its git blob id (the hub has no sha256)",
    }
    for source in plan.sources:
        remote, entry = source.remote, source.entries[0]
        how = against[remote.verified_by].format(commit=remote.revision[:12])
        here = f", found in {plan.hub.cache}" if remote.cached is not None else ""
        use = {True: "", False: ", non-commercial only", None: ", use not confirmed"}
        licence = f"licence {entry.licence}{use[licence_of(entry.licence).commercial]}"
        console.info(f"{remote}  {_megabytes(remote.bytes)}, {licence} ({how}{here})")
        for line in source.how:
            console.info(line)
    for note in sorted({entry.note for source in plan.sources for entry in source.entries if entry.note}):
        console.info(f"note: {note}")
    console.info(f"{_megabytes(plan.transfer_bytes)} to download into {plan.store.root}")


def _show(console: Console, pulled: "Pulled", json: bool) -> None:
    if json:
        console.data(asdict(pulled))
    elif pulled.path is None:
        console.text(f"{pulled.state:9}  {pulled.name}  {pulled.note}")
    else:
        by = {"keys": ", checked by its tensors only", None: ""}.get(pulled.verified_by, "")
        console.text(f"{pulled.state:9}  {pulled.name}  {pulled.path}{by}")


def _megabytes(size: int | None) -> str:
    if size is None:
        return "size on pull"
    small = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else small
