"""`ultraflash export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.help_page import HeadedCommand, HeadedGroup
from ultraflash_cli.options import JsonOption, as_path, with_console

__all__ = ["app"]

app = typer.Typer(cls=HeadedGroup, no_args_is_help=True, help="Write models in the formats of other programs.")


@app.callback()
def export() -> None:
    """Write models in the formats of other programs."""


@app.command("onnx", cls=HeadedCommand)
@with_console(hidden=True)
def onnx(
    console: Console,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", parser=as_path, help="The model to write.")
    ] = Path("lite.onnx"),
    scale: Annotated[int, typer.Option("--scale", metavar="2|3", help="Scale factor.")] = 2,
    detail: Annotated[
        float, typer.Option("--detail", metavar="0..1", help="How much detail it adds: 0 is faithful, 1 is crisp.")
    ] = 1.0,
    overwrite: Annotated[bool, typer.Option("-y", "--overwrite", help="Replace an existing file.")] = False,
    json: JsonOption = False,
) -> None:
    """Write lite as an ONNX model for frames of any even size.

    One frame and the state go in, the larger frame and the next state come out.
    """
    from ultraflash_cli.jobs.export import export_onnx

    made = export_onnx(output, scale=scale, detail=detail, overwrite=overwrite)
    if json:
        console.data(asdict(made))
    else:
        console.info(f"{made.output}: {made.model} x{made.scale}, {made.bytes / 1e6:.1f} MB")
