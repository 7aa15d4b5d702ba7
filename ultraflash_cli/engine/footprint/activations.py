"""Peak activation memory of each network, without weights and state.

The formulas mirror the code layer by layer: changes to ``layers/dit.py``,
``layers/attention.py``, ``layers/sparse_attention.py``, ``layers/memory_block.py`` or a
stage require changes here, which ``tests/engine/test_memory.py`` detects by counting
live bytes. They count the live tensors at the peak of one inference call, without the
workspaces of libraries.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from ultraflash_cli.engine.schedule import LATENT_PX
from ultraflash_cli.engine.sparsity import BlockGrid
from ultraflash_cli.engine.stages.decoder import DecoderConfig
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsamplerConfig
from ultraflash_cli.engine.stages.pixel_path import PixelPathConfig
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.engine.stages.text_encoder import TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig

__all__ = [
    "MemoryBlocks",
    "decoder_activations",
    "encoder_activations",
    "generator_activations",
    "pixel_path_activations",
    "prompt_encoder_activations",
    "sr_dit_activations",
    "text_encoder_activations",
    "text_encoder_parameters",
    "upsampler_activations",
    "wan_vae_activations",
]

FLOAT32 = 4
"""Bytes per value in norms, modulation and rotation."""

GATHERED = 1 << 18
"""Number of keys (and of values) that the reference of sparse attention gathers at a
time."""

_BLOCK = 3
"""Tensors of its input's size in a memory block: the input and two results."""

PAIR_BYTES = 16
"""Bytes per pair of blocks for block selection: scores, shares, and the threshold
search."""


@dataclass(frozen=True)
class MemoryBlocks:
    """Memory of a network of memory blocks, in numbers of values."""

    working: int
    """Peak without the recurrent memories."""
    memories: int
    """The blocks' recurrent memories, one frame each."""


def sr_dit_activations(
    config: SrDitConfig,
    *,
    frames: int,
    height: int,
    width: int,
    kv_len: int,
    element: int,
    on_gpu: bool,
) -> int:
    """Return the bytes for a group of latent ``frames`` of ``height`` x ``width`` with
    ``kv_len`` cached blocks.

    With N tokens, padding included, U = N * dim numbers and e bytes a number, one block
    holds at its largest

    * attention: x, y, q, k, v (5 e U), remembered and present keys and values joined (2
      e V, V = (N + remembered
      tokens) * dim), then the rows of the reference: its parts, their sum and their
      order (3 e U; on a CPU half
      precision is widened: float32 copies of q, k, v and of the rows), the block mask's
      scores next to them;
    * norm and rotation of keys: 6 e U + 8 U;
    * cross-attention: 8 e U + 8 U;
    * feed-forward: 4 e U and the hidden layer twice, 2 e N ffn_dim;
    * gated sum after it: 5 e U + 12 U.
    """
    _, py, px = config.patch
    grid = BlockGrid(frames, height // py, width // px, config.block)
    tokens = math.prod(grid.blocks) * grid.block_tokens
    remembered = kv_len * grid.spatial_blocks
    row = config.dim * tokens
    joined = row + remembered * grid.block_tokens * config.dim
    pairs = (
        config.num_heads * math.prod(grid.blocks) * (math.prod(grid.blocks) + remembered)
    )

    work = element if on_gpu else max(element, FLOAT32)
    widened = 0 if work == element else work * (row + 2 * joined)
    rows = 3 * work * row if work == element else (2 * work + element) * row
    held = 5 * element * row + (2 * element * joined if remembered else element * row)
    gathered = 2 * work * min(GATHERED, joined)
    attention = held + max(widened + rows + pairs + gathered, PAIR_BYTES * pairs)
    norm = (6 * element + 8) * row
    cross = 8 * (element + 1) * row if config.text_len else 0
    feed_forward = 4 * element * row + 2 * element * tokens * config.ffn_dim
    gated = (5 * element + 12) * row
    return max(attention, norm, cross, feed_forward, gated)


def generator_activations(
    config: GeneratorConfig, *, height: int, width: int, element: int, cached: int
) -> int:
    """Return the bytes for one chunk of latents of ``height`` x ``width``, with numbers
    of ``element`` bytes, ``cached`` bytes in the cache.

    As in the SR transformer, but attention reads keys and values in place: with U = N *
    dim numbers of e bytes, 7 e U in attention, 8 e U + 8 U in cross-attention, 7 e U +
    2 e N ffn_dim in the feed-forward, including the pending addition to the residual
    stream. A sliding window copies the remaining part of one ring.
    """
    per_frame = config.tokens_per_frame(height, width)
    tokens = config.chunk_latents * per_frame
    row = tokens * config.dim
    slid = (
        (config.window - config.sink) * per_frame * config.dim * cached
        if config.slide
        else 0
    )
    attention = 7 * element * row + slid
    cross = 8 * (element + 1) * row
    feed_forward = 7 * element * row + 2 * element * tokens * config.ffn_dim
    return max(attention, cross, feed_forward)


def text_encoder_parameters(config: TextEncoderConfig) -> int:
    """Return the number of parameters (reference/cascade.md 2).

    Computed by formula, because building the network imports a large package.
    """
    inner = config.heads * config.head_dim
    block = (
        4 * config.dim * inner
        + 3 * config.dim * config.ffn_dim
        + 2 * config.dim
        + config.buckets * config.heads
    )
    return (config.vocab + 1) * config.dim + config.layers * block


def text_encoder_activations(config: TextEncoderConfig, element: int) -> int:
    """Return the bytes for a prompt of full length: scores of all heads, once in
    float32, and the gated layers."""
    scores = config.heads * config.text_len**2
    tokens = config.text_len * (8 * config.dim + 4 * config.ffn_dim)
    return scores * (element + FLOAT32) + tokens * element


def prompt_encoder_activations(config: PromptEncoderConfig, element: int) -> int:
    """Return the bytes for a prompt: scores of all heads, once in float32, and the
    feed-forward layer."""
    return (
        config.heads * config.text_len**2 * (element + FLOAT32)
        + config.text_len * 8 * config.dim * element
    )


def upsampler_activations(
    config: LatentUpsamplerConfig, *, height: int, width: int, latents: int = 1
) -> MemoryBlocks:
    """Return the numbers for ``latents`` low-resolution latents of ``height`` x
    ``width`` at once.

    A block holds x and two results.
    """
    plane = config.width * config.scale**2 * height * width
    return MemoryBlocks(_BLOCK * latents * plane, config.blocks * plane)


def encoder_activations(config: EncoderConfig, *, height: int, width: int) -> MemoryBlocks:
    """Return the numbers for four frames of ``height`` x ``width`` pixels.

    The peak is the first layer (its result, and the parts for the first pool), or a
    stage's blocks: x and two results.
    """
    shrink, frames = config.patch, 4
    plane = config.width * height * width // shrink**2
    working, memories = 2 * 3 * frames * height * width, 0
    for stride, pool in zip(config.strides, config.time_pools, strict=True):
        pooled = frames // pool
        # The input, one frame of it made contiguous, the sum and a summand; then the
        # sum and the strided result.
        working = max(working, (frames + (3 * pooled if pool > 1 else pooled)) * plane)
        frames, plane = pooled, plane // stride**2
        working = max(working, _BLOCK * frames * plane)
        memories += config.blocks * plane
    return MemoryBlocks(working, memories)


def wan_vae_activations(config: WanVaeConfig, *, height: int, width: int) -> MemoryBlocks:
    """Return the numbers for four frames of ``height`` x ``width`` pixels.

    A residual block of n frames holds the input, the second convolution's input, the
    same preceded by two past frames, those two frames, and the result: 4 n + 4 frames;
    the middle attention holds the scores of one frame.
    """
    widths = [config.width * factor for factor in config.multipliers]
    working, frames, plane = 0, 4, height * width
    memories = 2 * 3 * plane
    for level, (before, now) in enumerate(pairwise([widths[0], *widths])):
        working = max(working, (4 * frames + 4) * now * plane)
        memories += 2 * (before + (2 * config.blocks - 1) * now) * plane
        if level < len(config.time_downsample):
            plane //= 4
            if config.time_downsample[level]:
                memories += now * plane
                frames //= 2
    memories += 2 * (4 + 1) * widths[-1] * plane
    return MemoryBlocks(max(working, 6 * widths[-1] * plane + plane**2), memories)


def decoder_activations(
    config: DecoderConfig, *, height: int, width: int, latents: int = 1
) -> MemoryBlocks:
    """Return the numbers for ``latents`` latents of ``height`` x ``width`` at once. The
    peak is the time growth of a stage: its input, the resulting frames, and a
    contiguous copy; or a pixel shuffle: its input, the wide convolution's result and
    two layouts of it; or the convolution over doubled frames, which includes the time
    growth: its input, the phases of one frame in ``time_growth``, and the result, which
    is the last convolution's where that reads phases.
    """
    frames, plane = latents, height * width
    working, memories = 0, 0
    widths = config.widths
    for stage, following in zip(config.stages, widths[1:], strict=True):
        piece = stage.width * frames * plane
        working = max(working, _BLOCK * piece)
        memories += stage.blocks * stage.width * plane
        if stage.upsample and config.upsampling == "pixel_shuffle":
            working = max(working, 9 * piece)
            piece, plane = 4 * piece, 4 * plane

        if stage.upsample and config.upsampling == "nearest":
            plane *= 4
            phases = following * frames * plane
            result = following * stage.time_growth
            if stage is config.stages[-1] and config.reads_phases:
                result = 3 * config.last_shuffle**2 * (1 + stage.time_growth)
            working = max(working, piece + phases + result * frames * plane)
            frames *= stage.time_growth
            continue
        copies = 1 if stage.time_growth == 1 else 2
        working = max(working, (1 + copies * stage.time_growth) * piece)
        frames *= stage.time_growth
        piece *= stage.time_growth
        working = max(working, piece + following * frames * plane)
    out = 3 * frames * LATENT_PX**2 * height * width
    shuffled = 1 if plane == LATENT_PX**2 * height * width else 2
    before = 0 if config.reads_phases else widths[-1] * frames * plane
    working = max(working, before + shuffled * out)
    if config.reads_low_frames:
        cell_px, cell_frames = config.last_cell
        features = config.stages[-1].width * out // (3 * cell_px**2 * cell_frames)
        working = max(working, 2 * out) + features + out
    return MemoryBlocks(working, memories)


def pixel_path_activations(
    config: PixelPathConfig, *, height: int, width: int, element: int
) -> int:
    """Return the bytes of the pixel path for one low-resolution frame of ``height`` x
    ``width`` pixels: the blocks, plus the residual and the Lanczos result at the full
    size in float32. The recurrent memories are part of the state; those of the current
    and the previous frame are added.
    """
    plane, small = config.scale**2 * height * width, height * width // config.patch**2
    blocks = (2 * config.blocks + 4) * config.width * small
    return element * (3 * height * width + blocks) + 3 * plane * (2 * element + 3 * FLOAT32)
