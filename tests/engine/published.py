"""The planned memory of the published model."""

import torch

from ultraflash_cli.engine.footprint.plan import MemoryPlan, MemoryWork
from ultraflash_cli.engine.profiles import ULTRAFLASH

__all__ = ["part", "published"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def published(scale: int, *, generates: bool, long: bool = False) -> MemoryWork:
    """The published model at its own sizes and precisions, on a GPU."""
    profile, own = ULTRAFLASH.at_scale(scale), dict(ULTRAFLASH.precisions)
    generator = profile.long_generator if long else profile.generator
    return MemoryWork(
        latents=(60, 104),
        text_encoder=profile.text_encoder,
        generator=generator if generates else None,
        encoder=None if generates else profile.encoder,
        upsampler=profile.upsampler,
        sr_dit=profile.sr_dit,
        decoder=profile.decoder,
        source=None if generates else (480, 832),
        dtype_of=lambda part: DTYPES[own[part]],
    )


def part(plan: MemoryPlan, name: str) -> int:
    return {each.name: each.bytes for phase in plan.phases for each in phase.parts}[name]
