"""`ultraflash bench`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.errors import UsageError
from ultraflash_cli.options import (
    CudaGraphsOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    ThreadsOption,
    with_console,
)

if TYPE_CHECKING:
    from ultraflash_cli.bench.cases import BenchCase
    from ultraflash_cli.bench.kernels import KernelTime
    from ultraflash_cli.bench.report import BenchReport, WallTime
    from ultraflash_cli.bench.timing import Prepared
    from ultraflash_cli.engine.profiles import Profile
    from ultraflash_cli.jobs.planning.generate import PreparedGeneration
    from ultraflash_cli.jobs.planning.upscale import Prepared as PreparedUpscale
    from ultraflash_cli.jobs.running.loader import Built
    from ultraflash_cli.models.frames import FrameGenerator, FrameUpscaler

__all__ = ["bench", "measure_kernels", "measure_wall", "prepare"]

_PROMPT = "A red boat drifts on a calm lake at sunrise."
_RATE = 24


@with_console(hidden=True)
def bench(
    console: Console,
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
    model: ModelOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    cuda_graphs: CudaGraphsOption = True,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> int:
    """Measure speed, memory and time per stage on this machine.

    The limits of the device are printed next to them. Missing weights are replaced by random ones, which is reported:
    timings stay valid, pictures do not.
    """
    from ultraflash_cli.bench.cases import KINDS, RES, BenchCase, parse_size
    from ultraflash_cli.bench.kernels import OTHERS
    from ultraflash_cli.bench.report import kernel_lines
    from ultraflash_cli.bench.timing import in_fresh_process, measure
    from ultraflash_cli.host import usable_cores
    from ultraflash_cli.models.build import choose_device, find_profile

    for word in what or ():
        if word not in KINDS:
            raise UsageError(f"unknown benchmark {word!r}; choose from {', '.join(KINDS)}")
    on_gpu = choose_device(device).type == "cuda"
    profile = find_profile(("ultraflash" if on_gpu else "lite") if model == "auto" else model)
    kinds = what or ["upscale", *(["generate"] if profile.generator else []), *(["kernels"] if on_gpu else [])]
    if "generate" in kinds and profile.generator is None:
        raise UsageError(f"{profile.name} cannot generate; choose another model with --model")
    names = [name.strip().lower() for name in res.split(",")]
    if not set(names) <= RES.keys():
        raise UsageError(f"--res must be a comma-separated list of {', '.join(RES)}, got {res!r}")
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
        device=device,
        precision=precision,
        threads=threads or usable_cores(),
        waiting=console.settings.waiting,
        graphs=cuda_graphs,
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
            rows = in_fresh_process(measure_kernels, device, case.threads)
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


def _check_generated_size(profile: "Profile", width_px: int, height_px: int) -> None:
    """Raise UsageError, before anything is measured, for a size that the generator cannot draw."""
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


def prepare(case: "BenchCase") -> "Prepared":
    """Build the model of a case the way `upscale` and `generate` do; with random weights from the engine alone."""
    import torch

    from ultraflash_cli.bench.counts import CountingClock
    from ultraflash_cli.bench.streams import DrawnStream, UpscaledStream
    from ultraflash_cli.bench.timing import Prepared
    from ultraflash_cli.bench.untrained import clip_plan, generator_of, prepare_untrained, random_context
    from ultraflash_cli.engine.plan import plan_upscale
    from ultraflash_cli.host import keep_freed_memory, peak_rss_bytes
    from ultraflash_cli.models.build import (
        Shelf,
        Speedups,
        build_text_to_video,
        build_upscaler,
        choose_device,
        find_profile,
        precision_name,
    )

    keep_freed_memory()
    if case.untrained:  # Shelf would draw them on the host
        return replace(prepare_untrained(case), peak_rss_bytes=peak_rss_bytes)
    torch.set_num_threads(case.threads)
    device, profile = choose_device(case.device), find_profile(case.model)
    clock, shelf = CountingClock(device), Shelf(case.store)
    on_gpu = device.type == "cuda"
    speedups = Speedups(graphs=case.graphs, lanes=case.lanes, paired_caches=on_gpu)
    context = random_context(profile, device)
    precision = precision_name(profile, case.precision, device)
    weights = (
        "random" if profile.random_seed is not None else "downloaded" if case.model == "ultraflash" else "built in"
    )
    if case.kind == "upscale":
        plan = plan_upscale(case.width_px, case.height_px, res=f"{case.scale}x")
        upscaler = build_upscaler(
            shelf,
            profile,
            plan,
            device=device,
            precision=case.precision,
            context=context if profile.sr_dit and profile.sr_dit.text_len else None,
            timer=clock,
            speedups=speedups,
        )
        return Prepared(
            start=lambda: UpscaledStream(upscaler),
            clock=clock,
            precision=precision,
            weights=weights,
            peak_rss_bytes=peak_rss_bytes,
        )
    video = build_text_to_video(
        shelf,
        profile,
        clip_plan(case, generator_of(profile, long=case.long)),
        scale=case.scale,
        long=case.long,
        low_frames=False,
        device=device,
        precision=case.precision,
        timer=clock,
        speedups=speedups,
    )
    return Prepared(
        start=lambda: DrawnStream(video, (case.height_px, case.width_px), context),
        clock=clock,
        precision=precision,
        weights=weights,
        endless=case.long,
        peak_rss_bytes=peak_rss_bytes,
    )


def measure_wall(case: "BenchCase") -> "WallTime":
    """Run the command of a case, file to file, in a folder that goes away again."""
    import tempfile

    from ultraflash_cli.bench.report import WallTime
    from ultraflash_cli.host import keep_freed_memory
    from ultraflash_cli.jobs.events import Chunk, Event

    keep_freed_memory()
    first_group: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Chunk) and not first_group:
            first_group.append(event.frames_done)

    with tempfile.TemporaryDirectory(prefix="ultraflash-bench-") as name:
        folder = Path(name)
        if case.kind == "upscale":
            from ultraflash_cli.jobs.planning.upscale import UpscaleJob
            from ultraflash_cli.jobs.running.upscale import run

            source = folder / "source.mp4"
            _write_clip(case, source)
            job = UpscaleJob(
                source=source,
                output=folder / "out.mp4",
                res=f"{case.scale}x",
                model=case.model,
                store=case.store,
                device=case.device,
                precision=case.precision,
                cuda_graphs=case.graphs,
                threads=case.threads,
            )
            report = run(job, listen, build=partial(_build_upscaler, case) if case.untrained else None)
        else:
            from ultraflash_cli.bench.cases import RES
            from ultraflash_cli.jobs.planning.generate import GenerateJob
            from ultraflash_cli.jobs.running.generate import run_generation

            job = GenerateJob(
                prompt=_PROMPT,
                output=folder / "out.mp4",
                res={times: name for name, times in RES.items()}[case.scale],
                seconds=case.seconds,
                model=case.model,
                store=case.store,
                device=case.device,
                precision=case.precision,
                cuda_graphs=case.graphs,
                threads=case.threads,
            )
            build = partial(_build_video, case) if case.untrained else None
            report = run_generation(job, listen, build=build)
    encoder, first_s = report.encoder or {}, report.first_frame_s or 0.0
    return WallTime(
        frames=report.frames_out,
        seconds=report.seconds,
        fps=(report.frames_out - sum(first_group)) / (report.seconds - first_s),
        first_frame_seconds=report.first_frame_s,
        codec=str(encoder.get("codec", "unknown")),
        limit=report.limit,
    )


def measure_kernels(device: str, threads: int) -> "list[KernelTime]":
    """Time every operation of the kernels on a device."""
    import torch

    from ultraflash_cli.bench.kernels import OPERATIONS, measure_operation
    from ultraflash_cli.bench.limits import measure_limits
    from ultraflash_cli.models.build import choose_device

    torch.set_num_threads(threads)
    where = choose_device(device)
    limits = measure_limits(where, "bf16" if where.type == "cuda" else "fp32")
    return [row for name in OPERATIONS for row in measure_operation(name, where, limits)]


def _installed(case: "BenchCase", profile: "Profile") -> bool:
    """Return whether the weights of a model are there, so far as a measurement needs them."""
    from ultraflash_cli.errors import WeightsError
    from ultraflash_cli.jobs.running.choices import upscaling_parts
    from ultraflash_cli.models.build import Shelf

    parts = upscaling_parts(profile)
    parts += ["generator", "text_encoder"] if profile.generator and profile.text_encoder else []
    try:
        Shelf(case.store).require(profile.at_scale(2), parts)
    except WeightsError:
        return False
    return True


def _build_upscaler(case: "BenchCase", prepared: "PreparedUpscale") -> "Built[FrameUpscaler]":
    from ultraflash_cli.bench.untrained import Untrained
    from ultraflash_cli.jobs.running.loader import Built
    from ultraflash_cli.models.frames import as_frame_upscaler

    made = Untrained(case)
    upscaler = as_frame_upscaler(made.upscaler(prepared.plan), made.clock)
    return Built(model=upscaler, device=str(made.device), precision=made.precision, weights={})


def _build_video(case: "BenchCase", prepared: "PreparedGeneration") -> "Built[FrameGenerator]":
    from ultraflash_cli.bench.untrained import Untrained
    from ultraflash_cli.jobs.running.loader import Built
    from ultraflash_cli.models.frames import as_frame_generator

    made = Untrained(case)
    assert made.context is not None, "what generates takes words"
    generator = as_frame_generator(made.video(prepared.plan), made.context, prepared.base_size, made.clock)
    return Built(model=generator, device=str(made.device), precision=made.precision, weights={})


def _write_clip(case: "BenchCase", path: Path) -> None:
    """Write a made clip of two groups more than are timed, in H.264."""
    from fractions import Fraction
    from itertools import islice

    from ultraflash_cli.bench.cases import drifting_frames
    from ultraflash_cli.models.build import find_profile
    from ultraflash_cli.video.encode import MADE_TICKS, made_spec
    from ultraflash_cli.video.segment import SegmentWriter

    count = case.frames + 8 * find_profile(case.model).group_latents
    spec = made_spec(
        width_px=case.width_px, height_px=case.height_px, rate=Fraction(_RATE), codec="h264", threads=case.threads
    )
    with SegmentWriter(path, spec) as writer:
        for number, frame in enumerate(islice(drifting_frames(case.width_px, case.height_px), count)):
            writer.write(frame, number * MADE_TICKS, MADE_TICKS)
