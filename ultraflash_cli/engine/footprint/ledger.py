"""Contents of memory in each phase of a job: weights, states, activations, frames."""

import math
from collections.abc import Iterable

from ultraflash_cli.engine.footprint.activations import (
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
from ultraflash_cli.engine.footprint.networks import initial_state, parameters
from ultraflash_cli.engine.footprint.plan import (
    MemoryPart,
    MemoryPhase,
    MemorySettings,
    MemoryWork,
)
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, LATENT_PX
from ultraflash_cli.engine.stage import state_bytes
from ultraflash_cli.engine.stages.decoder import DecoderConfig
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsamplerConfig
from ultraflash_cli.engine.stages.pixel_path import PixelPathConfig
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.engine.stages.text_encoder import TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig

__all__ = ["phases_of", "saved_bytes"]

RESERVE = 0.04
"""Share reserved on a GPU for rounding and fragmentation, relative to everything else.
A guess, not measured."""
RESERVE_ON_A_CPU = 0.25
"""The same on a CPU, including the memory of the video encoder. Measured peaks of 45
generated frames exceeded the sum of their parts by up to 17 % (480p, 1K, 2K; glibc,
2026-11-30)."""
RESERVE_ON_A_GPU_BYTES = 400_000_000
"""Additional bytes for workspaces of cuBLAS and cuDNN. A guess, not measured."""
PROGRAM_BYTES = 420_000_000
"""Resident memory of Python, torch and FFmpeg before a job starts. Counted on a CPU,
where the budget is for the whole process."""

FLOAT32 = 4


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
    """Memory by part and phase, and bytes moved to the host."""

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

    def close(self, *, on_gpu: bool) -> tuple[MemoryPhase, ...]:
        """Add the reserves, and return the phases."""
        rate = RESERVE if on_gpu else RESERVE_ON_A_CPU
        for parts in self._parts.values():
            reserve = int(rate * sum(part.bytes for part in parts))
            reserve += RESERVE_ON_A_GPU_BYTES if on_gpu else 0
            parts.append(MemoryPart(name="reserve", bytes=reserve))
            if not on_gpu:
                name = "Python and its libraries"
                parts.append(MemoryPart(name=name, bytes=PROGRAM_BYTES))
        return tuple(
            MemoryPhase(name=name, parts=tuple(parts))
            for name, parts in self._parts.items()
        )


def phases_of(
    work: MemoryWork, settings: MemorySettings
) -> tuple[tuple[MemoryPhase, ...], int]:
    """Return the memory of each phase, and the bytes moved to the host."""
    there = {
        "encode prompt": work.text_encoder,
        "generate": work.generator,
        "encode": work.encoder,
        "upsample": work.upsampler,
        "refine": work.sr_dit,
        "decode": work.decoder or work.low_decoder,
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
        _add_upsampler(ledger, work, work.upsampler, settings, settled)
    if work.sr_dit:
        _add_sr_dit(ledger, work, settings.apply_to(work.sr_dit), settled)
    if work.decoder:
        _add_decoder(ledger, work, work.decoder, settings, settled, is_low=False)
    if work.low_decoder:
        _add_decoder(ledger, work, work.low_decoder, settings, settled, is_low=True)
    if work.pixels:
        _add_pixels(ledger, work, work.pixels, settled)

    if not work.on_gpu:
        ledger.add("frames in queues", work.queue_bytes, settled)
    if work.generator or work.encoder or work.upsampler:
        channels = work.upsampler.latent_channels if work.upsampler else 16
        high = 4 * math.prod(work.high) if work.upsampler else 0
        values = channels * (math.prod(work.latents) + high)
        count = work.drawn_latents or settings.group_latents
        ledger.add("latents of the group", FLOAT32 * count * values * work.batch, settled)
    ledger.add("latents generated ahead", _ahead_bytes(work), settled)
    return ledger.close(on_gpu=work.on_gpu), ledger.host_bytes


def _add_text_encoder(
    ledger: _Ledger,
    config: TextEncoderConfig | PromptEncoderConfig,
    element: int,
    settings: MemorySettings,
) -> None:
    if isinstance(config, PromptEncoderConfig):
        count = parameters(config)
        activations = prompt_encoder_activations(config, element)
    else:
        count = text_encoder_parameters(config)
        activations = text_encoder_activations(config, element)
    phases = ("encode prompt",) if settings.offload_text else _EVERYWHERE
    ledger.add("text encoder weights", count * element, phases)
    ledger.add("text encoder activations", activations, ("encode prompt",), doubled=True)


def _add_generator(
    ledger: _Ledger,
    work: MemoryWork,
    config: GeneratorConfig,
    settings: MemorySettings,
    settled: tuple[str, ...],
) -> None:
    dtype, fp8 = work.dtype_of("generator"), "generator" in work.fp8_parts
    height, width = work.latents
    state = initial_state(config, dtype, work.batch, height, width, fp8=fp8)
    held = {
        "generator weights": parameters(config) * dtype.itemsize,
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
        config,
        height=height,
        width=width,
        element=dtype.itemsize,
        cached=1 if fp8 else dtype.itemsize,
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
    ledger.add("encoder weights", parameters(config) * dtype.itemsize, settled)
    ledger.add("encoder state", need.memories * element, settled, doubled=True)
    ledger.add(
        "encoder activations",
        (need.working + 2 * need.memories) * element,
        ("encode",),
        doubled=True,
    )


def _add_upsampler(
    ledger: _Ledger,
    work: MemoryWork,
    config: LatentUpsamplerConfig,
    settings: MemorySettings,
    settled: tuple[str, ...],
) -> None:
    dtype = work.dtype_of("upsampler")
    height, width = work.latents
    state = state_bytes(initial_state(config, dtype, work.batch, height, width))
    together = settings.group_latents if work.on_gpu else 1
    need = upsampler_activations(config, height=height, width=width, latents=together)
    count = (need.working + 2 * need.memories) * dtype.itemsize * work.batch
    ledger.add("upsampler weights", parameters(config) * dtype.itemsize, settled)
    ledger.add("upsampler state", state, settled, doubled=True)
    ledger.add("upsampler activations", count, ("upsample",), doubled=True)


def _add_sr_dit(
    ledger: _Ledger, work: MemoryWork, config: SrDitConfig, settled: tuple[str, ...]
) -> None:
    dtype, fp8 = work.dtype_of("sr_dit"), "sr_dit" in work.fp8_parts
    height, width = work.high
    state = initial_state(config, dtype, work.batch, height, width, fp8=fp8)
    ledger.add(
        "SR transformer weights",
        parameters(config) * dtype.itemsize,
        settled,
    )
    ledger.add("SR transformer KV rings", state_bytes(state.caches), settled, doubled=True)
    ledger.add("SR transformer context", state_bytes(state.context), settled)

    activations = sr_dit_activations(
        config,
        frames=config.group_latents,
        height=height,
        width=width,
        kv_len=config.longest_kv,
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
    is_first = is_low and work.decoder is not None
    name = "low-resolution decoder" if is_first else "decoder"
    state = state_bytes(initial_state(config, dtype, work.batch, height, width))
    if config != work.decoder or not is_low:
        ledger.add(f"{name} weights", parameters(config) * dtype.itemsize, settled)
    ledger.add(f"{name} state", state, settled, doubled=True)

    # Recurrent memories from the group's start, of the previous piece and of the
    # current one are alive at once.
    before = "generate" if work.generator else "upsample"
    phases = (before,) if is_first else ("decode",)
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
        latents += settings.group_latents  # the current piece, and all pieces

    frames, plane = FRAMES_PER_LATENT * latents, 3 * LATENT_PX**2 * height * width
    decoded = frames * plane * work.batch * dtype.itemsize
    kept = ("generate", *_REFINING) if is_first else ("decode", "finish")
    ledger.add(f"{name}'s frames", decoded, kept, doubled=True)
    if is_first:
        return
    _add_pictures(ledger, work, plane)


def _add_pixels(
    ledger: _Ledger,
    work: MemoryWork,
    config: PixelPathConfig,
    settled: tuple[str, ...],
) -> None:
    """Add the pixel path and its frames."""
    dtype = work.dtype_of("pixels")
    height, width = (LATENT_PX * side for side in work.latents)
    state = state_bytes(initial_state(config, dtype, work.batch, height, width))
    frames = FRAMES_PER_LATENT * work.held_latents
    together = frames if work.on_gpu else 1
    need = pixel_path_activations(
        config, height=height, width=width, element=dtype.itemsize
    )
    plane = 3 * config.scale**2 * height * width

    ledger.add("pixel path weights", parameters(config) * dtype.itemsize, settled)
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
    """Add the finished frames, each of ``plane`` values."""
    phases = ("decode", "enlarge", "finish")
    target = 3 * math.prod(work.target) if work.target else plane
    ledger.add("a picture in work", FLOAT32 * (2 * plane + 4 * target), ("finish",))
    if not work.on_gpu:
        ledger.add("pictures", FRAMES_PER_LATENT * work.held_latents * target, phases)


def saved_bytes(work: MemoryWork, settings: MemorySettings) -> int:
    """Return the bytes of a saved state: rings and recurrent memories."""
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

    saved = 0
    for part, config, size in stages:
        if config:
            dtype, fp8 = work.dtype_of(part), part in work.fp8_parts
            state = initial_state(config, dtype, work.batch, *size, fp8=fp8)
            saved += state_bytes(state) - state_bytes(getattr(state, "context", ()))
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
