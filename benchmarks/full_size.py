"""The published model at its full size with random weights: memory, seconds by stage,
frames per second, and the plan.

Needs torch and numpy, neither PyAV nor typer nor any weights; from the root of the repository:

    PYTHONPATH=.:kernels python -m benchmarks.full_size --res 1k,2k --groups 4 --out full_size.json
    PYTHONPATH=.:kernels python -m benchmarks.full_size --budget 24 --res 2k    # as on a GPU of 24 GB

Three paths: ``latents`` (low-resolution latents to frames), ``pixels`` (pictures to
pictures, as ``upscale`` does) and ``generate`` (noise to frames). The weights are
sampled on the device, so pictures are meaningless, but times and memory are valid.
"""

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ultraflash_cli.bench.cases import drifting_frames
from ultraflash_cli.bench.models import generator_of, random_context
from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.clock import StageClock, wait_for
from ultraflash_cli.engine.footprint.ladder import plan_memory
from ultraflash_cli.engine.footprint.plan import MemorySettings, MemoryWork
from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.engine.profiles import PROFILES, Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.schedule import plan_generation
from ultraflash_cli.engine.upscaler import Upscaler
from ultraflash_cli.errors import OutOfMemory
from ultraflash_cli.host import peak_rss_bytes
from ultraflash_cli.models.build import build_text_to_video, build_upscaler
from ultraflash_cli.models.device import fp8_parts, stage_precisions
from ultraflash_cli.models.profile import under_memory_plan
from ultraflash_cli.models.shelf import RandomShelf

__all__ = ["PATHS", "Measured", "Setup", "main", "measure"]

SCALES = {"1k": 2, "2k": 3}
PATHS = ("latents", "pixels", "generate")
LATENT_PX = 8
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings shared by all cases of a run."""

    profile: Profile
    device: torch.device
    groups: int
    """Number of groups per case; the first one is a warm-up."""
    long: bool = False
    """Whether the generator's long variant is used."""
    budget_bytes: int | None = None
    """Memory limit of the plan; None for the full plan."""

    @property
    def precision(self) -> str:
        """Precision: the published one on a GPU and float32 elsewhere."""
        return "auto" if self.device.type == "cuda" else "fp32"

    def dtype_of(self, part: str) -> torch.dtype:
        """Return the precision of a part."""
        return stage_precisions(self.profile, self.precision, self.device)(part)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of one case."""

    path: str
    res: str
    output: tuple[int, int]
    """Width and height in pixels."""
    settings: dict[str, Any]
    """Memory settings of the case."""
    planned_bytes: int
    """Planned peak, including the reserve."""
    planned_reserve_bytes: int
    planned: dict[str, int]
    """The parts of the planned peak."""
    peak_bytes: int | None = None
    """Peak allocation on the GPU; on a CPU the peak resident memory of the whole
    process so far."""
    peak_reserved_bytes: int | None = None
    """Peak memory held by the GPU's allocator."""
    frames: int = 0
    first_group_s: float | None = None
    seconds: float | None = None
    """Time of all groups after the first."""
    fps: float | None = None
    """Frames per second of those groups."""
    stage_s: dict[str, float] | None = None
    """Time by stage of those groups."""
    failed: str | None = None
    """Reason why there are no measurements."""


def measure(setup: Setup, path: str, res: str) -> Measured:
    """Run one case; if it does not run, ``failed`` holds the reason."""
    scale = SCALES[res]
    profile = setup.profile.at_scale(scale)
    height_px, width_px = profile.base_size
    work = _work(setup, profile, path)
    try:
        plan, failed = plan_memory(work, budget_bytes=setup.budget_bytes), None
    except OutOfMemory as error:
        plan, failed = plan_memory(work), str(error)
    parts = {part.name: part.bytes for part in plan.parts}
    base = Measured(
        path=path,
        res=res,
        output=(scale * width_px, scale * height_px),
        settings=asdict(plan.settings),
        planned_bytes=plan.total,
        planned_reserve_bytes=parts["reserve"],
        planned=parts,
        failed=failed,
    )
    if failed is not None:
        return base
    _start_counting(setup.device)
    clock = StageClock(setup.device)
    frames: list[int] = []
    try:
        next_group = _build(setup, under_memory_plan(profile, plan.settings), plan.settings, path, clock)
        times_s = [_now(setup.device)]
        for _ in range(setup.groups):
            count = next_group()
            if not count:  # the generator's window is full
                break
            frames.append(count)
            times_s.append(_now(setup.device))
            if len(frames) == 1:
                clock.clear()
    except torch.OutOfMemoryError as error:
        return replace(base, failed=str(error).splitlines()[0])
    seconds = times_s[-1] - times_s[1]
    peak, reserved = _peaks(setup.device)
    return replace(
        base,
        peak_bytes=peak,
        peak_reserved_bytes=reserved,
        frames=sum(frames),
        first_group_s=times_s[1] - times_s[0],
        seconds=seconds,
        fps=sum(frames[1:]) / seconds if len(frames) > 1 else None,
        stage_s=clock.seconds,
    )


def _now(device: torch.device) -> float:
    """Wait for the device and return the time."""
    wait_for(device)
    return time.perf_counter()


def _work(setup: Setup, profile: Profile, path: str) -> MemoryWork:
    height_px, width_px = profile.base_size
    generator = profile.long_generator if setup.long else profile.generator
    return MemoryWork(
        latents=(height_px // LATENT_PX, width_px // LATENT_PX),
        group_latents=profile.group_latents,
        generator=generator if path == "generate" else None,
        encoder=profile.encoder if path == "pixels" else None,
        upsampler=profile.upsampler,
        sr_dit=profile.sr_dit,
        decoder=profile.decoder,
        source=profile.base_size if path == "pixels" else None,
        dtype_of=setup.dtype_of,
        fp8_parts=fp8_parts(setup.precision),
        on_gpu=setup.device.type == "cuda",
    )


def _build(setup: Setup, profile: Profile, settings: MemorySettings, path: str, clock: StageClock) -> Callable[[], int]:
    """Build the networks for ``path``; return a function that makes the next group and
    returns its number of frames, 0 at the end."""
    context = random_context(profile, setup.device)
    if path == "generate":
        return _generation(setup, profile, settings, clock, context)
    height_px, width_px = profile.base_size
    upscaler = build_upscaler(
        RandomShelf(),
        profile,
        plan_upscale(width_px, height_px, res=f"{profile.latent_stages[0].scale}x", multiple_px=profile.multiple_px),
        device=setup.device,
        precision=setup.precision,
        context=context,
        decode_latents=settings.decode_latents,
        timer=clock,
    )
    return _pixels(profile, upscaler) if path == "pixels" else _latents(setup, profile, upscaler.cascade, context)


def _latents(setup: Setup, profile: Profile, cascade: Cascade, context: torch.Tensor | None) -> Callable[[], int]:
    """Return a function that refines groups of latents to frames."""
    refiner = cascade.refiner
    assert isinstance(refiner, Refiner), "what refines latents"
    height, width = (side // LATENT_PX for side in profile.base_size)
    draw = torch.Generator(setup.device).manual_seed(1)
    shape = (1, profile.latent_stages[0].latent_channels, profile.group_latents, height, width)
    state = refiner.init_state(height=height, width=width, context=context)

    def next_group() -> int:
        nonlocal state
        state, group = refiner.run_group(state, torch.randn(shape, generator=draw, device=setup.device))
        return group.frames_bcthw.shape[2]

    return next_group


def _pixels(profile: Profile, upscaler: Upscaler) -> Callable[[], int]:
    """Return a function that upscales groups of pictures."""
    height_px, width_px = profile.base_size
    source, state = drifting_frames(width_px, height_px), upscaler.init_state()

    def next_group() -> int:
        nonlocal state
        size = upscaler.group_frames(first=state.is_first)
        state, pictures = upscaler.step(state, list(islice(source, size)))
        return len(pictures)

    return next_group


def _generation(
    setup: Setup, profile: Profile, settings: MemorySettings, clock: StageClock, context: torch.Tensor | None
) -> Callable[[], int]:
    """Return a function that generates groups of frames from noise."""
    config = generator_of(profile, long=setup.long)
    latents = 2 * config.chunk_latents * setup.groups
    plan = plan_generation(
        min(latents, config.longest or latents),
        chunk=config.chunk_latents,
        independent_first=config.independent_first_frame,
    )
    video = build_text_to_video(
        RandomShelf(),
        profile,
        plan,
        scale=profile.latent_stages[0].scale,
        long=setup.long,
        low_frames=False,
        device=setup.device,
        precision=setup.precision,
        decode_latents=settings.decode_latents,
        park=torch.device("cpu") if settings.offload_generator else None,
        timer=clock,
    )
    height, width = (side // LATENT_PX for side in profile.base_size)
    state = video.init_state(height=height, width=width, context=context)

    def next_group() -> int:
        nonlocal state
        if state.groups == len(plan.groups):
            return 0
        state, group = video.step(state)
        assert group.frames_bcthw is not None, "there is a refiner"
        return group.frames_bcthw.shape[2]

    return next_group


def _start_counting(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peaks(device: torch.device) -> tuple[int, int | None]:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return peak_rss_bytes(), None


def _line(case: Measured) -> str:
    """Return a one-line summary of a case."""
    head = f"{case.path:9} {case.res}  planned {case.planned_bytes / 1e9:6.2f} GB"
    if case.failed is not None or case.peak_bytes is None:
        return f"{head}  {case.failed}"
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in (case.stage_s or {}).items())
    speed = f"{case.fps:.2f} frames/s" if case.fps is not None else "one group"
    return f"{head}, took {case.peak_bytes / 1e9:6.2f} GB; {speed}; {stages}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases, print a line for each, and write the JSON after each one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="ultraflash", choices=sorted(PROFILES), help="the model (ultraflash)")
    parser.add_argument("--res", default="1k,2k", help="1k, 2k or both (1k,2k)")
    parser.add_argument("--paths", default=",".join(PATHS), help=f"which of {','.join(PATHS)}")
    parser.add_argument("--groups", type=int, default=3, help="most groups of a case, the first not timed (3)")
    parser.add_argument("--long", action="store_true", help="generate with the long variant's window")
    parser.add_argument("--budget", type=float, metavar="GB", help="plan for so much memory, and hold a GPU to it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    parser.add_argument("--out", type=Path, help="where the JSON goes (benchmarks/results, by device and date)")
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    budget_bytes = None if asked.budget is None else int(asked.budget * 1e9)
    name = platform.machine()
    if device.type == "cuda":
        if asked.device == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(device)
        name = properties.name
        if budget_bytes is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, budget_bytes / properties.total_memory), device)
    setup = Setup(
        profile=PROFILES[asked.profile],
        device=device,
        groups=asked.groups,
        long=asked.long,
        budget_bytes=budget_bytes,
    )
    out: Path = asked.out or RESULTS / f"full_size_{device.type}_{date.today().isoformat()}.json"
    cases: list[dict[str, Any]] = []
    about = {
        "profile": asked.profile,
        "device": str(device),
        "device_name": name,
        "torch": str(torch.__version__),
        "groups": asked.groups,
        "budget_bytes": budget_bytes,
    }
    for res in asked.res.split(","):
        for path in asked.paths.split(","):
            case = measure(setup, path, res)
            cases.append(asdict(case))
            print(_line(case), file=sys.stdout, flush=True)
            out.write_text(json.dumps({**about, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
