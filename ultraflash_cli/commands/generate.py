"""`ultraflash generate`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from ultraflash_cli.commands.outcomes import show_outcomes
from ultraflash_cli.commands.sinks import is_stdout, opened_show, opened_sink, sink_name, takes_stream
from ultraflash_cli.console import Console
from ultraflash_cli.errors import InputError, UsageError
from ultraflash_cli.options import (
    CodecOption,
    CrfOption,
    CudaGraphsOption,
    DecoderOption,
    DeviceOption,
    DryRunOption,
    EncOptOption,
    JsonOption,
    KeepGoingOption,
    MaxMemoryOption,
    ModelOption,
    NoTagOption,
    OverwriteOption,
    PixFmtOption,
    PrecisionOption,
    ResumeOption,
    SeedOption,
    ServeOption,
    SkipExistingOption,
    TempDirOption,
    ThreadsOption,
    as_pairs,
    as_path,
    as_rate,
    with_console,
)
from ultraflash_cli.streams import standard_input

if TYPE_CHECKING:
    from ultraflash_cli.jobs.serving.show import Show

__all__ = ["generate"]


@with_console(hidden=True)
def generate(
    console: Console,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What the clip shows.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE|-",
            parser=as_path,
            help="A clip for each line of a file, or of stdin; blank lines and # comments are skipped.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR|-",
            parser=as_path,
            help="Where to write; without it, here, named after prompt, size and seed. The file's title is the prompt, "
            "its comment names model and seed. DIR/%05d.png writes pictures; - streams to stdout: Matroska, or y4m "
            "with --codec y4m.",
        ),
    ] = None,
    init_clip: Annotated[
        Path | None,
        typer.Option(
            "--init-clip",
            metavar="FILE",
            parser=as_path,
            help="Go on from the end of this clip, scaled and cropped to fit; only what follows it is written.",
        ),
    ] = None,
    res: Annotated[
        Literal["480p", "1k", "2k"],
        typer.Option("--res", case_sensitive=False, help="Size: 832x480, 1664x960 or 2496x1440."),
    ] = "1k",
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="S",
            help="Length; a clip has 1 + 4n frames at 16 a second, by default 81. Longer ones of ultraflash want the "
            "weights of its long variant.",
            show_default=False,
        ),
    ] = None,
    fps: Annotated[
        str | None,
        typer.Option(
            "--fps",
            metavar="N|N/D",
            help="Frames a second in the file; 16 are made, others by repeating or dropping frames, never by blending.",
            show_default=False,
        ),
    ] = None,
    seed: SeedOption = 0,
    count: Annotated[
        int, typer.Option("--count", metavar="N", help="Clips for each prompt, with seeds from --seed on.")
    ] = 1,
    save_lr: Annotated[
        bool, typer.Option("--save-lr", help="Write the clip at 480p, too, as NAME_480p beside the other.")
    ] = False,
    cache_management: Annotated[
        str,
        typer.Option(
            "--cache-management",
            metavar="off|steps,refresh,kv",
            help="What to skip for speed: denoising steps after the first chunk (steps=N), passes that refresh the "
            "memory (refresh=THRESHOLD), memory of the refinement. One or more of them.",
        ),
    ] = "off",
    model: ModelOption = "auto",
    decoder: DecoderOption = "auto",
    codec: CodecOption = "auto",
    crf: CrfOption = None,
    pix_fmt: PixFmtOption = "auto",
    enc_opt: EncOptOption = None,
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
    temp_dir: TempDirOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Generate video from words.

    The built-in model lite draws simple landscapes by time of day: skies over sea, hills, mountains, fields or a city.
    For real clips `ultraflash weights pull ultraflash` brings the published model, which needs a GPU and
    `pip install '.[generate]'` in the source folder.
    """
    from ultraflash_cli.jobs.batch import plan_batch, run_batch
    from ultraflash_cli.jobs.planning.clips import VIDEO_SUFFIXES
    from ultraflash_cli.jobs.planning.generate import GenerateJob, name_outputs
    from ultraflash_cli.jobs.stop import stopping_on_signals

    if count < 1:
        raise UsageError(f"--count is 1 or more, got {count}")
    texts = _prompts(prompt, prompts)
    is_batch = prompts is not None or count > 1
    several = len(texts) * count > 1
    to_stream = takes_stream(output)
    if to_stream and several:
        raise UsageError(f"{output} stands for one clip; name a folder for several")
    into_folder = output is not None and not to_stream and (several or os.path.isdir(output))
    console.data_on_err = is_stdout(output)
    if output is not None and several and not os.path.isdir(output):
        is_file = os.path.exists(output) or output.suffix.lower() in VIDEO_SUFFIXES
        if is_file:
            raise UsageError(f"{output} names a file, several clips need a folder")

    def job_of(text: str, number: int, sink: BinaryIO | None = None, show: "Show | None" = None) -> GenerateJob:
        return GenerateJob(
            prompt=text,
            output=None if into_folder or to_stream else output,
            folder=output if into_folder else None,
            stdout=sink,
            stdout_name=sink_name(output),
            temp=temp_dir,
            res=res,
            seconds=seconds,
            fps=as_rate(fps) if fps is not None else None,
            seed=seed + number,
            model=model,
            decoder=decoder,
            store=console.settings.home,
            save_lr=save_lr,
            init_clip=init_clip,
            cache_management=cache_management,
            codec=codec,
            crf=crf,
            pix_fmt=pix_fmt,
            enc_options=as_pairs(enc_opt or []),
            device=device,
            precision=precision,
            threads=threads,
            max_memory=max_memory,
            cuda_graphs=cuda_graphs == "auto",
            tag=not no_tag,
            show=show,
            resume=resume == "auto",
            overwrite=overwrite,
            skip_existing=skip_existing,
        )

    for text in texts:
        job_of(text, 0)  # refuses, before any work, what no clip can be made of
    on_first = None if dry_run else console.acknowledge_stop
    with (
        opened_sink(output, console, dry_run=dry_run) as sink,
        opened_show(serve, console, dry_run=dry_run) as show,
        stopping_on_signals(on_first=on_first, on_second=console.leave_at_once) as stop,
    ):
        jobs = name_outputs(job_of(text, number, sink, show) for text in texts for number in range(count))
        if dry_run:
            outcomes = plan_batch(jobs, stop=stop)
        else:
            outcomes = run_batch(jobs, show.on_event if show else console.on_event, stop=stop)
        clips = len(texts) * count
        show_outcomes(console, outcomes, count=clips, is_batch=is_batch, keep_going=keep_going, json=json)


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    """Give the prompts of the argument, of the file or of stdin. Raises UsageError, InputError."""
    from ultraflash_cli.jobs.planning.generate import read_prompts

    if (prompt is None) == (file is None):
        raise UsageError("name either a PROMPT or --prompts FILE" + (", not both" if prompt is not None else ""))
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
        raise InputError(f"{file} is no text in UTF-8; write one prompt on each line") from error
    return read_prompts(text.splitlines())
