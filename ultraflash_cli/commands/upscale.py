"""`ultraflash upscale`."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ultraflash_cli.commands.outcomes import show_outcomes
from ultraflash_cli.commands.previews import check_pages, show_still, with_pages
from ultraflash_cli.commands.sinks import is_stdout, opened_show, opened_sink, sink_name, takes_stream
from ultraflash_cli.commands.units import choose_crew, run_by_crew
from ultraflash_cli.console import Console
from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.planning.guarding import GUARD_LEVELS, read_guard
from ultraflash_cli.jobs.planning.options import UpscalingOptions
from ultraflash_cli.jobs.planning.spans import UNIT_FRAMES
from ultraflash_cli.options import (
    AddressOption,
    Destination,
    DryRunOption,
    ExecutorOption,
    GuardOption,
    JsonOption,
    KeepGoingOption,
    MatchColorsOption,
    NoTagOption,
    ServeOption,
    UnitFramesOption,
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
    from ultraflash_cli.video.pipe import Pipe

__all__ = ["upscale"]

_DASH = Path("-")


@with_console(hidden=True)
@takes(UpscalingOptions)
def upscale(
    console: Console,
    options: UpscalingOptions,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            parser=as_path,
            help="Video files, photos, folders, numbered images (DIR/%05d.png), or - for stdin.",
        ),
    ],
    destination: Annotated[
        Destination | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR|-",
            parser=as_destination,
            help="Output, by default NAME_1k next to the input. DIR/%05d.png (or .jpg) writes images; - streams to "
            "stdout: Matroska, or y4m with --codec y4m.",
        ),
    ] = None,
    guard: GuardOption = f"{GUARD_LEVELS:g}",
    match_colors: MatchColorsOption = True,
    cuts: Annotated[bool, typer.Option("--cuts/--no-cuts", help="Reset the model at detected scene cuts.")] = True,
    html: Annotated[
        bool, typer.Option("--html", help="Also write a page that compares the result with lanczos.")
    ] = False,
    fps: Annotated[
        str,
        typer.Option(
            "--fps",
            metavar="keep|N|N/D",
            help="Output frame rate; frames are repeated or dropped, never blended. For numbered images: their frame "
            "rate.",
        ),
    ] = "keep",
    audio: Annotated[
        Literal["copy", "aac", "flac", "opus"],
        typer.Option(
            "--audio", case_sensitive=False, help="Copy the audio; aac, flac, opus: convert what cannot be copied."
        ),
    ] = "copy",
    no_audio: Annotated[bool, typer.Option("--no-audio", help="Drop the audio.")] = False,
    subs: Annotated[bool, typer.Option("--subs/--no-subs", help="Keep or drop the subtitles.")] = True,
    no_tag: NoTagOption = False,
    serve: ServeOption = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = None,
    work_dir: WorkDirOption = None,
    unit_frames: UnitFramesOption = UNIT_FRAMES,
    keep_going: KeepGoingOption = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Include subfolders; -o DIR mirrors the tree.")
    ] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Upscale videos, keeping audio, subtitles and timing."""
    from ultraflash_cli.jobs.batch import Outcome, plan_batch, run_batch
    from ultraflash_cli.jobs.cluster.described import INDIVISIBLE
    from ultraflash_cli.jobs.events import Warned
    from ultraflash_cli.jobs.planning.clips import find_clips, is_several, missing_inputs, names_a_file
    from ultraflash_cli.jobs.planning.upscale import NAMELESS, UpscaleJob
    from ultraflash_cli.jobs.planning.window import is_still
    from ultraflash_cli.jobs.running.stop import stopping_on_signals

    output = None if destination is None else destination.path
    crew, options = choose_crew(
        executor,
        options,
        work_dir=work_dir,
        address=address,
        workers=workers,
        near=output or inputs[0],
        unit_frames=unit_frames,
        impossible=(("--html", html), ("--serve", serve is not None), ("--preview frame", is_still(options.preview))),
    )
    is_batch = is_several(inputs, images=options.images)
    from_stdin, to_stream = _DASH in inputs, takes_stream(output)
    if is_batch and (from_stdin or to_stream):
        raise UsageError(f"'{_DASH if from_stdin else output}' can be used with only one clip; remove the other inputs")
    # What stdin cannot be used for is refused before it is read.
    if from_stdin and output is None:
        raise UsageError(NAMELESS)
    if from_stdin and crew is not None:
        raise UsageError(INDIVISIBLE)
    is_folder = destination is not None and destination.is_folder
    into_folder = output is not None and not to_stream and (is_batch or is_folder)
    if is_batch and output is not None and os.path.isfile(output):
        raise UsageError(f"{output} is a file; several inputs need an output folder")
    if is_batch and output is not None and not is_folder and names_a_file(output):
        raise UsageError(f"{output} is a file name; several inputs need an output folder")
    console.data_on_err = is_stdout(output)
    if (is_batch or crew) and not keep_going and (missing := missing_inputs(inputs, asks_output=output is None)):
        for each in missing if json and is_batch else ():
            console.data(Outcome(source=each.source, label=each.source, failure=each).as_json())
        raise missing[0]

    def job_of(source: Path, below: Path) -> UpscaleJob:
        return UpscaleJob(
            source=source,
            pipe=pipe,
            output=None if into_folder or to_stream else output,
            folder=output / below if output is not None and into_folder else None,
            stdout=sink,
            stdout_name=sink_name(output),
            store=console.settings.home,
            guard=read_guard(guard),
            color="match" if match_colors else "off",
            cuts="auto" if cuts else "off",
            audio="none" if no_audio else audio,
            subs="copy" if subs else "none",
            fps=None if fps.lower() == "keep" else as_rate(fps),
            tag=not no_tag,
            show=show,
            **vars(options),
        )

    clips = find_clips(
        inputs,
        images=options.images,
        recursive=recursive,
        outputs=output if into_folder else None,
        warn=lambda path, message: console.on_event(Warned(input=str(path), message=message)),
    )
    readable = [clip for clip in clips if clip.failure is None]
    unreadable = (
        Outcome(source=str(clip.source), label=str(clip.source), failure=clip.failure)
        for clip in clips
        if clip.failure is not None
    )
    sources = [clip.source for clip in clips] if is_batch else []
    on_first = None if dry_run else console.acknowledge_stop
    with (
        opened_sink(output, console, dry_run=dry_run) as sink,
        opened_show(serve, console, dry_run=dry_run) as show,
        # A signal while a photo is read from stdin ends the command at once.
        _stdin(options.temp) if from_stdin else nullcontext() as pipe,
        stopping_on_signals(on_first=on_first, on_second=console.leave_at_once) as stop,
    ):
        jobs = (job_of(clip.source, clip.below) for clip in readable)
        if crew is not None and not dry_run:
            run_by_crew(
                console,
                crew,
                jobs,
                unreadable=unreadable,
                sources=sources,
                stop=stop,
                count=len(clips),
                is_batch=is_batch,
                keep_going=keep_going,
                json=json,
            )
            return
        shown: Sequence[UpscaleJob] = list(jobs) if html or is_still(options.preview) else ()
        if is_still(options.preview):
            show_still(console, shown, html=html, dry_run=dry_run, json=json)
            return
        if html:
            check_pages(shown)
        if dry_run:
            outcomes = plan_batch(shown or jobs, stop=stop, sources=sources)
        else:
            on_event = show.on_event if show else console.on_event
            outcomes = run_batch(shown or jobs, on_event, stop=stop, sources=sources)
            outcomes = with_pages(outcomes, shown, console) if html else outcomes
        outcomes = chain(outcomes, unreadable)
        show_outcomes(console, outcomes, count=len(clips), is_batch=is_batch, keep_going=keep_going, json=json)


@contextmanager
def _stdin(temp: Path | None) -> "Generator[Pipe]":
    from ultraflash_cli.jobs.resume.leftovers import folder_of_copy
    from ultraflash_cli.video.pipe import Pipe
    from ultraflash_cli.video.piped_photo import kept_photo

    stream = standard_input("a clip")
    if stream.isatty():
        raise UsageError("'-' reads a clip from a pipe, but stdin is the terminal; pipe a clip into it or name a file")
    pipe = Pipe(stream)
    with kept_photo(pipe, partial(folder_of_copy, temp)):
        yield pipe
