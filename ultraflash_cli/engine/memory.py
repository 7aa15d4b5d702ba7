"""Estimate a job's memory before anything is loaded; find a smaller plan if it does not
fit."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ultraflash_cli.engine.activations import (
    decoder_activations,
    encoder_activations,
    generator_activations,
    pixel_path_activations,
    prompt_encoder_activations,
    sr_dit_activations,
    text_encoder_activations,
    text_encoder_parameters,
    upsampler_activations,
    wan_vae_activations,
)
from ultraflash_cli.engine.sampling import Sampler
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, LATENT_PX
from ultraflash_cli.engine.stage import state_bytes
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import (
    LatentUpsampler,
    LatentUpsamplerConfig,
)
from ultraflash_cli.engine.stages.pixel_path import PixelPath, PixelPathConfig
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoder, PromptEncoderConfig
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig
from ultraflash_cli.engine.stages.text_encoder import TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig, WanVaeEncoder
from ultraflash_cli.errors import OutOfMemory

__all__ = [
    "MemoryPart",
    "MemoryPhase",
    "MemoryPlan",
    "MemorySettings",
    "MemoryStep",
    "MemoryWork",
    "plan_memory",
]

RESERVE = 0.04
"""Share of everything else reserved for rounding and fragmentation. A guess, not
measured."""
RESERVE_ON_A_GPU_BYTES = 400_000_000
"""Workspaces of cuBLAS and cuDNN on top. A guess, not measured."""

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """How a job is run; the defaults keep everything resident."""

    offload_text: bool = False
    """Free the text encoder once the prompts are encoded, before the other networks are
    loaded."""
    offload_generator: bool = False
    """Keep the generator, its cache and its context in host memory while a group is
    refined and decoded."""
    decode_latents: int | None = None
    """Latent frames decoded together, with their frames moved to host memory; None: a
    whole group."""
    kv_len: int | None = None
    """Temporal blocks that the SR transformer remembers at most; None without one."""
    group_latents: int = 6
    """Latent frames that go through the cascade together."""

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
    """What a job computes: configs (None if it does without), sizes, precisions."""

    latents: tuple[int, int]
    """Height and width of the low-resolution latents."""
    group_latents: int = 6
    """Latent frames that go through the cascade together."""
    drawn_latents: int | None = None
    """Latent frames that are generated together, and whose frames leave together; None
    for a group."""
    text_encoder: TextEncoderConfig | PromptEncoderConfig | None = None
    generator: GeneratorConfig | None = None
    encoder: EncoderConfig | WanVaeConfig | None = None
    upsampler: LatentUpsamplerConfig | None = None
    """Returns the scale where latents are enlarged."""
    sr_dit: SrDitConfig | None = None
    decoder: DecoderConfig | None = None
    """Of the high-resolution latents."""
    low_decoder: DecoderConfig | None = None
    """Of the low-resolution latents, where those frames are requested or the pixel path
    reads them."""
    pixels: PixelPathConfig | None = None
    """Of the low-resolution frames, where those are enlarged, not latents."""
    source: tuple[int, int] | None = None
    """Height and width in pixels of the frames of a clip; None if none is read."""
    target: tuple[int, int] | None = None
    """Height and width in pixels of the pictures; None for what the decoder gives."""
    dtype_of: Callable[[str], torch.dtype] = lambda _: torch.bfloat16
    """Dtype of each part: text_encoder, generator, encoder or wan_vae, upsampler,
    sr_dit, decoder, pixels."""
    on_gpu: bool = True
    """Whether the budget is a GPU's: the host's memory is then apart, and half
    precision is not widened."""
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
        """Latent frames whose frames are alive at once."""
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
    """Whether CUDA graphs and side streams may hold it a second time."""


@dataclass(frozen=True, kw_only=True)
class MemoryPhase:
    """A phase of the work, with everything in memory at its peak."""

    name: str
    parts: tuple[MemoryPart, ...]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class MemoryStep:
    """A concession that was made to need less."""

    text: str
    """What is done."""
    changes_pixels: bool
    """Whether the result differs from the full plan's."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory of a job under the chosen settings."""

    phases: tuple[MemoryPhase, ...]
    """In the order of the work."""
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
        """Everything in memory at the peak, the largest first; they sum to
        ``total``."""
        return tuple(sorted(self.peak.parts, key=lambda part: -part.bytes))

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.peak.total

    @property
    def beside_bytes(self) -> int:
        """Upper bound on what CUDA graphs and side streams add: activations and states
        once more."""
        parts = {part.name: part for phase in self.phases for part in phase.parts}
        return sum(part.bytes for part in parts.values() if part.doubled)

    @property
    def ring_bytes(self) -> int:
        """What the SR transformer's caches take."""
        parts = {part.name: part.bytes for phase in self.phases for part in phase.parts}
        return parts.get("SR transformer KV rings", 0)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The steps that change pixels, in words."""
        return tuple(
            f"for lack of memory: {step.text}" for step in self.steps if step.changes_pixels
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """The steps that leave the result as it is, in words."""
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


def plan_memory(
    work: MemoryWork,
    *,
    budget_bytes: int | None = None,
    host_budget_bytes: int | None = None,
) -> MemoryPlan:
    """Find the first plan of the ladder that fits ``budget_bytes`` (None: the full
    plan).

    The ladder: everything on the device; text encoder freed after its work; generator
    in the host's memory while a group is refined; decoding latent by latent; a smaller
    ``kv_len``; smaller groups. Concessions that a later one makes unnecessary are
    dropped. On a CPU nothing can be moved away. ``host_budget_bytes`` bounds what may
    be moved to the host's memory (None: not known). Raises OutOfMemory, with the sum,
    where the smallest plan is too large.
    """
    full = _full(work)
    rungs = [_FULL, *_rungs(work, host_budget_bytes)]
    if budget_bytes is None:
        return _plan(work, full, (), None)
    taken: list[_Rung] = []
    for rung in rungs:
        taken.append(rung)
        if _total(work, _apply(full, taken)) <= budget_bytes:
            return _plan(work, full, _needed(work, full, taken, budget_bytes), budget_bytes)
    smallest = _plan(work, full, tuple(taken), budget_bytes)
    most = " and ".join(part.name for part in smallest.parts[:2])
    raise OutOfMemory(
        f"the smallest plan needs {_gb(smallest.total)} GB, most of it for {most}, and "
        f"{_gb(budget_bytes)} GB may be "
        "used; choose a smaller --res, a larger --max-memory, or a device with more memory"
    )


# The ladder


@dataclass(frozen=True)
class _Rung:
    """A change to the settings."""

    text: str
    changes_pixels: bool
    changes: tuple[tuple[str, Any], ...]


_FULL = _Rung("", False, ())


def _full(work: MemoryWork) -> MemorySettings:
    longest = _longest(work.sr_dit) if work.sr_dit else None
    return MemorySettings(kv_len=longest, group_latents=work.group_latents)


def _longest(config: SrDitConfig) -> int:
    return max(config.kv_schedule, default=config.kv_len)


def _rungs(work: MemoryWork, host_budget_bytes: int | None) -> Iterator[_Rung]:
    if work.text_encoder:
        yield _Rung(
            "text encoder freed after encoding the prompt", False, (("offload_text", True),)
        )
    if work.on_gpu and work.generator and (work.decoder or work.pixels):
        rung = _Rung(
            "generator kept in host memory between groups",
            False,
            (("offload_generator", True),),
        )
        moved_bytes = _phases(work, _apply(_full(work), [rung]))[1]
        if host_budget_bytes is None or moved_bytes <= host_budget_bytes:
            yield rung
    if work.on_gpu and work.group_latents > 1 and work.decoder:
        yield _Rung("decoding latent by latent", False, (("decode_latents", 1),))
    if work.sr_dit:
        longest = _longest(work.sr_dit)
        for kv_len in (k for k in (2, 1) if k < longest):
            yield _Rung(
                f"SR transformer remembers {kv_len} of {longest} blocks",
                True,
                (("kv_len", kv_len),),
            )
    for group in (size for size in (4, 2) if size < work.group_latents):
        text = f"groups of {group} instead of {work.group_latents} latent frames"
        yield _Rung(text, True, (("group_latents", group),))


def _apply(full: MemorySettings, rungs: Iterable[_Rung]) -> MemorySettings:
    changes = {name: value for rung in rungs for name, value in rung.changes}
    return replace(full, **changes)


def _needed(
    work: MemoryWork, full: MemorySettings, taken: list[_Rung], budget_bytes: int
) -> tuple[_Rung, ...]:
    """Drop concessions that turned out unnecessary: pixel-changing ones first, latest
    first."""
    kept = list(taken)
    for rung in sorted(reversed(taken), key=lambda rung: not rung.changes_pixels):
        fewer = [other for other in kept if other is not rung]
        if _total(work, _apply(full, fewer)) <= budget_bytes:
            kept = fewer
    return tuple(kept)


def _plan(
    work: MemoryWork,
    full: MemorySettings,
    rungs: tuple[_Rung, ...],
    budget_bytes: int | None,
) -> MemoryPlan:
    settings = _apply(full, rungs)
    said: dict[tuple[str, ...], _Rung] = {}
    for rung in rungs:  # a later rung of the same kind stands for the earlier ones
        said[tuple(name for name, _ in rung.changes)] = rung
    phases, host_bytes = _phases(work, settings)
    return MemoryPlan(
        phases=phases,
        settings=settings,
        steps=tuple(
            MemoryStep(text=r.text, changes_pixels=r.changes_pixels)
            for r in said.values()
            if r.text
        ),
        budget_bytes=budget_bytes,
        state_bytes=_saved_bytes(work, settings),
        host_bytes=host_bytes,
    )


def _total(work: MemoryWork, settings: MemorySettings) -> int:
    return max(phase.total for phase in _phases(work, settings)[0])


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f}"


# The parts

_EVERYWHERE = (
    "encode prompt",
    "generate",
    "encode",
    "upsample",
    "refine",
    "decode",
    "enlarge",
    "finish",
)
_SETTLED = _EVERYWHERE[1:]
_REFINING = _EVERYWHERE[3:]


class _Ledger:
    """Memory by part and phase, and what is moved elsewhere."""

    def __init__(self, phases: Iterable[str]) -> None:
        self._parts: dict[str, list[MemoryPart]] = {phase: [] for phase in phases}
        self.host_bytes = 0

    def add(
        self, name: str, count: int, phases: Iterable[str], *, doubled: bool = False
    ) -> None:
        part = MemoryPart(name=name, bytes=count, doubled=doubled)
        for phase in phases:
            if phase in self._parts and count:
                self._parts[phase].append(part)

    def close(self, fixed_reserve: int) -> tuple[MemoryPhase, ...]:
        """Add the reserve and return the phases."""
        for parts in self._parts.values():
            share = int(RESERVE * sum(part.bytes for part in parts))
            parts.append(MemoryPart(name="reserve", bytes=share + fixed_reserve))
        return tuple(
            MemoryPhase(name=name, parts=tuple(parts))
            for name, parts in self._parts.items()
        )


def _phases(
    work: MemoryWork, settings: MemorySettings
) -> tuple[tuple[MemoryPhase, ...], int]:
    """Return the memory of each phase, and what is moved to the host."""
    there = {
        "encode prompt": work.text_encoder,
        "generate": work.generator,
        "encode": work.encoder,
        "upsample": work.upsampler,
        "refine": work.sr_dit,
        "decode": work.decoder or (work.low_decoder if not work.pixels else None),
        "enlarge": work.pixels,
        "finish": work.decoder or work.low_decoder or work.pixels,
    }
    ledger = _Ledger(phase for phase in _EVERYWHERE if there[phase])
    settled = _SETTLED if settings.offload_text or not work.text_encoder else _EVERYWHERE
    if work.text_encoder:
        _add_text_encoder(
            ledger, work.text_encoder, work.dtype_of("text_encoder").itemsize, settings
        )
    if work.generator:
        _add_generator(ledger, work, work.generator, settings, settled)
    if work.encoder:
        _add_encoder(ledger, work, work.encoder, settled)
    if work.source:
        shown = LATENT_PX**2 * math.prod(work.latents)
        frames = 3 * FLOAT32 * FRAMES_PER_LATENT * settings.group_latents
        ledger.add("source frames", frames * math.prod(work.source), settled, doubled=True)
        ledger.add(
            "frames of the group", 2 * frames * work.batch * shown, ("encode", *_REFINING)
        )
    if work.upsampler:
        dtype = work.dtype_of("upsampler")
        state = _state(work.upsampler, dtype, work.batch, *work.latents)
        ledger.add(
            "upsampler weights", _parameters(work.upsampler) * dtype.itemsize, settled
        )
        ledger.add("upsampler state", state_bytes(state), settled, doubled=True)
        together = settings.group_latents if work.on_gpu else 1
        need = upsampler_activations(
            work.upsampler, height=work.latents[0], width=work.latents[1], latents=together
        )
        count = (need.working + 2 * need.memories) * dtype.itemsize * work.batch
        ledger.add("upsampler activations", count, ("upsample",), doubled=True)
    if work.sr_dit:
        _add_sr_dit(ledger, work, settings.apply_to(work.sr_dit), settled)
    if work.decoder:
        _add_decoder(ledger, work, work.decoder, settings, settled, is_low=False)
    if work.low_decoder:
        _add_decoder(ledger, work, work.low_decoder, settings, settled, is_low=True)
    if work.pixels:
        _add_pixels(ledger, work, work.pixels, settings, settled)
    if not work.on_gpu:
        ledger.add("frames in queues", work.queue_bytes, settled)
    if work.generator or work.encoder:
        channels = work.upsampler.latent_channels if work.upsampler else 16
        latents = math.prod(work.latents) + (
            4 * math.prod(work.high) if work.upsampler else 0
        )
        count = work.drawn_latents or settings.group_latents
        ledger.add(
            "latents of the group",
            channels * FLOAT32 * count * latents * work.batch,
            settled,
        )
    ledger.add("latents generated ahead", _ahead_bytes(work), settled)
    return ledger.close(RESERVE_ON_A_GPU_BYTES if work.on_gpu else 0), ledger.host_bytes


def _add_text_encoder(
    ledger: _Ledger,
    config: TextEncoderConfig | PromptEncoderConfig,
    element: int,
    settings: MemorySettings,
) -> None:
    if isinstance(config, PromptEncoderConfig):
        parameters, activations = (
            _parameters(config),
            prompt_encoder_activations(config, element),
        )
    else:
        parameters, activations = (
            text_encoder_parameters(config),
            text_encoder_activations(config, element),
        )
    phases = ("encode prompt",) if settings.offload_text else _EVERYWHERE
    ledger.add("text encoder weights", parameters * element, phases)
    ledger.add("text encoder activations", activations, ("encode prompt",), doubled=True)


def _add_generator(
    ledger: _Ledger,
    work: MemoryWork,
    config: GeneratorConfig,
    settings: MemorySettings,
    settled: tuple[str, ...],
) -> None:
    dtype = work.dtype_of("generator")
    height, width = work.latents
    state = _state(config, dtype, work.batch, height, width)
    held = {
        "generator weights": _parameters(config) * dtype.itemsize,
        "generator KV ring": state_bytes(state.rings),
        "generator context": state_bytes(state.context),
        "generator anchor": state_bytes(state.anchor_bcthw),
    }
    phases = settled
    if settings.offload_generator:
        phases = tuple(phase for phase in settled if phase not in _REFINING)
        ledger.host_bytes = sum(held.values())
    for name, count in held.items():
        ledger.add(name, count, phases, doubled=name == "generator KV ring")
    activations = generator_activations(
        config, height=height, width=width, element=dtype.itemsize
    )
    ledger.add(
        "generator activations", activations * work.batch, ("generate",), doubled=True
    )


def _add_encoder(
    ledger: _Ledger,
    work: MemoryWork,
    config: EncoderConfig | WanVaeConfig,
    settled: tuple[str, ...],
) -> None:
    dtype = work.dtype_of("wan_vae" if isinstance(config, WanVaeConfig) else "encoder")
    height, width = (LATENT_PX * side for side in work.latents)
    if isinstance(config, WanVaeConfig):
        need = wan_vae_activations(config, height=height, width=width)
    else:
        need = encoder_activations(config, height=height, width=width)
    element = dtype.itemsize * work.batch
    ledger.add("encoder weights", _parameters(config) * dtype.itemsize, settled)
    ledger.add("encoder state", need.memories * element, settled, doubled=True)
    ledger.add(
        "encoder activations",
        (need.working + 2 * need.memories) * element,
        ("encode",),
        doubled=True,
    )


def _add_sr_dit(
    ledger: _Ledger, work: MemoryWork, config: SrDitConfig, settled: tuple[str, ...]
) -> None:
    dtype = work.dtype_of("sr_dit")
    height, width = work.high
    state = _state(config, dtype, work.batch, height, width)
    ledger.add(
        "SR transformer weights",
        _parameters(_of_any_group(config)) * dtype.itemsize,
        settled,
    )
    ledger.add("SR transformer KV rings", state_bytes(state.caches), settled, doubled=True)
    ledger.add("SR transformer context", state_bytes(state.context), settled)
    activations = sr_dit_activations(
        config,
        frames=config.group_latents,
        height=height,
        width=width,
        kv_len=_longest(config),
        element=dtype.itemsize,
        on_gpu=work.on_gpu,
    )
    ledger.add(
        "SR transformer activations", activations * work.batch, ("refine",), doubled=True
    )


def _add_decoder(
    ledger: _Ledger,
    work: MemoryWork,
    config: DecoderConfig,
    settings: MemorySettings,
    settled: tuple[str, ...],
    *,
    is_low: bool,
) -> None:
    """Add a decoder and its frames; a low-resolution one runs before a group is
    refined."""
    dtype = work.dtype_of("decoder")
    height, width = work.latents if is_low else work.high
    element = dtype.itemsize * work.batch
    latents_once = (
        work.held_latents if is_low else settings.decode_latents or settings.group_latents
    )
    together = config.piece(latents_once, height, width) if work.on_gpu else 1
    need = decoder_activations(config, height=height, width=width, latents=together)
    is_first = is_low and (work.decoder is not None or work.pixels is not None)
    name = "low-resolution decoder" if is_first else "decoder"
    state = state_bytes(_state(config, dtype, work.batch, height, width))
    if config != work.decoder or not is_low:
        ledger.add(f"{name} weights", _parameters(config) * dtype.itemsize, settled)
    ledger.add(f"{name} state", state, settled, doubled=True)
    # Of the memories those of the group's start, of the piece before and of the one in
    # work are alive at once.
    phases = ("generate",) if is_first else ("decode",)
    ledger.add(
        f"{name} activations",
        (need.working + 2 * need.memories) * element,
        phases,
        doubled=True,
    )
    latents = work.held_latents
    if not is_first and settings.decode_latents:
        latents = settings.decode_latents
    elif not is_first and settings.group_latents < latents:
        latents += settings.group_latents  # the piece in work, and all of them
    frames, plane = FRAMES_PER_LATENT * latents, 3 * LATENT_PX**2 * height * width
    decoded = frames * plane * work.batch * dtype.itemsize
    kept = ("generate", *_REFINING) if is_first else ("decode", "finish")
    ledger.add(f"{name}'s frames", decoded, kept, doubled=True)
    if is_first and work.pixels:
        ledger.add("frames to enlarge", FLOAT32 * frames * plane * work.batch, _REFINING)
    if is_first:
        return
    _add_pictures(ledger, work, plane)


def _add_pixels(
    ledger: _Ledger,
    work: MemoryWork,
    config: PixelPathConfig,
    settings: MemorySettings,
    settled: tuple[str, ...],
) -> None:
    """Add the pixel path and its frames."""
    dtype = work.dtype_of("pixels")
    height, width = (LATENT_PX * side for side in work.latents)
    state = state_bytes(_state(config, dtype, work.batch, height, width))
    frames = FRAMES_PER_LATENT * work.held_latents
    together = frames if work.on_gpu else 1
    need = pixel_path_activations(
        config, height=height, width=width, element=dtype.itemsize
    )
    plane = 3 * config.scale**2 * height * width
    ledger.add("pixel path weights", _parameters(config) * dtype.itemsize, settled)
    ledger.add("pixel path state", state, settled, doubled=True)
    ledger.add(
        "pixel path activations", need * work.batch * together, ("enlarge",), doubled=True
    )
    ledger.add(
        "pixel path's frames",
        FLOAT32 * frames * plane * work.batch,
        ("enlarge", "finish"),
        doubled=True,
    )
    _add_pictures(ledger, work, plane)


def _add_pictures(ledger: _Ledger, work: MemoryWork, plane: int) -> None:
    """Add the finished frames, each of ``plane`` numbers."""
    phases = ("decode", "enlarge", "finish")
    target = 3 * math.prod(work.target) if work.target else plane
    ledger.add("a picture in work", FLOAT32 * (2 * plane + 4 * target), ("finish",))
    if not work.on_gpu:
        ledger.add("pictures", FRAMES_PER_LATENT * work.held_latents * target, phases)


def _saved_bytes(work: MemoryWork, settings: MemorySettings) -> int:
    """Return the bytes of a saved state: rings, contexts and memories."""
    sr_dit = settings.apply_to(work.sr_dit) if work.sr_dit else None
    shown = LATENT_PX * work.latents[0], LATENT_PX * work.latents[1]
    stages = (
        ("generator", work.generator, work.latents),
        (
            "wan_vae" if isinstance(work.encoder, WanVaeConfig) else "encoder",
            work.encoder,
            shown,
        ),
        ("upsampler", work.upsampler, work.latents),
        ("sr_dit", sr_dit, work.high),
        ("decoder", work.decoder, work.high),
        ("decoder", work.low_decoder, work.latents),
        ("pixels", work.pixels, shown),
    )
    saved = sum(
        state_bytes(_state(c, work.dtype_of(part), work.batch, *size))
        for part, c, size in stages
        if c
    )
    return saved + _ahead_bytes(work)


def _ahead_bytes(work: MemoryWork) -> int:
    """Return the bytes of the next group's latents, which may be generated ahead."""
    if work.generator is None:
        return 0
    latents = (
        work.batch
        * work.generator.latent_channels
        * work.held_latents
        * math.prod(work.latents)
    )
    return latents * work.dtype_of("generator").itemsize


# Exact numbers, from networks and states without storage

_NETWORKS: dict[type, Callable[..., nn.Module]] = {
    EncoderConfig: Encoder,
    WanVaeConfig: WanVaeEncoder,
    LatentUpsamplerConfig: LatentUpsampler,
    SrDitConfig: SrDit,
    DecoderConfig: Decoder,
    PixelPathConfig: PixelPath,
    GeneratorConfig: Generator,
    PromptEncoderConfig: PromptEncoder,
}
_SMALL_WIDTH = 256
"""Transformers up to this width are built directly; torch's first use of the meta
device takes a second."""


@lru_cache(maxsize=32)
def _network(config: Any) -> nn.Module:
    """Return a network without storage."""
    is_large = isinstance(config, WanVaeConfig) or getattr(config, "dim", 0) > _SMALL_WIDTH
    with torch.device("meta" if is_large else "cpu"):
        return _NETWORKS[type(config)](config).to("meta")


def _of_any_group(config: SrDitConfig) -> SrDitConfig:
    """Return a config that represents all group and cache sizes, which share their
    weights."""
    return replace(config, kv_len=1, kv_schedule=(), group_latents=1)


@lru_cache(maxsize=64)
def _state(config: Any, dtype: torch.dtype, batch: int, height: int, width: int) -> Any:
    """Return a stage's state before the first frame, without storage."""
    network: Any = _network(config).to(dtype)
    stage = Sampler(network) if isinstance(config, GeneratorConfig) else network
    return stage.init_state(batch=batch, height=height, width=width)


def _parameters(config: Any) -> int:
    return sum(parameter.numel() for parameter in _network(config).parameters())
