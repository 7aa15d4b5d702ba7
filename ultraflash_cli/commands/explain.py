"""`ultraflash explain`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.options import JsonOption, as_path, with_console

__all__ = ["explain"]


@with_console(hidden=True)
def explain(
    console: Console,
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", parser=as_path, help="A file made by ultraflash, or DIR/%05d.png."),
    ],
    json: JsonOption = False,
) -> None:
    """Show how a file was made, and the command to repeat it.

    The file's own tag says so. INPUT in the command stands for the input, whose name is not stored. The same input,
    weights, version and kind of device give the same pixels.
    """
    from ultraflash_cli.jobs.provenance.explain import explain as read
    from ultraflash_cli.jobs.provenance.words import corrected

    found = read(output)
    if json:
        console.data(asdict(found))
        return
    made = found.made
    console.text(f"{found.file}: {made.command}d by ultraflash {made.version}")
    lines = {"model": f"{made.model} on {made.device}, {made.precision}", "seed": str(made.seed)}
    if made.prompt is not None:
        lines["prompt"] = made.prompt
    for name, value in lines.items():
        console.text(f"  {name:8}  {value}")
    for name, sha256 in made.weights.items():
        console.text(f"  weights   {name}  sha256 {sha256}")
    if made.guarded_share is not None:
        console.text(f"  guard     {corrected(made.guarded_share)}")
    for difference in found.differences:
        console.text(f"  note      {difference}: pixels may differ")
    console.text(f"  repeat    {found.command}")
