"""`ultraflash clean`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.options import JsonOption, with_console

__all__ = ["clean"]


@with_console(hidden=True)
def clean(
    console: Console,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER", help="Folders to search; by default the current one, and the temporary one for pipes."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Remove what is listed.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Search subfolders too.")] = False,
    json: JsonOption = False,
) -> None:
    """List leftovers here and in your temporary folder; -y removes them.

    Leftovers are the work of interrupted runs; once removed, it cannot be resumed. The work of a run in progress is
    never touched. Folders of plans (`--work-dir`, or .NAME.units where there was none) are leftovers too, unless a
    worker is using them. With FOLDER, only that is searched.
    """
    from ultraflash_cli.jobs.cluster.leftovers import find_plans, remove_plan
    from ultraflash_cli.jobs.resume.leftovers import find_leftovers, remove, usual_places

    places = folders or usual_places()
    found = [(each, remove) for each in find_leftovers(places, recursive=recursive)]
    found += [(each, remove_plan) for each in find_plans(places, recursive=recursive)]
    for leftover, take_away in found:
        removed = yes and take_away(leftover)
        if leftover.refusal is not None:
            console.warning(f"skipped: {leftover.refusal}")
        elif yes and not removed and not leftover.in_use:
            console.warning(f"{leftover.folder} was not removed: it contains files that ultraflash did not create")
        if json:
            console.data(asdict(leftover) | {"folder": str(leftover.folder), "removed": removed})
            continue
        state = (
            "removed" if removed else "in use" if leftover.in_use else "not ours" if leftover.refusal else "leftover"
        )
        console.text(f"{state:9}  {leftover.size_bytes / 1e6:9.1f} MB  {leftover.frames:7} frames  {leftover.folder}")
    if not found:
        console.info("nothing to clean")
    elif not yes:
        resumable = any(leftover.frames for leftover, _ in found)
        console.info("-y removes them" + ("; rerunning the same command would resume them" if resumable else ""))
