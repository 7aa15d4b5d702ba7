"""Memory budgets and plans: what the machine has, what a job needs, and its
description."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ultraflash_cli.buffers import SEGMENT_FRAMES, SPOOL_BYTES, queue_places
from ultraflash_cli.engine.footprint.ladder import plan_memory
from ultraflash_cli.engine.footprint.plan import MemoryPlan, MemorySettings, MemoryWork, PairedPlan
from ultraflash_cli.engine.plan import UpscalePlan
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, GenerationPlan
from ultraflash_cli.errors import OutOfMemory, UsageError
from ultraflash_cli.host import host_bytes_available, parse_memory, resident_bytes
from ultraflash_cli.models.backend import backend_of

__all__ = [
    "describe_memory",
    "memory_budget",
    "memory_budgets",
    "memory_effect",
    "plan_generation_memory",
    "plan_paired_memory",
    "plan_upscale_memory",
]

_LARGEST = 4
"""Number of parts named in a description."""


def memory_budget(device: torch.device, max_memory: str | None) -> int | None:
    """Return the bytes that a job may use on ``device``: the free memory, limited to ``max_memory``.

    On a CPU the budget is for the whole process, so memory that it already uses counts as free. None if neither is
    known. Raises UsageError for an invalid ``max_memory``.
    """
    asked = parse_memory(max_memory) if max_memory is not None else None
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif backend := backend_of(device):
        free = backend.free_bytes(device)
    else:
        free = host_bytes_available()
        free = free + resident_bytes() if free is not None else None
    known = [count for count in (asked, free) if count is not None]
    return min(known) if known else None


def memory_budgets(devices: Sequence[torch.device], max_memory: str | None) -> list[int | None]:
    """Return the bytes that a job may use on each device, see ``memory_budget``; ``max_memory`` is one size for all, or
    one for each, separated by commas."""
    sizes = [None] if max_memory is None else max_memory.split(",")
    return [memory_budget(device, sizes[at % len(sizes)]) for at, device in enumerate(devices)]


def plan_upscale_memory(
    profile: Profile,
    plan: UpscalePlan,
    *,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
    fp8_parts: frozenset[str] = frozenset(),
    budget_bytes: int | None = None,
    encodes_text: bool = True,
    deep: bool = False,
) -> MemoryPlan:
    """Plan the memory of an upscale with ``profile``, its coders as chosen.

    ``fp8_parts`` are in 8 bits, see ``MemoryWork``; ``encodes_text`` is False if the
    prompt's embedding is already known; ``deep`` frames have 16 bits. Raises OutOfMemory
    if the smallest plan does not fit ``budget_bytes`` (None: not known).
    """
    profile = profile.at_scale(plan.scale)
    height_px, width_px = plan.padded
    sides = (plan.source, plan.target)
    frames = [3 * (2 if deep else 1) * height * width for height, width in sides]
    work = MemoryWork(
        latents=(height_px // 8, width_px // 8),
        group_latents=profile.group_latents,
        text_encoder=profile.text_encoder if encodes_text and profile.upscales_by_words else None,
        encoder=None if profile.pixels else profile.encoder,
        upsampler=None if profile.pixels else profile.upsampler,
        sr_dit=None if profile.pixels else profile.sr_dit,
        decoder=None if profile.pixels else profile.decoder,
        pixels=profile.pixels,
        source=plan.source,
        target=plan.target,
        dtype_of=dtype_of,
        fp8_parts=fp8_parts,
        on_gpu=device.type != "cpu",
        queue_bytes=_queue_bytes(*frames, group_frames=FRAMES_PER_LATENT * profile.group_latents),
    )
    return plan_memory(work, budget_bytes=budget_bytes)


def plan_generation_memory(
    profile: Profile,
    *,
    scale: int,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
    fp8_parts: frozenset[str] = frozenset(),
    long: bool = False,
    low_frames: bool = False,
    clip: GenerationPlan | None = None,
    budget_bytes: int | None = None,
    encodes_text: bool = True,
) -> MemoryPlan:
    """Plan the memory of generating a clip; ``scale`` 1 stays at the base size,
    ``low_frames`` keeps frames of that size too. ``long`` selects the generator's long
    variant; a short ``clip`` has smaller groups (None: any length). Raises OutOfMemory
    like ``plan_upscale_memory``, UsageError for a profile that cannot generate.
    """
    work = _generation_work(
        profile,
        scale=scale,
        dtype_of=dtype_of,
        fp8_parts=fp8_parts,
        on_gpu=device.type != "cpu",
        long=long,
        low_frames=low_frames,
        clip=clip,
        encodes_text=encodes_text,
    )
    return plan_memory(work, budget_bytes=budget_bytes, host_budget_bytes=host_bytes_available())


def plan_paired_memory(
    profile: Profile,
    *,
    scale: int,
    devices: Sequence[torch.device],
    dtype_of: Callable[[str], torch.dtype],
    fp8_parts: frozenset[str] = frozenset(),
    long: bool = False,
    low_frames: bool = False,
    clip: GenerationPlan | None = None,
    budgets: Sequence[int | None] = (None, None),
    encodes_text: bool = True,
) -> PairedPlan:
    """Plan the memory of generating a clip on two devices, each within its own budget, see ``plan_generation_memory``.

    Raises OutOfMemory, naming the device whose smallest plan does not fit.
    """
    work = _generation_work(
        profile,
        scale=scale,
        dtype_of=dtype_of,
        fp8_parts=fp8_parts,
        on_gpu=devices[0].type != "cpu",
        long=long,
        low_frames=low_frames,
        clip=clip,
        encodes_text=encodes_text,
    )
    first = replace(work, upsampler=None, sr_dit=None, decoder=None, low_decoder=None)
    second = replace(work, text_encoder=None, generator=None)

    plans: list[MemoryPlan] = []
    for device, part, budget in zip(devices, (first, second), budgets, strict=True):
        try:
            plans.append(plan_memory(part, budget_bytes=budget))
        except OutOfMemory as error:
            raise OutOfMemory(f"{device}: {error}") from error
    return PairedPlan(devices=(str(devices[0]), str(devices[1])), plans=(plans[0], plans[1]))


def _generation_work(
    profile: Profile,
    *,
    scale: int,
    dtype_of: Callable[[str], torch.dtype],
    fp8_parts: frozenset[str],
    on_gpu: bool,
    long: bool,
    low_frames: bool,
    clip: GenerationPlan | None,
    encodes_text: bool,
) -> MemoryWork:
    """Return what generating a clip computes, see ``plan_generation_memory``."""
    generator = profile.long_generator if long else profile.generator
    if generator is None:
        raise UsageError(f"{profile.name} cannot generate; choose another model with --model")

    refines = scale > 1
    low_frames = low_frames or not refines
    profile = profile.at_scale(scale) if refines else profile
    height_px, width_px = profile.base_size
    frame_bytes = 3 * height_px * width_px * scale**2
    drawn = generator.chunk_latents * profile.chunks_per_group(generator)
    drawn = min(drawn, max(clip.groups)) if clip is not None else drawn
    return MemoryWork(
        latents=(height_px // 8, width_px // 8),
        group_latents=profile.group_latents,
        drawn_latents=drawn,
        text_encoder=profile.text_encoder if encodes_text else None,
        generator=generator,
        upsampler=profile.upsampler if refines else None,
        sr_dit=profile.sr_dit if refines else None,
        decoder=profile.decoder if refines else None,
        low_decoder=profile.base_decoder if low_frames else None,
        dtype_of=dtype_of,
        fp8_parts=fp8_parts,
        on_gpu=on_gpu,
        queue_bytes=_queue_bytes(
            frame_bytes,
            group_frames=FRAMES_PER_LATENT * drawn,
            frames=None if clip is None else clip.total_frames,
        ),
    )


def _queue_bytes(*frame_bytes: int, group_frames: int, frames: int | None = None) -> int:
    """Return the bytes in queues: frames read, if any, and groups of finished ones, no
    more than the ``frames`` of the clip where their number is known."""
    *read, made = frame_bytes
    waiting = sum(queue_places(size) * size for size in read)
    places = queue_places(made, group_frames=group_frames)
    if frames is not None:
        return waiting + min(places, frames) * made + min(_spool_bytes(made), frames * made)
    return waiting + places * made + _spool_bytes(made)


def _spool_bytes(frame_bytes: int) -> int:
    """Return the bytes of the current segment's pictures, which are kept in case of a
    stop."""
    return min(SPOOL_BYTES, SEGMENT_FRAMES * frame_bytes)


def describe_memory(plan: MemoryPlan | PairedPlan) -> list[str]:
    """Describe a job's memory and the concessions made to fit, in a few lines for each device."""
    if isinstance(plan, PairedPlan):
        named = zip(plan.devices, plan.plans, strict=True)
        return [line for device, each in named for line in _describe(each, f"memory of {device}")]
    return _describe(plan, "memory")


def _describe(plan: MemoryPlan, of: str) -> list[str]:
    there = f" of {plan.budget_bytes / 1e9:.2f} GB" if plan.budget_bytes is not None else ""
    largest = sorted(plan.parts, key=lambda part: part.bytes, reverse=True)[:_LARGEST]
    lines = [
        f"{of}: {plan.total / 1e9:.2f} GB{there} at the peak",
        f"  largest parts: {', '.join(f'{part.name} {part.bytes / 1e9:.2f}' for part in largest)}",
    ]
    lines += [f"  {plan.host_bytes / 1e9:.2f} GB in host memory"] if plan.host_bytes else []
    kinds = {False: "same result", True: "other pixels"}
    return lines + [f"  {kinds[step.changes_pixels]}: {step.text}" for step in plan.steps]


def memory_effect(settings: MemorySettings) -> str:
    """Return how a memory plan changes the result; on a GPU even smaller pieces may
    change the order of summation."""
    pieces = f", {settings.decode_latents} latents decoded at once" if settings.decode_latents else ""
    return f"kv_len {settings.kv_len}, groups of {settings.group_latents}{pieces}"
