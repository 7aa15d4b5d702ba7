"""`ultraflash compare`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.options import JsonOption, OverwriteOption, ThreadsOption, as_path, with_console

__all__ = ["compare"]


@with_console(hidden=True)
def compare(
    console: Console,
    reference: Annotated[
        Path, typer.Argument(metavar="REF", parser=as_path, help="The original, or the source of OUT.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", parser=as_path, help="The result.")],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", parser=as_path, help="Also write a self-contained page.")
    ] = None,
    overwrite: OverwriteOption = False,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a result against its original or its source.

    A REF of the same size as OUT is its original. A smaller REF is its source: OUT is then downscaled, and the scores
    show how far it departs from the source. Scores of different VMAF models are not comparable.
    """
    from ultraflash_cli.jobs.compare import CompareJob, about_timestamps, run

    job = CompareJob(reference=reference, output=output, html=html, overwrite=overwrite, threads=threads)
    report = run(job, console.info)
    if json:
        console.data(asdict(report))
        return
    from ultraflash_cli.metrics.comparison import COMPARED

    length = "one frame" if report.frames == 1 else f"{report.frames} frames"
    console.text(f"{report.output} against its {report.mode}, {length} at {report.width}x{report.height}")
    for name, mean in report.means.items():
        metric, values = COMPARED[name], report.series[name]
        measured = sum(value is not None for value in values)
        some = f"  ({measured} of {len(values)} frames)" if measured < len(values) else ""
        console.text(f"  {metric.title:30}  {mean:10.{metric.digits}f} {metric.unit}{some}".rstrip())
    worst = report.worst[0]
    place = f"frame {worst['frame']}, {worst['left_px']} across, {worst['top_px']} down"
    console.text(f"  differs most in {place}: {worst['levels']:.1f} levels")
    for name, reason in report.left_out.items():
        console.info(f"{COMPARED[name].title} is left out: {reason}")
    if timestamps := about_timestamps(report.timestamps_differ_s):
        console.text(f"  timestamps {timestamps}")
    if report.html:
        console.text(f"  page: {report.html}")
