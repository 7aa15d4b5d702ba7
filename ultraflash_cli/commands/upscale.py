"""`ultraflash upscale`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ultraflash_cli.console import Console, describe
from ultraflash_cli.errors import BatchError, UsageError
from ultraflash_cli.options import (
    ColorOption,
    CrfOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    ResOption,
    SeedOption,
    StrengthOption,
    ThreadsOption,
    as_path,
    with_console,
)

if TYPE_CHECKING:
    from ultraflash_cli.jobs.batch import Outcome

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
    codec: Annotated[
        Literal["auto", "h264", "hevc", "av1", "prores", "ffv1"],
        typer.Option("--codec", help="How the picture is coded."),
    ] = "auto",
    crf: CrfOption = None,
    pix_fmt: Annotated[
        str, typer.Option("--pix-fmt", metavar="auto|FORMAT", help="Pixel format of the output, as FFmpeg names it.")
    ] = "auto",
    enc_opt: Annotated[
        list[str] | None,
        typer.Option("--enc-opt", metavar="K=V", help="An option of the encoder, as FFmpeg names it; may be repeated."),
    ] = None,
    audio: Annotated[Literal["copy", "none"], typer.Option("--audio", help="Keep or drop the sound.")] = "copy",
    subs: Annotated[Literal["copy", "none"], typer.Option("--subs", help="Keep or drop the subtitles.")] = "copy",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    resume: Annotated[
        Literal["auto", "off"],
        typer.Option(
            "--resume", help="auto goes on where the same command was interrupted; off keeps nothing for that."
        ),
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("-y", "--overwrite", help="Replace an output that exists.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("-n", "--skip-existing", help="Leave an output that exists, and its input, alone.")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="With several inputs: go on after a failure.")
    ] = False,
    downscale: Annotated[
        bool, typer.Option("--downscale", help="Allow a target that is not larger than the source.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be done, write nothing.")
    ] = False,
    json: JsonOption = False,
) -> int:
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
            enc_options=_pairs(enc_opt or []),
            audio=audio,
            subs=subs,
            device=device,
            precision=precision,
            threads=threads,
            resume=resume == "auto",
            overwrite=overwrite,
            skip_existing=skip_existing,
            downscale=downscale,
        )
        for source in find_clips(inputs)
    ]
    failed: list[Outcome] = []
    tried = 0
    with stopping_on_signals() as stop:
        outcomes = plan_batch(jobs) if dry_run else run_batch(jobs, console.on_event, stop=stop)
        for outcome in outcomes:
            tried += 1
            _show(console, outcome, json=json)
            if outcome.failure is None:
                continue
            if not is_batch:
                raise outcome.failure
            failed.append(outcome)
            console.failure(outcome.failure, source=str(outcome.source))
            if not keep_going:
                break
    if failed:
        names = ", ".join(str(outcome.source) for outcome in failed)
        left = len(jobs) - tried
        rest = f"; {left} not tried, --keep-going goes on after a failure" if left else ""
        raise BatchError(f"{len(failed)} of {len(jobs)} files failed: {names}{rest}")
    return 0


def _show(console: Console, outcome: "Outcome", *, json: bool) -> None:
    if json:
        console.data(outcome.as_json())
    elif outcome.plan is not None:
        console.info(describe(outcome.plan))
    elif outcome.report is not None and outcome.report.skipped:
        console.info(f"{outcome.report.output} exists, {outcome.report.input} is skipped")


def _pairs(options: list[str]) -> tuple[tuple[str, str], ...]:
    for option in options:
        if not option.partition("=")[0] or "=" not in option:
            raise UsageError(f"--enc-opt is KEY=VALUE, got {option!r}")
    return tuple((option.partition("=")[0], option.partition("=")[2]) for option in options)
