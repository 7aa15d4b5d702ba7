"""Runners for the upsampler, the sparse attention, the SR transformer and the pixel coders."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.vector_set import SUM_TOLERANCE, TOLERANCE, VectorSet
from tests.procedural import procedural_weights
from ultraflash_cli.engine.cache import KvRing
from ultraflash_cli.engine.layers.memory_block import MemoryBlock
from ultraflash_cli.engine.layers.sparse_attention import SparseAttended, SparseLayout, sparse_causal_attention
from ultraflash_cli.engine.sparsity import BlockGrid, allowed_blocks, causal_blocks, key_budget, window_blocks
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig, DecoderStage
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler, LatentUpsamplerConfig
from ultraflash_cli.engine.stages.sr_dit import GroupResult, SrDit, SrDitConfig, SrDitInputs
from ultraflash_cli.weights.convert import RULES as WRAPPER_RULES
from ultraflash_cli.weights.convert import normalise
from ultraflash_kernels.block_topk import block_topk

__all__ = ["RUNNERS", "sr_dit_config"]


def _upsampler_v1(vectors: VectorSet) -> None:
    config, io = vectors.config, vectors.io
    stage = LatentUpsampler(
        LatentUpsamplerConfig(
            scale=config["scale"],
            latent_channels=config["in_channels"],
            width=config["mid_channels"],
            blocks=config["num_blocks"],
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
    for index, memory in enumerate(state.memories):
        vectors.compare(f"final_memory.{index}", memory)


def _pixel_decoder(vectors: VectorSet) -> None:
    config, io = vectors.config, vectors.io
    ultra = config["arch"] == "ultra"
    widths = config.get("n_f", [256, 128, 64, 64])
    memory_init = "replicate" if ultra else "zeros"
    latent_channels = io["g0.latent"].shape[2]
    decoder = Decoder(
        DecoderConfig(
            latent_channels=latent_channels,
            stages=tuple(
                DecoderStage(width=width, time_growth=growth)
                for width, growth in zip(widths[:3], (1, 2, 2), strict=True)
            ),
            out_width=widths[3],
            upsampling="pixel_shuffle" if ultra else "nearest",
            memory_init=memory_init,
        )
    )
    encoder = Encoder(
        EncoderConfig(latent_channels=latent_channels, width=config.get("enc_width", 64), memory_init=memory_init)
    )
    _load_together(vectors, decoder, encoder)

    height, width = config["latent_hw"]
    state = decoder.init_state(batch=io["g0.latent"].shape[0], height=height, width=width)
    for group, frames in enumerate(config["group_frames"]):
        vectors.expect(f"length of group {group}", io[f"g{group}.latent"].shape[1] == frames)
        state, out = decoder.step(state, io[f"g{group}.latent"].transpose(1, 2))
        vectors.compare(f"g{group}.raw", out.transpose(1, 2))
    layers = [index for index, layer in enumerate(decoder.decoder) if isinstance(layer, MemoryBlock)]
    for layer, memory in zip(layers, state.memories, strict=True):
        if f"final_memory.{layer}" in io:
            vectors.compare(f"final_memory.{layer}", memory)
    if "enc.pixels" in io:
        pixels = io["enc.pixels"].transpose(1, 2)
        state = encoder.init_state(batch=pixels.shape[0], height=pixels.shape[3], width=pixels.shape[4])
        latents: list[Tensor] = []
        for piece in pixels.split(config.get("enc_frames", [pixels.shape[2]]), dim=2):
            state, out = encoder.step(state, piece)
            latents.append(out)
        vectors.compare("enc.latent", torch.cat(latents, dim=2).transpose(1, 2))


def _released_decoder(vectors: VectorSet) -> None:
    """Run the released file: decoder only, with its own names, and values in [-1,
    1]."""
    config, io = vectors.config, vectors.io
    decoder = Decoder(
        DecoderConfig(
            latent_channels=config["latent_channels"],
            stages=tuple(
                DecoderStage(width=width, time_growth=growth)
                for width, growth in zip(config["n_f"], config["time_growth"], strict=True)
            ),
            out_width=None,
            upsampling="pixel_shuffle",
            memory_init=config["memory_init"],
            soft_clamp=config["soft_clamp"],
            signed=config["value_range"] == [-1.0, 1.0],
        )
    )
    expected = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    decoder.load_state_dict(normalise(vectors.weights(), expected, WRAPPER_RULES["ultra_decoder_released"]))

    height, width = config["latent_hw"]
    state = decoder.init_state(batch=io["g0.latent"].shape[0], height=height, width=width)
    for group, frames in enumerate(config["group_frames"]):
        vectors.expect(f"length of group {group}", io[f"g{group}.latent"].shape[1] == frames)
        state, out = decoder.step(state, io[f"g{group}.latent"].transpose(1, 2))
        vectors.compare(f"g{group}.raw", out.transpose(1, 2) * 2 - 1)
    layers = [index for index, layer in enumerate(decoder.decoder) if isinstance(layer, MemoryBlock)]
    for layer, memory in zip(layers, state.memories, strict=True):
        if f"final_memory.{layer}" in io:
            vectors.compare(f"final_memory.{layer}", memory)


def _load_together(vectors: VectorSet, decoder: Decoder, encoder: Encoder) -> None:
    """Load both, strictly, from one file or from procedural weights; a file may lack an
    encoder."""
    modules: list[nn.Module] = [decoder, encoder]
    if vectors.config.get("weights") == "procedural":
        shapes = {name: tuple(x.shape) for module in modules for name, x in module.state_dict().items()}
        weights = procedural_weights(shapes, salt=vectors.config["salt"], gain=vectors.config["gain"])
        for name, check in vectors.config.get("weight_checks", {}).items():
            values = weights[name].double()
            found = [values.sum().item(), values.square().sum().item(), *values.flatten()[:3].tolist()]
            wanted = [check["sum"], check["sum_sq"], *check["first3"]]
            close = all(math.isclose(a, b, rel_tol=SUM_TOLERANCE) for a, b in zip(found, wanted, strict=True))
            vectors.expect(f"procedural {name}", close)
    else:
        weights = vectors.weights()
        modules = modules if any(name.startswith("encoder.") for name in weights) else [decoder]
        known = {name for module in modules for name in module.state_dict()}
        vectors.expect("the list of weights", weights.keys() == known)
    for module in modules:
        module.load_state_dict({name: weights[name] for name in module.state_dict()})


def _block_masks(vectors: VectorSet) -> None:
    for case in vectors.config["cases"]:
        name: str = case["name"]
        if name.startswith("local"):
            mask = window_blocks(case["block_h"], case["block_w"], case["range"])
        elif name.startswith("causal"):
            frames = case["temporal_block"]
            queries, cached = (math.ceil(case[key] / frames) for key in ("query_frames", "cache_frames"))
            causal = causal_blocks(queries, cached, max(1, case["chunk_size"] // frames))
            mask = allowed_blocks(window_blocks(1, case["spatial_blocks"], 0), causal)
        elif name.startswith("draft"):
            mask = _draft_mask(case, vectors.io[f"{name}.q_blocks"], vectors.io[f"{name}.k_blocks"])
        else:
            raise ValueError(f"unknown kind of mask: {name}")
        vectors.compare_mask(f"{name}.mask", mask)
    for row in vectors.config["top_k_table"]:
        frames, rows, cols = row["grid"]
        grid = BlockGrid(frames, rows, cols, (2, 8, 8))
        budget = key_budget(grid, ratio=row["ratio"], reference_tokens=row["ref_spatial_tokens"], override=None)
        vectors.expect(f"top_k of {row['grid']}", budget == row["top_k"])


def _draft_mask(case: dict[str, Any], q_blocks: Tensor, k_blocks: Tensor) -> Tensor:
    rows, cols, queries, cached = case["bh"], case["bw"], case["tq"], case["tcache"]
    allowed = None
    if case["causal"] or case["range"]:
        unlimited = torch.ones(queries, cached + queries, dtype=torch.bool)
        causal = causal_blocks(queries, cached) if case["causal"] else unlimited
        allowed = allowed_blocks(window_blocks(rows, cols, case["range"]), causal)
    q_mean, k_mean = (x.mean(dim=1).unflatten(-1, (case["heads"], -1)).transpose(0, 1) for x in (q_blocks, k_blocks))
    return block_topk(q_mean[None], k_mean[None], allowed, budget=case["top_k"], rows_per_budget=rows * cols)[0]


def _sparse_attention(vectors: VectorSet) -> None:
    for by_lists in (False, True):
        _attend(vectors, by_lists)


def _attend(vectors: VectorSet, by_lists: bool) -> None:
    io = vectors.io
    for case in vectors.config["cases"]:
        name, heads, head_width = case["name"], case["heads"], case["head_dim"]
        cache = None
        for group, frames in enumerate(case["group_frames"]):
            grid = BlockGrid(frames, case["h"], case["w"], tuple(vectors.config["block"]))
            q, k, v = (_to_blocks(io[f"{name}.g{group}.{x}"], grid) for x in "qkv")
            kv_len = case["kv_len"][group] if isinstance(case["kv_len"], list) else case["kv_len"]
            if cache is None:
                longest = max(case["kv_len"]) if isinstance(case["kv_len"], list) else kv_len
                shape = (q.shape[0], heads, longest * grid.spatial_blocks, grid.block_tokens, head_width)
                cache = KvRing.empty(shape, dtype=q.dtype, device=q.device)
            layout = SparseLayout.of(
                grid,
                remembered=cache.fill,
                window=case["range"],
                chunk=1,
                budget=case["top_k"],
                kv_len=kv_len,
                device=q.device,
                reuse_cache=True,
                by_lists=by_lists,
            )
            attended = sparse_causal_attention(q, k, v, layout, cache)
            cache = attended.cache
            vectors.compare_mask(f"{name}.g{group}.mask", attended.mask[0])
            tokens = grid.from_blocks(attended.out, 1, 1).flatten(2).transpose(1, 2)
            vectors.compare(f"{name}.g{group}.out", tokens.unflatten(2, (heads, head_width)))
        if cache is not None and f"{name}.cache_k" in io:
            vectors.compare(f"{name}.cache_k", _by_block(cache, cache.k))


def _to_blocks(tokens: Tensor, grid: BlockGrid) -> Tensor:
    """``[B, tokens, heads, D]`` in frame order to ``[B, heads, blocks, block tokens, D]``."""
    image = tokens.flatten(2).transpose(1, 2).unflatten(2, (grid.frames, grid.rows, grid.cols))
    return grid.to_blocks(image).unflatten(-1, tokens.shape[2:]).permute(0, 3, 1, 2, 4)


def _by_block(cache: KvRing, x: Tensor) -> Tensor:
    """The part of a cache's ``k`` or ``v`` in use, as ``[blocks, block tokens, width]``."""
    return x[0, :, : cache.fill].permute(1, 2, 0, 3).flatten(2)


def _sr_dit(vectors: VectorSet) -> None:
    for by_lists in (False, True):
        _refine(vectors, by_lists)


class _RecordedSrDit(SrDit):
    """An SR transformer that records the output of its network."""

    def __init__(self, config: SrDitConfig, *, by_lists: bool) -> None:
        super().__init__(config, by_lists=by_lists)
        self.outputs: list[Tensor] = []

    def forward_group(self, *args: Any, **kwargs: Any) -> GroupResult:
        result = super().forward_group(*args, **kwargs)
        self.outputs.append(result.output_bcthw)
        return result


def sr_dit_config(vectors: VectorSet) -> SrDitConfig:
    """Return the config of the network of an ``sr_dit`` set."""
    config = vectors.config
    _, _, _, patch_rows, patch_cols = vectors.weights()["patch_embedding.weight"].shape
    kv_len = config["kv_len"] if isinstance(config["kv_len"], list) else [config["kv_len"]]
    return SrDitConfig(
        **{key: config[key] for key in ("dim", "num_heads", "num_layers", "ffn_dim", "freq_dim", "text_dim")},
        text_len=config["text_len"],
        latent_channels=config["out_dim"],
        patch=(1, patch_rows, patch_cols),
        local_range=config["sparse_local_range"],
        ref_spatial_tokens=config["sparse_ref_spatial_tokens"],
        top_k_ratio=config["sparse_top_k_ratio"],
        kv_schedule=tuple(kv_len),
        group_latents=max(config["group_frames"]),
        timestep=config.get("timestep", 1000.0),
        mask_dtype=config.get("mask_dtype", "float32"),
    )


def _refine(vectors: VectorSet, by_lists: bool) -> None:
    config, io, weights = vectors.config, vectors.io, vectors.weights()
    groups: list[int] = config["group_frames"]
    stage = _RecordedSrDit(sr_dit_config(vectors), by_lists=by_lists)
    stage.load_state_dict(weights)
    weights_dtype = getattr(torch, config.get("dtype", "float32"))
    stage.to(weights_dtype)
    tolerance = config.get("suggested_tolerance", {"max_abs": TOLERANCE})
    masks: list[Tensor] = []

    def note_mask(_module: nn.Module, _inputs: object, attended: SparseAttended) -> None:
        masks.append(attended.mask[0])

    for block in stage.blocks:
        block.get_submodule("self_attn").register_forward_hook(note_mask)

    height, width = config["latent_hw"]
    state = stage.init_state(batch=1, height=height, width=width, context=io["context"][None])
    for group, frames in enumerate(groups):
        noise, cond = io[f"g{group}.noise"][None], io[f"g{group}.cond"][None]
        vectors.expect(f"length of group {group}", noise.shape[2] == frames)
        facts = {"temporal_offset": state.frames, "top_k": stage.key_budget(frames, height, width)}
        for fact, found in facts.items():
            if f"{fact}_per_group" in config:
                vectors.expect(f"{fact} of group {group}", found == config[f"{fact}_per_group"][group])
        masks.clear()
        state, clean = stage.step(state, SrDitInputs(noise, cond))
        # In bfloat16 the clean latents have one more rounding than the network's output.
        flow = noise - clean if weights_dtype == torch.float32 else stage.outputs[-1]
        vectors.compare(f"g{group}.flow", flow[0], tolerance=tolerance["max_abs"], mean=tolerance.get("mean_abs"))
        for layer, mask in enumerate(masks):
            if f"g{group}.mask.layer{layer}" in io:
                vectors.compare_mask(f"g{group}.mask.layer{layer}", mask)
    for layer, cache in enumerate(state.caches):
        vectors.expect("size of the last cache", cache.fill == config.get("final_cache_blocks", cache.fill))
        for name, x in (("k", cache.k), ("v", cache.v)):
            if f"final_cache.{name}.layer{layer}" in io:
                vectors.compare(f"final_cache.{name}.layer{layer}", _by_block(cache, x))


RUNNERS: dict[str, Callable[[VectorSet], None]] = {
    "block_masks": _block_masks,
    "sparse_attention": _sparse_attention,
    "sr_dit": _sr_dit,
    "tiny_decoder": _pixel_decoder,
    "ultra_decoder": _pixel_decoder,
    "ultra_decoder_released": _released_decoder,
    "upsampler_v1": _upsampler_v1,
}
"""Runner of each set, by the longest prefix of its name."""
