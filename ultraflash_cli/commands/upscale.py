"""`ultraflash upscale`."""

import os
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ultraflash_cli.commands.outcomes import show_outcomes
from ultraflash_cli.commands.sinks import is_stdout, opened_show, opened_sink, sink_name, takes_stream
from ultraflash_cli.console import Console
from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.planning.guarding import GUARD_LEVELS, read_guard
from ultraflash_cli.options import (
    CodecOption,
    ColorOption,
    CrfOption,
    CudaGraphsOption,
    DecoderOption,
    DetailOption,
    DeviceOption,
    DryRunOption,
    EncOptOption,
    GuardOption,
    JsonOption,
    KeepGoingOption,
    MaxMemoryOption,
    ModelOption,
    NoTagOption,
    OverwriteOption,
    PixFmtOption,
    PrecisionOption,
    ResOption,
    ResumeOption,
    SeedOption,
    ServeOption,
    SkipExistingOption,
    StrengthOption,
    TempDirOption,
    ThreadsOption,
    as_pairs,
    as_path,
    as_rate,
    with_console,
)
from ultraflash_cli.streams import standard_input

if TYPE_CHECKING:
    from ultraflash_cli.video.pipe import Pipe

__all__ = ["upscale"]

_DASH = Path("-")


@with_console(hidden=True)
def upscale(
    console: Console,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            parser=as_path,
            help="Video files, folders of them, pictures as DIR/%05d.png, or - for what comes through stdin.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR|-",
            parser=as_path,
            help="Where to write; without it, beside the input as NAME_1k. DIR/%05d.png writes pictures; - streams "
            "to stdout: Matroska, or y4m with --codec y4m.",
        ),
    ] = None,
    res: ResOption = None,
    model: ModelOption = "auto",
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="What the clip shows, for a model that takes words."),
    ] = None,
    encoder: Annotated[
        Literal["auto", "tiny", "wan-vae"],
        typer.Option(
            "--encoder", help="What turns frames into latents; wan-vae is the large, slow one of the model ultraflash."
        ),
    ] = "auto",
    decoder: DecoderOption = "auto",
    strength: StrengthOption = 1.0,
    detail: DetailOption = None,
    guard: GuardOption = f"{GUARD_LEVELS:g}",
    color: ColorOption = "match",
    seed: SeedOption = 0,
    cuts: Annotated[
        Literal["auto", "off"], typer.Option("--cuts", help="auto resets at each detected scene cut.")
    ] = "auto",
    start: Annotated[
        str | None, typer.Option("--start", metavar="TIME", help="Begin here: seconds, mm:ss.fff or N%.")
    ] = None,
    end: Annotated[str | None, typer.Option("--end", metavar="TIME", help="Stop before this time.")] = None,
    preview: Annotated[
        str | None, typer.Option("--preview", metavar="LENGTH[@TIME]", help="A short part only, such as 3s@25%.")
    ] = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="The plain resample on the left, the result on the right.")
    ] = False,
    codec: CodecOption = "auto",
    crf: CrfOption = None,
    pix_fmt: PixFmtOption = "auto",
    enc_opt: EncOptOption = None,
    deinterlace: Annotated[
        Literal["auto", "frame", "field", "off"],
        typer.Option(
            "--deinterlace",
            help="auto deinterlaces what is found to be interlaced; frame everything; field everything, into one frame "
            "for each field; off nothing.",
        ),
    ] = "auto",
    fps: Annotated[
        str,
        typer.Option(
            "--fps",
            metavar="keep|N|N/D",
            help="Frames a second in the file, by repeating or dropping frames, never by blending; of pictures, how "
            "many a second they are.",
        ),
    ] = "keep",
    audio: Annotated[
        Literal["copy", "aac", "flac", "none"],
        typer.Option("--audio", help="Keep the sound; aac or flac: convert what cannot be copied; none: drop it."),
    ] = "copy",
    subs: Annotated[Literal["copy", "none"], typer.Option("--subs", help="Keep or drop the subtitles.")] = "copy",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    max_memory: MaxMemoryOption = None,
    cuda_graphs: CudaGraphsOption = "auto",
    threads: ThreadsOption = None,
    no_tag: NoTagOption = False,
    serve: ServeOption = None,
    resume: ResumeOption = "auto",
    overwrite: OverwriteOption = False,
    skip_existing: SkipExistingOption = False,
    keep_going: KeepGoingOption = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Include subfolders; the tree is recreated under -o DIR.")
    ] = False,
    images: Annotated[
        bool, typer.Option("--images", help="A folder is one clip: the pictures in it, by their numbers.")
    ] = False,
    renumber: Annotated[
        bool,
        typer.Option("--renumber", help="Number output pictures from 1 instead of like the input pictures."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse an input that is damaged or cut, before any work.")
    ] = False,
    temp_dir: TempDirOption = None,
    downscale: Annotated[
        bool, typer.Option("--downscale", help="Allow a target that is not larger than the source.")
    ] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Upscale video, keeping its sound, subtitles and timing."""
    from ultraflash_cli.jobs.batch import Outcome, plan_batch, run_batch
    from ultraflash_cli.jobs.planning.clips import find_clips, is_several, missing_inputs, names_a_file
    from ultraflash_cli.jobs.planning.upscale import UpscaleJob
    from ultraflash_cli.jobs.stop import stopping_on_signals

    is_batch = is_several(inputs, images=images)
    from_stdin, to_stream = _DASH in inputs, takes_stream(output)
    if is_batch and (from_stdin or to_stream):
        raise UsageError(f"{_DASH if from_stdin else output} stands for one clip; leave the other inputs out")
    into_folder = output is not None and not to_stream and (is_batch or os.path.isdir(output))
    if is_batch and output is not None and os.path.isfile(output):
        raise UsageError(f"{output} is a file, expected a folder for the outputs of several inputs")
    if is_batch and output is not None and names_a_file(output):
        raise UsageError(f"{output} is the name of a file, expected a folder for the outputs of several inputs")
    console.data_on_err = is_stdout(output)
    if is_batch and not keep_going and (missing := missing_inputs(inputs, asks_output=output is None)):
        for each in missing if json else ():
            console.data(Outcome(source=each.source, label=each.source, failure=each).as_json())
        raise missing[0]

    def job_of(source: Path, below: Path) -> UpscaleJob:
        return UpscaleJob(
            source=source,
            pipe=_stdin() if from_stdin else None,
            images=images,
            output=None if into_folder or to_stream else output,
            folder=output / below if output is not None and into_folder else None,
            stdout=sink,
            stdout_name=sink_name(output),
            temp=temp_dir,
            res=res,
            model=model,
            prompt=prompt,
            encoder=encoder,
            decoder=decoder,
            store=console.settings.home,
            strength=strength,
            detail=detail,
            guard=read_guard(guard),
            color=color,
            seed=seed,
            cuts=cuts,
            start=start,
            end=end,
            preview=preview,
            side_by_side=side_by_side,
            codec=codec,
            crf=crf,
            pix_fmt=pix_fmt,
            enc_options=as_pairs(enc_opt or []),
            audio=audio,
            subs=subs,
            deinterlace=deinterlace,
            fps=None if fps == "keep" else as_rate(fps),
            strict=strict,
            renumber=renumber,
            device=device,
            precision=precision,
            max_memory=max_memory,
            cuda_graphs=cuda_graphs == "auto",
            threads=threads,
            tag=not no_tag,
            show=show,
            resume=resume == "auto",
            overwrite=overwrite,
            skip_existing=skip_existing,
            downscale=downscale,
        )

    clips = find_clips(
        inputs,
        images=images,
        recursive=recursive,
        outputs=output if into_folder else None,
        on_event=console.on_event,
    )
    jobs = (job_of(clip.source, clip.below) for clip in clips if clip.failure is None)
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
        stopping_on_signals(on_first=on_first, on_second=console.leave_at_once) as stop,
    ):
        if dry_run:
            outcomes = plan_batch(jobs, stop=stop, sources=sources)
        else:
            outcomes = run_batch(jobs, show.on_event if show else console.on_event, stop=stop, sources=sources)
        outcomes = chain(outcomes, unreadable)
        show_outcomes(console, outcomes, count=len(clips), is_batch=is_batch, keep_going=keep_going, json=json)


def _stdin() -> "Pipe":
    from ultraflash_cli.video.pipe import Pipe

    stream = standard_input("a clip")
    if stream.isatty():
        raise UsageError("- reads a clip from a pipe, stdin is the terminal; pipe a clip into it, or name a file")
    return Pipe(stream)
