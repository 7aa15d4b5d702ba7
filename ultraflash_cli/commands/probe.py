"""`ultraflash probe`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.errors import OutOfMemory, UltraflashError
from ultraflash_cli.jobs.plan_lines import describe
from ultraflash_cli.jobs.planning.options import TargetOptions
from ultraflash_cli.options import JsonOption, as_path, takes, with_console

__all__ = ["probe"]


@with_console(hidden=True)
@takes(TargetOptions)
def probe(
    console: Console,
    target: TargetOptions,
    file: Annotated[Path, typer.Argument(metavar="FILE", parser=as_path, help="A video file.")],
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure black borders, shifted colours and grain.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show the contents of a file and how `upscale` would process it."""
    from ultraflash_cli.jobs.planning.inputs import is_photo
    from ultraflash_cli.jobs.planning.upscale import UpscaleJob
    from ultraflash_cli.jobs.running.prepare import foreseen, prepare

    try:
        prepared = prepare(UpscaleJob(source=file, res=target.res), to_write=False)
    except UltraflashError as error:
        error.source = str(file)
        if json:
            console.data({"file": str(file), "error": str(error), "exit_code": error.exit_code})
        raise

    # Imported late, since these import torch, which takes longer than everything else
    # here.
    from ultraflash_cli.jobs.running.forecast import Forecaster, describe_forecast
    from ultraflash_cli.jobs.running.loader import Models
    from ultraflash_cli.jobs.running.upscale import Upscaling
    from ultraflash_cli.models.device import choose_device, stage_precisions
    from ultraflash_cli.models.memory import describe_memory, memory_budget, plan_upscale_memory
    from ultraflash_cli.models.profile import find_profile
    from ultraflash_cli.video.description import describe_clip
    from ultraflash_cli.video.mending import Mending, about_scan, mended

    photo = is_photo(prepared.info)
    models = Models(times_short=True)
    info, plan = prepared.info, Upscaling(prepared, models.upscaler).planned()
    device, profile = choose_device("auto"), find_profile(prepared.model)
    memory = forecast = None
    warnings = [*prepared.warnings, *foreseen(prepared)]
    try:
        memory = plan_upscale_memory(
            profile,
            prepared.plan,
            device=device,
            dtype_of=stage_precisions(profile, "auto", device),
            budget_bytes=memory_budget(device, None),
            deep=info.bit_depth > 8,
        )
        warnings += memory.warnings
        forecast = Forecaster(models).forecast(prepared)
    except OutOfMemory as error:  # the file itself can still be described
        warnings.append(str(error))
    found = mended(info) if measure else Mending(info=info)
    about = {
        "container": info.container,
        "codec": info.codec,
        "width": info.width_px,
        "height": info.height_px,
        "rotation_deg": info.rotation_deg,
        "sample_aspect_ratio": str(info.sample_aspect_ratio),
        "pix_fmt": info.pix_fmt,
        "bit_depth": info.bit_depth,
        "interlaced": info.interlaced,
        "found": found.facts() if measure else about_scan(info),
        "average_rate": None if photo else str(info.average_rate),
        "time_base": str(info.time_base),
        "duration_s": None if photo else info.duration_s,
        "frames_estimate": info.frame_count_estimate,
        "color": asdict(info.color),
        "streams": [each.describe() for each in info.streams],
    }
    if json:
        foretold = {"forecast": forecast.as_json() if forecast is not None else None}
        needs = None if memory is None else {"device": str(device), **memory.as_json()}
        console.data(
            {"file": str(file), **about, "plan": asdict(plan), "memory": needs, **foretold, "warnings": warnings}
        )
        return
    for name, words in (*describe_clip(info, photo=photo), *found.describe()):
        console.text(f"{name:10}  {words}")
    lines = describe(plan)
    lines += describe_memory(memory) if memory is not None else []
    lines += describe_forecast(forecast) if forecast is not None else []
    for line in lines:
        console.text(line)
    if not measure:
        console.info("borders, shifted colours and grain are not measured; --measure does")
    for message in warnings:
        console.warning(message)
