"""Every streaming stage at a tiny size, for the contract suite; a new stage needs one
entry."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.pixel_refiner import PixelRefiner
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.schedule import Alignment
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig, DecoderInputs, DecoderStage
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler, LatentUpsamplerConfig
from ultraflash_cli.engine.stages.latent_upsampler_v3 import LatentUpsamplerV3, LatentUpsamplerV3Config
from ultraflash_cli.engine.stages.pixel_path import PixelPath, PixelPathConfig
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig, SrDitInputs
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig, WanVaeDecoder, WanVaeEncoder

TINY = Profile(
    name="tiny",
    encoder=EncoderConfig(width=8, blocks=1, latent_channels=4, patch=2, strides=(1, 2, 2), negative_slope=0.1),
    upsampler=LatentUpsamplerConfig(width=8, blocks=2, latent_channels=4, scale=2),
    sr_dit=SrDitConfig(
        dim=16,
        num_heads=2,
        num_layers=2,
        ffn_dim=24,
        freq_dim=8,
        text_dim=8,
        text_len=0,
        latent_channels=4,
        block=(2, 2, 2),
        local_range=3,
        ref_spatial_tokens=4,
        group_latents=2,
        kv_len=2,
        prediction="residual",
    ),
    decoder=DecoderConfig(
        latent_channels=4,
        stages=(
            DecoderStage(width=8, blocks=1, upsample=False, time_growth=2),
            DecoderStage(width=8, blocks=1, upsample=False, time_growth=2),
        ),
        out_width=8,
        memory_init="replicate",
        last_shuffle=8,
    ),
    group_latents=2,
)


PLAIN_DECODER = DecoderConfig(
    latent_channels=4,
    stages=(DecoderStage(width=6), DecoderStage(width=5, time_growth=2), DecoderStage(width=4, time_growth=2)),
    out_width=4,
)

AHEAD = replace(TINY, name="ahead", decoder=PLAIN_DECODER, alignment=Alignment(pad_front=0))
"""An encoder that runs three frames ahead of the decoder."""

READING_DECODER = replace(PLAIN_DECODER, reads_low_frames=True)
"""A decoder that also reads low-resolution frames."""

TINY_VAE = WanVaeConfig(width=4, blocks=1, latent_channels=4, mean=(0.0,) * 4, std=(1.0,) * 4)
WITH_VAE = replace(
    TINY,
    name="with_vae",
    encoder=TINY_VAE,
    decoder=PLAIN_DECODER,
    alignment=Alignment(copy_front=False),
)
"""A model with the full autoencoder's encoder instead of the small one."""


def randomise(network: torch.nn.Module, seed: int = 3) -> None:
    """Set every parameter to random values: a network of zeros hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        fan_in = max(1, parameter[0].numel() if parameter.ndim > 1 else 1)
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * (0.9 / fan_in**0.5))
    network.eval().requires_grad_(False)


def tiny_cascade(profile: Profile = TINY, *, scale: int = 2) -> Cascade:
    """Build the tiny cascade with random weights."""
    profile = profile.at_scale(scale)
    config = profile.encoder
    encoder = WanVaeEncoder(config) if isinstance(config, WanVaeConfig) else Encoder(config)
    upsampling, decoding = profile.latent_stages
    upsampler = LatentUpsampler(upsampling)
    sr_dit, decoder = SrDit(profile.sr_dit) if profile.sr_dit else None, Decoder(decoding)
    for seed, network in enumerate((encoder, upsampler, sr_dit, decoder)):
        if network is not None:
            randomise(network, seed)
    return Cascade(profile, encoder, Refiner(profile, upsampler, sr_dit, decoder))


PIXELS = Profile(
    name="pixels", encoder=TINY.encoder, pixels=PixelPathConfig(width=8, blocks=6, residual_gain=0.1), group_latents=2
)
"""A model that enlarges frames."""


def pixel_cascade(profile: Profile = PIXELS, *, scale: int = 2) -> Cascade:
    """Build the cascade of a model that enlarges frames, with random weights."""
    profile = profile.at_scale(scale)
    assert profile.pixels is not None
    path = PixelPath(profile.pixels)
    randomise(path)
    return Cascade(profile, None, PixelRefiner(profile, path))


@dataclass(frozen=True)
class StageCase:
    """A stage, the length of the clip to feed it, and the way to split its inputs."""

    name: str
    build: Callable[[], Any]
    size: dict[str, int]
    clip: Callable[[torch.Generator], Any]
    """Function that returns the whole clip."""
    frames: int
    """Number of units that a clip can be split into."""
    cut: Callable[[Any, int, int], Any]
    """Function that returns units a..b of a clip."""
    out_time: Callable[[int], int]
    """Number of output frames that depend only on the first n units."""
    group_out: int = 1
    """Number of output frames that are computed together with the first unit."""
    joins: bool = False
    """Whether a step takes several groups at once."""


def _bcthw(channels: int, frames: int, side: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.rand((1, channels, frames, side, side), generator=generator)


def _slice(clip: Tensor, a: int, b: int) -> Tensor:
    return clip[:, :, a:b]


def _built(network: torch.nn.Module) -> Any:
    randomise(network)
    return network


def _plain_decoder() -> Any:
    return _built(Decoder(PLAIN_DECODER))


def _reading_clip(generator: torch.Generator) -> DecoderInputs:
    """Return latents, and the frames of each as channels, at half the size of the
    result."""
    latents = torch.randn((1, 4, 4, 4, 4), generator=generator)
    return DecoderInputs(latents, torch.rand((1, 12, 4, 16, 16), generator=generator))


def _sr_clip(generator: torch.Generator) -> SrDitInputs:
    noise = torch.randn((1, 4, 7, 12, 12), generator=generator)
    return SrDitInputs(noise, torch.randn((1, 4, 7, 12, 12), generator=generator))


def _tiny_sr() -> Any:
    assert TINY.sr_dit is not None
    return _built(SrDit(TINY.sr_dit))


TINY_GENERATOR = GeneratorConfig(
    dim=16,
    num_heads=2,
    num_layers=2,
    ffn_dim=24,
    freq_dim=8,
    text_dim=8,
    text_len=3,
    latent_channels=4,
    steps=(1000, 500),
    window=6,
    sink=1,
    slide=True,
)


def _sampler(config: GeneratorConfig) -> Sampler:
    return Sampler(_built(Generator(config)))


def _generator_cut(clip: Tensor, a: int, b: int) -> GeneratorInputs:
    """Split a clip whose channels are those of the noise, followed by those of each
    draw."""
    noise, draws = clip[:, :4, a:b], clip[:, 4:, a:b]
    return GeneratorInputs(noise, draws.unflatten(1, (draws.shape[1] // 4, 4)))


CASES = (
    StageCase(
        name="encoder",
        joins=True,
        build=lambda: _built(Encoder(EncoderConfig(width=6, blocks=2, latent_channels=4))),
        size={"height": 16, "width": 16},
        clip=_bcthw(3, 14, 16),
        frames=14,
        cut=_slice,
        out_time=lambda n: n // 4,
    ),
    StageCase(
        name="encoder_with_patch_and_replicated_memory",
        joins=True,
        build=lambda: _built(
            Encoder(
                EncoderConfig(width=8, blocks=1, latent_channels=4, patch=2, strides=(1, 2, 2), memory_init="replicate")
            )
        ),
        size={"height": 16, "width": 16},
        clip=_bcthw(3, 9, 16),
        frames=9,
        cut=_slice,
        out_time=lambda n: n // 4,
    ),
    *(
        StageCase(
            name=f"latent_upsampler_x{scale}",
            joins=True,
            build=lambda scale=scale: _built(
                LatentUpsampler(LatentUpsamplerConfig(width=8, blocks=2, latent_channels=4, scale=scale))
            ),
            size={"height": 4, "width": 4},
            clip=_bcthw(4, 5, 4),
            frames=5,
            cut=_slice,
            out_time=lambda n: n,
        )
        for scale in (2, 3)
    ),
    StageCase(
        name="sr_dit",
        build=_tiny_sr,
        size={"height": 12, "width": 12},
        clip=_sr_clip,
        frames=7,
        cut=lambda clip, a, b: SrDitInputs(clip.noise_bcthw[:, :, a:b], clip.cond_bcthw[:, :, a:b]),
        out_time=lambda n: n // 2 * 2,
        group_out=2,
    ),
    StageCase(
        name="generator",
        build=lambda: _sampler(TINY_GENERATOR),
        size={"height": 4, "width": 6},
        clip=lambda generator: torch.randn((1, 8, 11, 4, 6), generator=generator),
        frames=11,
        cut=_generator_cut,
        out_time=lambda n: n // 3 * 3,
        group_out=3,
    ),
    StageCase(
        name="generator_with_independent_first_frame",
        build=lambda: _sampler(
            replace(
                TINY_GENERATOR,
                independent_first_frame=True,
                steps=(1000, 750, 250),
                later_steps=1,
                window=8,
                sink=0,
                slide=False,
            )
        ),
        size={"height": 2, "width": 4},
        clip=lambda generator: torch.randn((1, 12, 8, 2, 4), generator=generator),
        frames=8,
        cut=_generator_cut,
        out_time=lambda n: (n - 1) // 3 * 3 + 1,
    ),
    StageCase(
        name="generator_of_clean_latents",
        build=lambda: _sampler(
            replace(TINY_GENERATOR, prediction="clean", pool_text=True, window=6, sink=0, slide=True)
        ),
        size={"height": 4, "width": 6},
        clip=lambda generator: torch.randn((1, 8, 11, 4, 6), generator=generator),
        frames=11,
        cut=_generator_cut,
        out_time=lambda n: n // 3 * 3,
        group_out=3,
    ),
    StageCase(
        name="decoder",
        joins=True,
        build=_plain_decoder,
        size={"height": 3, "width": 3},
        clip=lambda generator: torch.randn((1, 4, 4, 3, 3), generator=generator),
        frames=4,
        cut=_slice,
        out_time=lambda n: 4 * n,
        group_out=4,
    ),
    StageCase(
        name="decoder_that_reads_low_resolution_frames",
        joins=True,
        build=lambda: _built(Decoder(READING_DECODER)),
        size={"height": 4, "width": 4},
        clip=_reading_clip,
        frames=4,
        cut=lambda clip, a, b: DecoderInputs(clip.latents_bcthw[:, :, a:b], clip.low_bcthw[:, :, a:b]),
        out_time=lambda n: 4 * n,
        group_out=4,
    ),
    StageCase(
        name="decoder_that_ends_in_a_shuffle",
        joins=True,
        build=lambda: _built(Decoder(TINY.latent_stages[1])),
        size={"height": 4, "width": 4},
        clip=lambda generator: torch.randn((1, 4, 4, 4, 4), generator=generator),
        frames=4,
        cut=_slice,
        out_time=lambda n: 4 * n,
        group_out=4,
    ),
    *(
        StageCase(
            name=f"pixel_path_x{scale}",
            joins=True,
            build=lambda scale=scale: _built(PixelPath(PixelPathConfig(width=8, blocks=2, scale=scale))),
            size={"height": 8, "width": 12},
            clip=lambda generator: torch.rand((1, 3, 7, 8, 12), generator=generator),
            frames=7,
            cut=_slice,
            out_time=lambda n: n,
        )
        for scale in (2, 3)
    ),
    StageCase(
        name="latent_upsampler_v3",
        joins=True,
        build=lambda: _built(
            LatentUpsamplerV3(LatentUpsamplerV3Config(widths=(8, 4), blocks=2, latent_channels=4, scale=2))
        ),
        size={"height": 4, "width": 4},
        clip=_bcthw(4, 5, 4),
        frames=5,
        cut=_slice,
        out_time=lambda n: n,
    ),
    StageCase(
        name="wan_vae_encoder",
        joins=True,
        build=lambda: _built(WanVaeEncoder(TINY_VAE)),
        size={"height": 16, "width": 16},
        clip=_bcthw(3, 11, 16),
        frames=11,
        cut=_slice,
        out_time=lambda n: (n + 3) // 4,
    ),
    StageCase(
        name="wan_vae_decoder",
        joins=True,
        build=lambda: _built(WanVaeDecoder(TINY_VAE)),
        size={"height": 2, "width": 2},
        clip=_bcthw(4, 4, 2),
        frames=4,
        cut=_slice,
        out_time=lambda n: max(0, 4 * n - 3),
    ),
    StageCase(
        name="cascade_x2",
        build=tiny_cascade,
        size={"height": 16, "width": 32},
        clip=lambda generator: torch.rand((1, 3, 23, 16, 32), generator=generator),
        frames=23,
        cut=_slice,
        out_time=lambda n: 0 if n < 5 else 5 + (n - 5) // 8 * 8,
        group_out=5,
    ),
    StageCase(
        name="cascade_whose_encoder_runs_ahead",
        build=lambda: tiny_cascade(AHEAD),
        size={"height": 16, "width": 16},
        clip=lambda generator: torch.rand((1, 3, 18, 16, 16), generator=generator),
        frames=18,
        cut=_slice,
        out_time=lambda n: max(0, n // 8 * 8 - 3),
        group_out=5,
    ),
    StageCase(
        name="cascade_whose_decoder_reads_the_source",
        build=lambda: tiny_cascade(replace(TINY, decoder=READING_DECODER), scale=3),
        size={"height": 16, "width": 16},
        clip=lambda generator: torch.rand((1, 3, 14, 16, 16), generator=generator),
        frames=14,
        cut=_slice,
        out_time=lambda n: 0 if n < 5 else 5 + (n - 5) // 8 * 8,
        group_out=5,
    ),
    StageCase(
        name="cascade_whose_decoder_reads_the_source_behind_its_encoder",
        build=lambda: tiny_cascade(replace(AHEAD, decoder=READING_DECODER)),
        size={"height": 16, "width": 16},
        clip=lambda generator: torch.rand((1, 3, 18, 16, 16), generator=generator),
        frames=18,
        cut=_slice,
        out_time=lambda n: max(0, n // 8 * 8 - 3),
        group_out=5,
    ),
    StageCase(
        name="cascade_with_the_full_encoder",
        build=lambda: tiny_cascade(WITH_VAE),
        size={"height": 16, "width": 16},
        clip=lambda generator: torch.rand((1, 3, 14, 16, 16), generator=generator),
        frames=14,
        cut=_slice,
        out_time=lambda n: 0 if n < 5 else 5 + (n - 5) // 8 * 8,
        group_out=5,
    ),
    StageCase(
        name="cascade_of_a_model_that_enlarges_frames",
        build=pixel_cascade,
        size={"height": 16, "width": 16},
        clip=lambda generator: torch.rand((1, 3, 14, 16, 16), generator=generator),
        frames=14,
        cut=_slice,
        out_time=lambda n: 0 if n < 5 else 5 + (n - 5) // 8 * 8,
        group_out=5,
    ),
    StageCase(
        name="cascade_x3",
        build=lambda: tiny_cascade(scale=3),
        size={"height": 16, "width": 16},
        clip=lambda generator: torch.rand((1, 3, 14, 16, 16), generator=generator),
        frames=14,
        cut=_slice,
        out_time=lambda n: 0 if n < 5 else 5 + (n - 5) // 8 * 8,
        group_out=5,
    ),
)
"""All stages."""
