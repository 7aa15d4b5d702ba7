"""`ultraflash bench`."""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.planning.options import MachineOptions, ModelName
from ultraflash_cli.options import JsonOption, takes, with_console

if TYPE_CHECKING:
    from ultraflash_cli.bench.cases import BenchCase
    from ultraflash_cli.bench.kernels import KernelTime
    from ultraflash_cli.bench.report import BenchReport
    from ultraflash_cli.engine.profiles import Profile

__all__ = ["about_duration", "bench"]


@dataclass(frozen=True, kw_only=True)
class _Options(ModelName, MachineOptions):
    """The benchmarks to run, and the device."""


@with_console(hidden=True)
@takes(_Options)
def bench(
    console: Console,
    options: _Options,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHAT",
            help="upscale, generate or kernels; by default all that apply.",
            show_default=False,
        ),
    ] = None,
    res: Annotated[
        str, typer.Option("--res", metavar="480p,1k,2k", help="Target sizes; 480p applies to generate only.")
    ] = "1k",
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="WxH", help="Source size; by default the model's own.", show_default=False),
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option("--scale", metavar="2|3", help="Scale factor, instead of --res.", show_default=False),
    ] = None,
    frames: Annotated[int, typer.Option("--frames", metavar="N", help="Frames to time, rounded to whole groups.")] = 24,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds", metavar="S", help="Length of the generated clip (default: 81 frames).", show_default=False
        ),
    ] = None,
    wall: Annotated[
        bool, typer.Option("--wall/--no-wall", help="Also time the whole command, from file to file.")
    ] = True,
    roofline: Annotated[
        bool,
        typer.Option("--roofline", help="Estimate the speed of the published model on a GPU; needs no GPU."),
    ] = False,
    rates: Annotated[
        str | None,
        typer.Option(
            "--rates",
            metavar="NAME=X,...",
            help="Rates for --roofline in TFLOP/s and TB/s (default: an H200).",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Measure speed, memory and time per stage on this machine.

    The limits of the device are printed next to them. Missing weights are replaced by random ones, which is reported:
    timings stay valid, pictures do not.
    """
    from ultraflash_cli.bench.cases import KINDS, RES, BenchCase, parse_size

    if rates is not None and not roofline:
        raise UsageError("--rates needs --roofline")
    for word in what or ():
        if word not in KINDS:
            raise UsageError(f"unknown benchmark {word!r}; choose from {', '.join(KINDS)}")
    names = [name.strip().lower() for name in res.split(",")]
    if not set(names) <= RES.keys():
        raise UsageError(f"--res must be a comma-separated list of {', '.join(RES)}, got {res!r}")

    # Imported late, since these import torch.
    from ultraflash_cli.bench.kernels import OTHERS, measure_kernels
    from ultraflash_cli.bench.models import prepare
    from ultraflash_cli.bench.report import kernel_lines
    from ultraflash_cli.bench.timing import in_fresh_process, measure
    from ultraflash_cli.commands.wall import measure_wall, predict
    from ultraflash_cli.host import usable_cores
    from ultraflash_cli.models.device import choose_devices
    from ultraflash_cli.models.profile import find_profile

    if roofline:
        return _estimate(console, rates, json=json)
    devices = choose_devices(options.device)
    on_gpu = devices[0].type == "cuda"
    profile = find_profile(("ultraflash" if on_gpu else "lite") if options.model == "auto" else options.model)
    kinds = what or ["upscale", *(["generate"] if profile.generator else []), *(["kernels"] if on_gpu else [])]
    if len(devices) > 1 and (kinds := what or ["generate"]) != ["generate"]:
        raise UsageError(f"--device {options.device}: only `bench generate` uses two devices; name one")
    if "generate" in kinds and profile.generator is None:
        raise UsageError(f"{profile.name} cannot generate; choose another model with --model")
    scales = [scale] if scale is not None else [RES[name] for name in names]
    height_px, width_px = profile.base_size
    if size is not None:
        width_px, height_px = parse_size(size)
    case = BenchCase(
        model=profile.name,
        width_px=width_px,
        height_px=height_px,
        frames=frames,
        seconds=seconds,
        device=options.device,
        precision=options.precision,
        threads=options.threads or usable_cores(),
        waiting=console.settings.waiting,
        graphs=options.cuda_graphs,
        store=console.settings.home,
    )
    case = replace(case, untrained=not _installed(case, profile))
    cases = [
        replace(case, kind=kind, scale=each)
        for kind in ("upscale", "generate")
        for each in scales
        if kind in kinds and not (kind == "upscale" and each == 1)
    ]
    if not cases and "kernels" not in kinds:
        raise UsageError("nothing to measure: 480p applies to generate only")
    if "generate" in kinds:
        _check_generated_size(profile, width_px, height_px)
    if cases:
        count, begun_s = len(cases) * (1 + wall), time.monotonic()
        with console.working("bench", "predicting how long it takes"):
            seconds = in_fresh_process(predict, cases, wall)
        if seconds is not None:
            # Every measurement begins like the prediction: a new process loads a model.
            seconds += (time.monotonic() - begun_s) * count / len(cases)
        console.info(about_duration(count, seconds, kernels="kernels" in kinds))
    reports: list[BenchReport] = []
    for each in cases:
        about = f"{each.kind} {width_px}x{height_px} x{each.scale}"
        with console.working("bench", f"measuring {about}: the model alone"):
            report = in_fresh_process(measure, each, prepare)
        if wall:
            with console.working("bench", f"measuring {about}: file to file"):
                report = replace(report, wall=in_fresh_process(measure_wall, each))
        reports.append(report)
        if not json:
            for line in report.lines():
                console.text(line)
    rows: list[KernelTime] = []
    if "kernels" in kinds:
        with console.working("bench", "measuring kernels"):
            rows = in_fresh_process(measure_kernels, options.device, case.threads)
        if not json:
            for line in kernel_lines(rows, OTHERS):
                console.text(line)
    if json:
        from dataclasses import asdict

        console.data(
            {
                "schema": 2,
                "cases": [report.as_json() for report in reports],
                "kernels": [asdict(row) for row in rows],
            }
        )
    return 0


def about_duration(count: int, seconds: float | None, *, kernels: bool) -> str:
    """Return in one line how many measurements there are and how long they take."""
    from ultraflash_cli.jobs.plan_lines import count_of
    from ultraflash_cli.jobs.running.forecast import duration_words

    takes = f"about {duration_words(seconds)}" if seconds is not None else "their time cannot be predicted"
    return f"bench: {count_of(count, 'measurement')}, {takes}{', then the kernels' if kernels else ''}"


def _estimate(console: Console, rates: str | None, *, json: bool) -> int:
    """Print the predicted times of full-size groups of the published model at given
    rates."""
    from dataclasses import asdict

    from ultraflash_cli.bench.roofline import cascades, parse_rates, roofline

    given = parse_rates(rates)
    with console.working("bench", "counting what full-size groups launch"):
        stages = roofline(given)
    whole = cascades(stages)
    if json:
        console.data(
            {
                "schema": 2,
                "measured": False,
                "rates": asdict(given),
                "stages": [stage.as_json() for stage in stages],
                "cascades": [asdict(each) for each in whole],
            }
        )
        return 0
    console.text("Estimated from counts and rates, not measured:")
    for row in (*stages, *whole):
        console.text(row.line())
    return 0


def _check_generated_size(profile: "Profile", width_px: int, height_px: int) -> None:
    """Raise UsageError, before any measurement, for a size that the generator does not
    support."""
    config = profile.generator
    assert config is not None, "what is to generate has a generator"
    _, rows, columns = config.patch
    if config.grid is not None:
        height, width = 8 * rows * config.grid[0], 8 * columns * config.grid[1]
        fits, sizes = (width_px, height_px) == (width, height), f"{width}x{height} only"
    else:
        fits = width_px % (8 * columns) == 0 and height_px % (8 * rows) == 0
        sizes = f"widths in steps of {8 * columns} and heights in steps of {8 * rows}"
    if not fits:
        raise UsageError(
            f"{profile.name} generates {sizes}, got --size {width_px}x{height_px}; `bench upscale` takes any size"
        )


def _installed(case: "BenchCase", profile: "Profile") -> bool:
    """Return whether the weights that a measurement needs are installed."""
    from ultraflash_cli.errors import WeightsError
    from ultraflash_cli.models.profile import upscaling_parts
    from ultraflash_cli.models.shelf import Shelf

    parts = upscaling_parts(profile)
    parts += ["generator", "text_encoder"] if profile.generator and profile.text_encoder else []
    try:
        Shelf(case.store).require(profile.at_scale(2), parts)
    except WeightsError:
        return False
    return True
