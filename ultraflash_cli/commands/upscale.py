"""`ultraflash upscale`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from ultraflash_cli.commands.outcomes import show_outcomes
from ultraflash_cli.console import Console
from ultraflash_cli.errors import UsageError
from ultraflash_cli.options import (
    CodecOption,
    ColorOption,
    CrfOption,
    DecoderOption,
    DeviceOption,
    DryRunOption,
    EncOptOption,
    JsonOption,
    KeepGoingOption,
    MaxMemoryOption,
    ModelOption,
    OverwriteOption,
    PixFmtOption,
    PrecisionOption,
    ResOption,
    ResumeOption,
    SeedOption,
    SkipExistingOption,
    StrengthOption,
    ThreadsOption,
    as_pairs,
    as_path,
    with_console,
)

__all__ = ["upscale"]


@with_console(hidden=True)
def upscale(
    console: Console,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT", parser=as_path, help="Video files, or folders of them.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR",
            parser=as_path,
            help="Where to write; without it, beside the input as NAME_1k.",
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
        typer.Option("--encoder", help="What turns frames into latents; wan-vae is the large, slow one of ultraflash."),
    ] = "auto",
    decoder: DecoderOption = "auto",
    strength: StrengthOption = 1.0,
    color: ColorOption = "match",
    seed: SeedOption = 0,
    cuts: Annotated[
        Literal["auto", "off"], typer.Option("--cuts", help="auto starts anew at every scene cut that is found.")
    ] = "auto",
    start: Annotated[
        str | None, typer.Option("--start", metavar="TIME", help="Begin here: seconds, mm:ss.fff or N%.")
    ] = None,
    end: Annotated[str | None, typer.Option("--end", metavar="TIME", help="End before this.")] = None,
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
    audio: Annotated[Literal["copy", "none"], typer.Option("--audio", help="Keep or drop the sound.")] = "copy",
    subs: Annotated[Literal["copy", "none"], typer.Option("--subs", help="Keep or drop the subtitles.")] = "copy",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    max_memory: MaxMemoryOption = None,
    threads: ThreadsOption = None,
    resume: ResumeOption = "auto",
    overwrite: OverwriteOption = False,
    skip_existing: SkipExistingOption = False,
    keep_going: KeepGoingOption = False,
    downscale: Annotated[
        bool, typer.Option("--downscale", help="Allow a target that is not larger than the source.")
    ] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Upscale video files, keeping their sound, subtitles and timing."""
    from ultraflash_cli.jobs.batch import find_clips, plan_batch, run_batch
    from ultraflash_cli.jobs.preflight import UpscaleJob
    from ultraflash_cli.jobs.stop import stopping_on_signals

    # os.path and not Path: what may not be looked at is no reason to fail here, it is refused in words later.
    is_batch = len(inputs) > 1 or os.path.isdir(inputs[0])
    into_folder = output is not None and (is_batch or os.path.isdir(output))
    if is_batch and output is not None and os.path.isfile(output):
        raise UsageError(f"{output} is a file, expected a folder for the outputs of several inputs")
    jobs = [
        UpscaleJob(
            source=source,
            output=None if into_folder else output,
            folder=output if into_folder else None,
            res=res,
            model=model,
            prompt=prompt,
            encoder=encoder,
            decoder=decoder,
            store=console.settings.home,
            strength=strength,
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
            device=device,
            precision=precision,
            max_memory=max_memory,
            threads=threads,
            resume=resume == "auto",
            overwrite=overwrite,
            skip_existing=skip_existing,
            downscale=downscale,
        )
        for source in find_clips(inputs)
    ]
    with stopping_on_signals() as stop:
        outcomes = plan_batch(jobs) if dry_run else run_batch(jobs, console.on_event, stop=stop)
        show_outcomes(console, outcomes, count=len(jobs), is_batch=is_batch, keep_going=keep_going, json=json)
