"""The memory of the machine and the plan that fits it: budget, plan by job, words for people."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.spool import MEMORY_BYTES as SPOOL_BYTES
from ultraflash_cli.jobs.writing import SEGMENT_FRAMES, queue_places

if TYPE_CHECKING:
    import torch

    from ultraflash_cli.engine.memory import MemoryPlan
    from ultraflash_cli.engine.plan import UpscalePlan
    from ultraflash_cli.engine.profiles import Profile

__all__ = [
    "describe_memory",
    "host_bytes_available",
    "memory_budget",
    "parse_memory",
    "plan_generation_memory",
    "plan_upscale_memory",
]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

_GROUP_FILES = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Limit, use and its kinds of a container's memory, as the kernel's second and first interface tell them."""


def parse_memory(text: str) -> int:
    """Return the bytes that ``6G``, ``512M``, ``5.5GB``, ``6GiB`` or a plain number stands for; G is 10^9.

    Raises UsageError for anything else and for nothing at all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    count = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if count < 1:
        raise UsageError(f"--max-memory is a size such as 6G, 512M or 6GiB, not {text!r}.")
    return count


def memory_budget(device: "torch.device", max_memory: str | None) -> int | None:
    """Return the bytes a job may take on ``device``: what is free there, and no more than ``max_memory``.

    None where neither is known. Raises UsageError for a ``max_memory`` that cannot be read.
    """
    asked = parse_memory(max_memory) if max_memory is not None else None
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = host_bytes_available()
    known = [count for count in (asked, free) if count is not None]
    return min(known) if known else None


def host_bytes_available(root: Path = Path("/")) -> int | None:
    """Return the memory of the host that is free or can be freed, within a container's limit; None if unknown."""
    known = [count for count in (_available(root), _within_limit(root)) if count is not None]
    return min(known) if known else None


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    for name in ("MemAvailable", "MemFree"):
        if fields.get(name, [""])[0].isdecimal():
            return int(fields[name][0]) * 1024
    return None


def _within_limit(root: Path) -> int | None:
    """Return what a container may still take; pages of files that it can drop count as free."""
    for limit, used, kinds in _GROUP_FILES:
        try:
            most = (root / limit).read_text().strip()
            now = int((root / used).read_text())
            droppable = re.search(r"^(?:total_)?inactive_file (\d+)$", (root / kinds).read_text(), re.MULTILINE)
        except (OSError, ValueError):
            continue
        if most.isdecimal():
            return max(0, int(most) - now + (int(droppable[1]) if droppable else 0))
    return None


def plan_upscale_memory(
    profile: "Profile",
    plan: "UpscalePlan",
    *,
    device: "torch.device",
    dtype_of: "Callable[[str], torch.dtype]",
    budget_bytes: int | None = None,
    encodes_text: bool = True,
    deep: bool = False,
) -> "MemoryPlan":
    """Plan the memory of an upscale with ``profile``, its coders as chosen.

    ``encodes_text`` is False where the prompt's embedding is known already; ``deep`` frames have 16 bits. Raises
    OutOfMemory where the smallest plan does not fit ``budget_bytes`` (None: not known).
    """
    from ultraflash_cli.engine.memory import MemoryWork, plan_memory
    from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT

    profile = profile.at_scale(plan.scale)
    height_px, width_px = plan.padded
    sides = (plan.source, plan.target)
    frames = [3 * (2 if deep else 1) * height * width for height, width in sides]
    work = MemoryWork(
        latents=(height_px // 8, width_px // 8),
        group_latents=profile.group_latents,
        text_encoder=profile.text_encoder if encodes_text and profile.refines_by_words else None,
        encoder=None if profile.pixels else profile.encoder,
        upsampler=None if profile.pixels else profile.upsampler,
        sr_dit=None if profile.pixels else profile.sr_dit,
        decoder=None if profile.pixels else profile.decoder,
        pixels=profile.pixels,
        source=plan.source,
        target=plan.target,
        dtype_of=dtype_of,
        on_gpu=device.type != "cpu",
        queue_bytes=_queue_bytes(*frames, group_frames=FRAMES_PER_LATENT * profile.group_latents),
    )
    return plan_memory(work, budget_bytes=budget_bytes)


def plan_generation_memory(
    profile: "Profile",
    *,
    scale: int,
    device: "torch.device",
    dtype_of: "Callable[[str], torch.dtype]",
    long: bool = False,
    low_frames: bool = False,
    budget_bytes: int | None = None,
    encodes_text: bool = True,
) -> "MemoryPlan":
    """Plan the memory of making a clip; ``scale`` 1 stays at the base size, ``low_frames`` keeps those frames too.

    ``long`` takes the generator's long variant. Raises OutOfMemory as ``plan_upscale_memory`` does, UsageError for a
    profile that cannot generate.
    """
    from ultraflash_cli.engine.memory import MemoryWork, plan_memory
    from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT

    generator = profile.long_generator if long else profile.generator
    if generator is None:
        raise UsageError(f"the model {profile.name} cannot generate; --model names another.")
    refines = scale > 1
    low_frames = low_frames or not refines or not profile.refines_latents
    profile = profile.at_scale(scale) if refines else profile
    height_px, width_px = profile.base_size
    frame_bytes = 3 * height_px * width_px * scale**2
    work = MemoryWork(
        latents=(height_px // 8, width_px // 8),
        group_latents=profile.group_latents,
        drawn_latents=generator.chunk_latents * profile.chunks_per_group(generator),
        text_encoder=profile.text_encoder if encodes_text else None,
        generator=generator,
        upsampler=profile.upsampler if refines else None,
        sr_dit=profile.sr_dit if refines else None,
        decoder=profile.decoder if refines else None,
        pixels=profile.pixels if refines and not profile.refines_latents else None,
        low_decoder=profile.base_decoder if low_frames else None,
        dtype_of=dtype_of,
        on_gpu=device.type != "cpu",
        queue_bytes=_queue_bytes(
            frame_bytes,
            group_frames=FRAMES_PER_LATENT * generator.chunk_latents * profile.chunks_per_group(generator),
        ),
    )
    return plan_memory(work, budget_bytes=budget_bytes, host_budget_bytes=host_bytes_available())


def _queue_bytes(*frame_bytes: int, group_frames: int) -> int:
    """Return what queues hold: frames that were read, if any, and at the end groups of finished ones."""
    *read, made = frame_bytes
    waiting = sum(queue_places(size) * size for size in read)
    return waiting + queue_places(made, group_frames=group_frames) * made + _spool_bytes(made)


def _spool_bytes(frame_bytes: int) -> int:
    """Return what the pictures of a segment in hand take, which are held for the case of a stop."""
    return min(SPOOL_BYTES, SEGMENT_FRAMES * frame_bytes)


def describe_memory(plan: "MemoryPlan") -> list[str]:
    """Say in a few lines what a job takes and what it gives up for that."""
    there = f" of {plan.budget_bytes / 1e9:.2f} GB" if plan.budget_bytes is not None else ""
    lines = [f"memory: {plan.total / 1e9:.2f} GB{there} at the peak", f"  {plan.sum_line()}"]
    lines += [f"  {plan.host_bytes / 1e9:.2f} GB in host memory"] if plan.host_bytes else []
    kinds = {False: "same result", True: "other pixels"}
    return lines + [f"  {kinds[step.changes_pixels]}: {step.text}" for step in plan.steps]
