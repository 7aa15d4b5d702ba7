"""Values that describe a job's computation, its memory settings and its memory plan."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ultraflash_cli.engine.stages.decoder import DecoderConfig
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import (
    LatentUpsamplerConfig,
)
from ultraflash_cli.engine.stages.pixel_path import PixelPathConfig
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.engine.stages.text_encoder import TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig

__all__ = [
    "MemoryPart",
    "MemoryPhase",
    "MemoryPlan",
    "MemorySettings",
    "MemoryStep",
    "MemoryWork",
    "PairedPlan",
]


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """Memory settings of a job; the defaults keep everything resident."""

    offload_text: bool = False
    """Whether to free the text encoder once the prompts are encoded, before the other
    networks are loaded."""
    offload_generator: bool = False
    """Whether to keep the generator, its cache and its context in host memory while a
    group is refined and decoded."""
    decode_latents: int | None = None
    """Latent frames decoded together, after which their frames are moved to host
    memory; None for a whole group."""
    kv_len: int | None = None
    """Maximum number of temporal blocks in the SR transformer's cache; None without an
    SR transformer."""
    group_latents: int = 6
    """Latent frames processed together by the cascade."""

    def apply_to(self, config: SrDitConfig) -> SrDitConfig:
        """Return the config of the SR transformer under these settings."""
        kv_len = self.kv_len or config.kv_len
        return replace(
            config,
            kv_len=min(kv_len, config.kv_len),
            kv_schedule=tuple(min(kv_len, length) for length in config.kv_schedule),
            group_latents=self.group_latents,
        )


@dataclass(frozen=True, kw_only=True)
class MemoryWork:
    """The computation of a job: configs (None for unused networks), sizes,
    precisions."""

    latents: tuple[int, int]
    """Height and width of the low-resolution latents."""
    group_latents: int = 6
    """Latent frames processed together by the cascade."""
    drawn_latents: int | None = None
    """Number of latent frames that are generated and returned together; None for a
    group."""
    text_encoder: TextEncoderConfig | PromptEncoderConfig | None = None
    generator: GeneratorConfig | None = None
    encoder: EncoderConfig | WanVaeConfig | None = None
    upsampler: LatentUpsamplerConfig | None = None
    """The upsampler, if latents are enlarged; it determines the scale."""
    sr_dit: SrDitConfig | None = None
    decoder: DecoderConfig | None = None
    """Decoder of the high-resolution latents."""
    low_decoder: DecoderConfig | None = None
    """Decoder of the low-resolution latents, if their frames are requested."""
    pixels: PixelPathConfig | None = None
    """The pixel path, if frames are enlarged instead of latents."""
    source: tuple[int, int] | None = None
    """Height and width in pixels of the frames of a clip; None if none is read."""
    target: tuple[int, int] | None = None
    """Height and width of the pictures in pixels; None for the decoder's size."""
    dtype_of: Callable[[str], torch.dtype] = lambda _: torch.bfloat16
    """Dtype of each part: text_encoder, generator, encoder or wan_vae, upsampler,
    sr_dit, decoder, pixels."""
    fp8_parts: frozenset[str] = frozenset()
    """Transformers in 8 bits. This halves their caches; weights are planned in the
    part's dtype, in which they are loaded."""
    on_gpu: bool = True
    """Whether the budget is that of a GPU, in which case host memory is separate and
    half precision is not widened."""
    batch: int = 1
    queue_bytes: int = 0
    """Host memory of queued pictures."""

    @property
    def scale(self) -> int:
        """Growth per side."""
        enlarging = self.upsampler or self.pixels
        return enlarging.scale if enlarging else 1

    @property
    def held_latents(self) -> int:
        """Latent frames whose decoded frames are alive at once."""
        return self.drawn_latents or self.group_latents

    @property
    def high(self) -> tuple[int, int]:
        """Height and width of the high-resolution latents."""
        return self.latents[0] * self.scale, self.latents[1] * self.scale


@dataclass(frozen=True, kw_only=True)
class MemoryPart:
    """A part of the memory of a job."""

    name: str
    bytes: int
    doubled: bool = False
    """Whether CUDA graphs and side streams may hold a second copy."""


@dataclass(frozen=True, kw_only=True)
class MemoryPhase:
    """A phase of the work, with everything in memory at its peak."""

    name: str
    parts: tuple[MemoryPart, ...]

    @property
    def total(self) -> int:
        """Size in bytes of all parts."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class MemoryStep:
    """A concession made to reduce memory."""

    text: str
    """Description of the concession."""
    changes_pixels: bool
    """Whether the result differs from the full plan's."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory of a job under the chosen settings."""

    phases: tuple[MemoryPhase, ...]
    """Phases in the order of the work."""
    settings: MemorySettings
    steps: tuple[MemoryStep, ...] = ()
    """Concessions against the full plan."""
    budget_bytes: int | None = None
    """The budget; None if unknown."""
    state_bytes: int = 0
    """Size of a stream's state saved between groups."""
    host_bytes: int = 0
    """Memory moved from the device to the host."""

    @property
    def peak(self) -> MemoryPhase:
        """The largest phase."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def parts(self) -> tuple[MemoryPart, ...]:
        """Everything in memory at the peak, largest first; the sum is ``total``."""
        return tuple(sorted(self.peak.parts, key=lambda part: -part.bytes))

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.peak.total

    @property
    def totals(self) -> dict[str, int]:
        """Bytes at the peak by device where there are two; see ``PairedPlan``."""
        return {}

    @property
    def beside_bytes(self) -> int:
        """Upper bound on the additional memory of CUDA graphs and side streams: a
        second copy of activations and states."""
        parts = {part.name: part for phase in self.phases for part in phase.parts}
        return sum(part.bytes for part in parts.values() if part.doubled)

    @property
    def ring_bytes(self) -> int:
        """Size in bytes of the SR transformer's caches."""
        parts = {part.name: part.bytes for phase in self.phases for part in phase.parts}
        return parts.get("SR transformer KV rings", 0)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Descriptions of the steps that change pixels."""
        return tuple(
            f"for lack of memory: {step.text}" for step in self.steps if step.changes_pixels
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Descriptions of the steps that do not change pixels."""
        return tuple(step.text for step in self.steps if not step.changes_pixels)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "total_bytes": self.total,
            "budget_bytes": self.budget_bytes,
            "host_bytes": self.host_bytes,
            "state_bytes": self.state_bytes,
            "peak": self.peak.name,
            "parts": [{"name": part.name, "bytes": part.bytes} for part in self.parts],
            "phases": {phase.name: phase.total for phase in self.phases},
            "settings": dataclasses.asdict(self.settings),
            "steps": [dataclasses.asdict(step) for step in self.steps],
        }


@dataclass(frozen=True, kw_only=True)
class PairedPlan:
    """Memory of a job on two devices: what generates on the first, everything after it
    on the second."""

    devices: tuple[str, str]
    plans: tuple[MemoryPlan, MemoryPlan]

    @property
    def settings(self) -> MemorySettings:
        """The settings of both."""
        first, second = (plan.settings for plan in self.plans)
        return replace(second, offload_text=first.offload_text)

    @property
    def totals(self) -> dict[str, int]:
        """Bytes at the peak, by device."""
        totals = [plan.total for plan in self.plans]
        return dict(zip(self.devices, totals, strict=True))

    @property
    def total(self) -> int:
        """Bytes at the peak of the fuller device."""
        return max(self.totals.values())

    @property
    def state_bytes(self) -> int:
        """Size of a stream's state saved between groups."""
        return sum(plan.state_bytes for plan in self.plans)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Descriptions of the steps that change pixels."""
        return tuple(warning for plan in self.plans for warning in plan.warnings)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, ready for JSON: the first device's plan, and in it the
        ``second``."""
        first, second = (
            {"device": device, **plan.as_json()}
            for device, plan in zip(self.devices, self.plans, strict=True)
        )
        return {**first, "second": second}
