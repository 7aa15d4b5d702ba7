"""`ultraflash generate`."""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from ultraflash_cli.commands.outcomes import MOST_PLANNED, show_outcomes
from ultraflash_cli.commands.sinks import is_stdout, opened_show, opened_sink, sink_name, takes_stream
from ultraflash_cli.commands.units import choose_crew, run_by_crew
from ultraflash_cli.console import Console
from ultraflash_cli.errors import InputError, UsageError
from ultraflash_cli.jobs.planning.options import GenerationOptions
from ultraflash_cli.options import (
    AddressOption,
    Destination,
    DryRunOption,
    ExecutorOption,
    JsonOption,
    KeepGoingOption,
    NoTagOption,
    ServeOption,
    WorkDirOption,
    WorkersOption,
    as_destination,
    as_path,
    as_rate,
    takes,
    with_console,
)
from ultraflash_cli.streams import standard_input

if TYPE_CHECKING:
    from ultraflash_cli.jobs.serving.show import Show

__all__ = ["generate"]


@with_console(hidden=True)
@takes(GenerationOptions)
def generate(
    console: Console,
    options: GenerationOptions,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What the clip shows.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE|-",
            parser=as_path,
            help="File with one prompt per line, or - for stdin; # starts a comment.",
        ),
    ] = None,
    destination: Annotated[
        Destination | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR|-",
            parser=as_destination,
            help="Output, by default named after prompt, size and seed, which its tags record with the model. "
            "DIR/%05d.png (or .jpg) writes images; - streams to stdout: Matroska, or y4m with --codec y4m.",
        ),
    ] = None,
    res: Annotated[
        Literal["480p", "1k", "2k"],
        typer.Option("--res", case_sensitive=False, help="Size: 832x480, 1664x960 or 2496x1440."),
    ] = "1k",
    fps: Annotated[
        str | None,
        typer.Option(
            "--fps",
            metavar="N|N/D",
            help="Output frame rate (default: 16); frames are repeated or dropped, never blended.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", metavar="N", help="Clips per prompt, with seeds counting up from --seed.")
    ] = 1,
    no_tag: NoTagOption = False,
    serve: ServeOption = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = None,
    work_dir: WorkDirOption = None,
    keep_going: KeepGoingOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Generate videos from text prompts.

    The built-in model lite makes simple landscapes: a sky at some time of day over sea, hills, mountains, fields or a
    city. For real clips, `ultraflash weights pull ultraflash` installs the published model, which needs a GPU and
    `pip install '.[generate]'` in the source folder.
    """
    from ultraflash_cli.jobs.batch import plan_batch, run_batch
    from ultraflash_cli.jobs.planning.clips import VIDEO_SUFFIXES
    from ultraflash_cli.jobs.planning.generate import GenerateJob, name_outputs
    from ultraflash_cli.jobs.running.stop import stopping_on_signals

    output = None if destination is None else destination.path
    if count < 1:
        raise UsageError(f"--count must be at least 1, got {count}")
    texts = _prompts(prompt, prompts)
    crew, options = choose_crew(
        executor,
        options,
        work_dir=work_dir,
        address=address,
        workers=workers,
        near=output or Path("generated"),
        impossible=(("--serve", serve is not None),),
        pairs=len(texts) * count == 1 or workers == 1,
    )
    is_batch = prompts is not None or count > 1
    several = len(texts) * count > 1
    to_stream = takes_stream(output)
    if to_stream and several:
        raise UsageError(f"only one clip can be written to '{output}'; give a folder for several")
    is_folder = destination is not None and destination.is_folder
    into_folder = output is not None and not to_stream and (several or is_folder)
    console.data_on_err = is_stdout(output)
    if output is not None and several and not is_folder:
        is_file = os.path.exists(output) or output.suffix.lower() in VIDEO_SUFFIXES
        if is_file:
            raise UsageError(f"{output} is a file; several clips need a folder")

    def job_of(text: str, number: int, sink: BinaryIO | None = None, show: "Show | None" = None) -> GenerateJob:
        return GenerateJob(
            prompt=text,
            output=None if into_folder or to_stream else output,
            folder=output if into_folder else None,
            stdout=sink,
            stdout_name=sink_name(output),
            res=res,
            fps=as_rate(fps) if fps is not None else None,
            store=console.settings.home,
            tag=not no_tag,
            show=show,
            **vars(replace(options, seed=options.seed + number)),
        )

    for text in texts:
        job_of(text, 0)  # refuse impossible jobs before any work
    on_first = None if dry_run else console.acknowledge_stop
    with (
        opened_sink(output, console, dry_run=dry_run) as sink,
        opened_show(serve, console, dry_run=dry_run) as show,
        stopping_on_signals(on_first=on_first, on_second=console.leave_at_once) as stop,
    ):
        jobs = name_outputs(job_of(text, number, sink, show) for text in texts for number in range(count))
        if crew is not None and not dry_run:
            clips = len(texts) * count
            run_by_crew(
                console,
                crew,
                jobs,
                stop=stop,
                count=clips,
                is_batch=is_batch,
                keep_going=keep_going,
                json=json,
            )
            return
        if dry_run:
            outcomes = plan_batch(jobs if json else islice(jobs, MOST_PLANNED), stop=stop)
        else:
            outcomes = run_batch(jobs, show.on_event if show else console.on_event, stop=stop)
        clips = len(texts) * count
        show_outcomes(console, outcomes, count=clips, is_batch=is_batch, keep_going=keep_going, json=json)


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    """Return the prompts from the argument, the file or stdin. Raises UsageError, InputError."""
    from ultraflash_cli.jobs.planning.generate import read_prompts

    if (prompt is None) == (file is None):
        raise UsageError("give either a PROMPT or --prompts FILE" + (", not both" if prompt is not None else ""))
    if prompt is not None:
        return [prompt]
    assert file is not None, "one of the two is there"
    try:
        text = (
            standard_input("prompts").read().decode("utf-8-sig")
            if str(file) == "-"
            else file.read_text(encoding="utf-8-sig")
        )
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text; expected one prompt per line") from error
    return read_prompts(text.splitlines())
