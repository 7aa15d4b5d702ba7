"""Expected tensor names and shapes of each published file, derived from the engine's
networks."""

from collections.abc import Callable

import torch
from torch import nn

from ultraflash_cli.engine.profiles import RELEASED_ULTRA_DECODER
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler, LatentUpsamplerConfig
from ultraflash_cli.engine.stages.latent_upsampler_v3 import LatentUpsamplerV3, LatentUpsamplerV3Config
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig
from ultraflash_cli.engine.stages.text_encoder import PUBLISHED_NAMES, TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig, WanVaeDecoder, WanVaeEncoder
from ultraflash_cli.weights.detect import Shape

__all__ = ["ARCHITECTURES", "LORA_RANK", "expected_shapes"]

LORA_RANK = 256
"""Rank of the published update (reference/cascade.md 9.3)."""

_LORA_LAYERS = (*(f".{kind}_attn.{each}" for kind in ("self", "cross") for each in "qkvo"), ".ffn.0", ".ffn.2")

Shapes = dict[str, Shape]


def expected_shapes(architecture: str) -> Shapes:
    """Return the published name and the shape of every tensor of an architecture; no
    memory is allocated for values."""
    return ARCHITECTURES[architecture]()


def _on_meta(build: Callable[[], nn.Module]) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build().state_dict().items()}


def _generator() -> Shapes:
    return _on_meta(lambda: Generator(GeneratorConfig()))


def _lora() -> Shapes:
    shapes: Shapes = {}
    for name, shape in _generator().items():
        stem = name.removesuffix(".weight")
        if name.endswith(".weight") and stem.startswith("blocks.") and stem.endswith(_LORA_LAYERS):
            shapes[f"{stem}.lora_A.weight"] = (LORA_RANK, shape[1])
            shapes[f"{stem}.lora_B.weight"] = (shape[0], LORA_RANK)
    return shapes


def _sr_dit() -> Shapes:
    return _on_meta(lambda: SrDit(SrDitConfig()))


def _upsampler(scale: int) -> Shapes:
    return _on_meta(lambda: LatentUpsampler(LatentUpsamplerConfig(scale=scale)))


def _upsampler_v3() -> Shapes:
    return _on_meta(lambda: LatentUpsamplerV3(LatentUpsamplerV3Config()))


def _tiny_decoder() -> Shapes:
    return _tiny_encoder() | _on_meta(lambda: Decoder(DecoderConfig()))


def _tiny_decoder_lr() -> Shapes:
    return _tiny_encoder() | _on_meta(lambda: Decoder(DecoderConfig(reads_low_frames=True)))


def _ultra_decoder() -> Shapes:
    return _tiny_encoder() | _on_meta(lambda: Decoder(DecoderConfig(upsampling="pixel_shuffle")))


def _released_ultra_decoder() -> Shapes:
    return _on_meta(lambda: Decoder(RELEASED_ULTRA_DECODER))


def _tiny_encoder() -> Shapes:
    return _on_meta(lambda: Encoder(EncoderConfig()))


def _wan_vae() -> Shapes:
    return _on_meta(lambda: WanVaeEncoder(WanVaeConfig())) | _on_meta(lambda: WanVaeDecoder(WanVaeConfig()))


def _text_encoder() -> Shapes:
    # Computed from sizes, so that a pull does not need the package that runs the
    # network.
    config = TextEncoderConfig()
    dim, ffn = config.dim, config.ffn_dim
    by_ending: Shapes = {
        "token_embedding.weight": (config.vocab, dim),
        "norm.weight": (dim,),
        "norm1.weight": (dim,),
        "norm2.weight": (dim,),
        **{f"attn.{each}.weight": (dim, dim) for each in "qkvo"},
        "ffn.gate.0.weight": (ffn, dim),
        "ffn.fc1.weight": (ffn, dim),
        "ffn.fc2.weight": (dim, ffn),
        "pos_embedding.embedding.weight": (config.buckets, config.heads),
    }
    return {name: by_ending[name.split(".", 2)[-1] if name.startswith("blocks.") else name] for name in PUBLISHED_NAMES}


ARCHITECTURES: dict[str, Callable[[], Shapes]] = {
    "generator": _generator,
    "lora": _lora,
    "sr_dit": _sr_dit,
    "upsampler_x2": lambda: _upsampler(2),
    "upsampler_x3": lambda: _upsampler(3),
    "upsampler_v3_x2": _upsampler_v3,
    "tiny_decoder": _tiny_decoder,
    "tiny_decoder_lr": _tiny_decoder_lr,
    "ultra_decoder": _ultra_decoder,
    "ultra_decoder_released": _released_ultra_decoder,
    "wan_vae": _wan_vae,
    "text_encoder": _text_encoder,
}
"""Source of the names and shapes of each architecture in ``weights.convert.RULES``."""
