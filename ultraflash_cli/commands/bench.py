"""`ultraflash bench`."""

from typing import TYPE_CHECKING, Annotated

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.options import (
    DeviceOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    ThreadsOption,
    with_console,
)

if TYPE_CHECKING:
    from ultraflash_cli.bench.cases import BenchCase
    from ultraflash_cli.bench.timing import Prepared

__all__ = ["bench", "prepare"]


@with_console(hidden=True)
def bench(
    console: Console,
    size: Annotated[str, typer.Option("--size", metavar="WxH", help="Size of the source.")] = "832x480",
    scale: Annotated[int, typer.Option("--scale", metavar="2|3", help="How much each side grows.")] = 2,
    frames: Annotated[int, typer.Option("--frames", metavar="N", help="Frames to time, in whole groups.")] = 24,
    model: ModelOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> int:
    """Measure the model on this device: speed, time by stage, peak memory, arithmetic."""
    from ultraflash_cli.bench.cases import BenchCase, parse_size
    from ultraflash_cli.bench.timing import measure_in_fresh_process
    from ultraflash_cli.jobs.host import usable_cores

    width_px, height_px = parse_size(size)
    case = BenchCase(
        model="lite" if model == "auto" else model,
        width_px=width_px,
        height_px=height_px,
        scale=scale,
        frames=frames,
        device=device,
        precision=precision,
        threads=threads or usable_cores(),
        store=console.settings.home,
    )
    console.detail("measuring in a process of its own")
    report = measure_in_fresh_process(case, prepare)
    if json:
        console.data(report.as_json())
    else:
        for line in report.lines():
            console.text(line)
    return 0


def prepare(case: "BenchCase") -> "Prepared":
    """Build the model of a case the way `upscale` does."""
    import torch

    from ultraflash_cli.bench.timing import Prepared, StageClock
    from ultraflash_cli.engine.plan import plan_upscale
    from ultraflash_cli.jobs.assemble import Shelf, build_upscaler, choose_device, find_profile, precision_name
    from ultraflash_cli.jobs.host import keep_freed_memory, peak_rss_bytes

    keep_freed_memory()
    torch.set_num_threads(case.threads)
    device, profile = choose_device(case.device), find_profile(case.model)
    clock = StageClock(device)
    plan = plan_upscale(case.width_px, case.height_px, res=f"{case.scale}x")
    shelf = Shelf(case.store)
    return Prepared(
        upscaler=build_upscaler(shelf, profile, plan, device=device, precision=case.precision, timer=clock),
        clock=clock,
        precision=precision_name(profile, case.precision, device),
        peak_rss_bytes=peak_rss_bytes,
    )
