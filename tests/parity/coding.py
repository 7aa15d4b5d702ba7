"""Runners for the Wan VAE, the text encoder and the other upsampler."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.parity.vector_set import VectorSet
from ultraflash_cli.engine.layers.memory_block import MemoryBlock
from ultraflash_cli.engine.stages.latent_upsampler_v3 import LatentUpsamplerV3, LatentUpsamplerV3Config
from ultraflash_cli.engine.stages.text_encoder import TextEncoder, TextEncoderConfig, clean_prompt
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig, WanVaeDecoder, WanVaeEncoder

__all__ = ["RUNNERS"]


def _upsampler_v3(vectors: VectorSet) -> None:
    config, io = vectors.config, vectors.io
    stage = LatentUpsamplerV3(
        LatentUpsamplerV3Config(
            scale=config["scale"],
            latent_channels=config["in_channels"],
            widths=tuple(config["stage_channels"]),
            blocks=config["blocks_per_stage"],
            memory_init=config["memory_init"],
        )
    )
    stage.load_state_dict(vectors.weights())
    height, width = config["latent_hw"]
    state = stage.init_state(batch=io["g0.x"].shape[0], height=height, width=width)
    for group, frames in enumerate(config["group_frames"]):
        vectors.expect(f"length of group {group}", io[f"g{group}.x"].shape[2] == frames)
        state, out = stage.step(state, io[f"g{group}.x"])
        vectors.compare(f"g{group}.y", out)
    layers = [index for index, layer in enumerate(stage.net) if isinstance(layer, MemoryBlock)]
    for layer, memory in zip(layers, state.memories, strict=True):
        if f"final_memory.{layer}" in io:
            vectors.compare(f"final_memory.{layer}", memory)


def _wan_vae(vectors: VectorSet) -> None:
    config, io = vectors.config, vectors.io
    vae = WanVaeConfig(
        width=config["dim"],
        blocks=config["num_res_blocks"],
        latent_channels=config["z_dim"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    weights = vectors.weights()
    encoder = WanVaeEncoder(vae)
    encoder.load_state_dict({name: weights.pop(name) for name in encoder.state_dict()})
    if config["decode"] or weights:
        decoder = WanVaeDecoder(vae)
        decoder.load_state_dict(weights)
    else:
        decoder = None

    pixels = io["pixels"]
    batch, _, frames, height, width = pixels.shape
    vectors.expect("number of frames", frames == config["frames"])
    state, latents = encoder.step(encoder.init_state(batch=batch, height=height, width=width), (pixels + 1) / 2)
    vectors.expect("number of latents, no frame left over", (latents.shape[2] - 1) * 4 + 1 == frames)
    vectors.compare("latent", latents)
    if decoder is not None and "decoded" in io:
        state = decoder.init_state(batch=batch, height=height // 8, width=width // 8)
        decoded = [io["latent"][:, :, :0].new_empty((batch, 3, 0, height, width))]
        for latent in io["latent"].split(1, dim=2):
            state, out = decoder.step(state, latent)
            decoded.append(out)
        vectors.compare("decoded", torch.cat(decoded, dim=2) * 2 - 1)


def _umt5(vectors: VectorSet) -> None:
    config, io = vectors.config, vectors.io
    encoder = TextEncoder(
        TextEncoderConfig(
            vocab=config["vocab"],
            dim=config["dim"],
            ffn_dim=config["dim_ffn"],
            heads=config["num_heads"],
            attention_dim=config["dim_attn"],
            layers=config["num_layers"],
            buckets=config["num_buckets"],
            text_len=config["seq_len"],
        )
    )
    encoder.load_state_dict(vectors.weights())
    vectors.expect("lengths", io["mask"].sum(dim=1).tolist() == config["lengths"])
    vectors.compare("hidden_unzeroed", encoder.hidden(io["ids"], io["mask"]))
    vectors.compare("prompt_embeds", encoder(io["ids"], io["mask"]))
    if "bucket_index" in io:
        vectors.expect("bucket_index", torch.equal(_buckets(encoder, io["bucket_distance"]), io["bucket_index"]))


def _buckets(encoder: TextEncoder, distances: Tensor) -> Tensor:
    """Return the bucket of each distance, read from the bias of a table 0, 1, 2..."""
    attention = encoder.get_submodule("encoder.block.0.layer.0.SelfAttention")
    table = attention.get_parameter("relative_attention_bias.weight")
    table.copy_(torch.arange(len(table))[:, None].expand_as(table))
    reach = int(distances.abs().max())
    compute_bias = attention.compute_bias
    assert callable(compute_bias)
    bias = compute_bias(reach + 1, 2 * reach + 1)
    assert isinstance(bias, Tensor)
    return bias[0, 0, reach, distances + reach].long()


def _text(vectors: VectorSet) -> None:
    for number, pair in enumerate(vectors.read_json("text_cleaning.json")):
        vectors.expect(f"cleaned text {number}", clean_prompt(pair["input"]) == pair["cleaned"])


RUNNERS: dict[str, Callable[[VectorSet], None]] = {
    "text": _text,
    "umt5": _umt5,
    "upsampler_v3": _upsampler_v3,
    "wan_vae": _wan_vae,
}
"""Runner of each set, by the longest prefix of its name."""
