"""The network class behind each stage's config."""

from collections.abc import Callable

from torch import nn

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
from ultraflash_cli.engine.stages.text_encoder import TextEncoder, TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig, WanVaeEncoder

__all__ = ["NETWORKS", "Config"]

Config = (
    EncoderConfig
    | WanVaeConfig
    | LatentUpsamplerConfig
    | SrDitConfig
    | DecoderConfig
    | PixelPathConfig
    | GeneratorConfig
    | TextEncoderConfig
    | PromptEncoderConfig
)

NETWORKS: dict[type, Callable[..., nn.Module]] = {
    EncoderConfig: Encoder,
    WanVaeConfig: WanVaeEncoder,
    LatentUpsamplerConfig: LatentUpsampler,
    SrDitConfig: SrDit,
    DecoderConfig: Decoder,
    PixelPathConfig: PixelPath,
    GeneratorConfig: Generator,
    TextEncoderConfig: TextEncoder,
    PromptEncoderConfig: PromptEncoder,
}
