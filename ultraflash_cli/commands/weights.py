"""`ultraflash weights`."""

from dataclasses import asdict
from typing import Annotated

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.errors import UsageError, WeightsError
from ultraflash_cli.options import JsonOption, with_console

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The models' weights: what there is, and whether it is what it should be.")


@app.command("list")
@with_console(hidden=True)
def list_weights(console: Console, json: JsonOption = False) -> None:
    """List the weights with their sizes and licences."""
    from ultraflash_cli.weights.manifest import read_manifest

    for entry in read_manifest().values():
        if json:
            console.data(asdict(entry) | {"path": str(entry.path), "installed": entry.path.exists()})
            continue
        state = "" if entry.path.exists() else "  missing"
        console.text(f"{entry.name:24}  {entry.bytes / 1e6:8.1f} MB  {entry.licence}{state}")


@app.command("verify")
@with_console(hidden=True)
def verify_weights(
    console: Console,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Which weights; all, unless said.")] = None,
    json: JsonOption = False,
) -> int:
    """Compare the weight files with their known hashes and look for values that are no numbers."""
    from ultraflash_cli.weights.load import read_tensors
    from ultraflash_cli.weights.manifest import read_manifest
    from ultraflash_cli.weights.verify import verify

    manifest = read_manifest()
    for name in names or []:
        if name not in manifest:
            raise UsageError(f"no weights are called {name!r}; `ultraflash weights list` names them")
    failure: WeightsError | None = None
    for name in names or list(manifest):
        problem = None
        try:
            read_tensors(verify(manifest[name]))
        except WeightsError as error:
            problem = str(error)
            failure = error
        if json:
            console.data({"name": name, "ok": problem is None, "problem": problem})
        else:
            console.text(f"{'ok' if problem is None else 'fail':4}  {problem or name}")
    return failure.exit_code if failure is not None else 0
