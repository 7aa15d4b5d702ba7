"""Launches of every kernel as its operation makes them, on tensors without storage."""

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from ultraflash_kernels.block_lists import BlockLists, BlockRule
from ultraflash_kernels.fp8_linear import Fp8Rows

__all__ = ["CASES", "EIGHT_BITS"]

GRID = (6, 90, 156, 2, 8, 8)
"""Frames, rows and columns of tokens of a group of the 2K stage, and those of a block."""


def blocks(dtype: torch.dtype, *, width: int = 128, tokens: int = 128, count: int = 720) -> Tensor:
    """Return queries or keys in the SR transformer's layout, with the heads of a token
    next to each other, without storage."""
    return torch.empty((1, count, tokens, 12, width), dtype=dtype, device="meta").permute(0, 3, 1, 2, 4)


def attention(
    dtype: torch.dtype, *, width: int = 128, tokens: int = 128, ring: bool = True, hopper: bool = False
) -> None:
    """Launch block-sparse attention of a group of the 2K stage, by the kernel for
    Hopper if ``hopper``."""
    from ultraflash_kernels.block_sparse_attention import kernel, kernel_hopper

    new = blocks(dtype, width=width, tokens=tokens)
    old = torch.empty((1, 12, 720, tokens, width), dtype=dtype, device="meta")
    rows, fill = 12 * 720, 720 if ring else 0
    starts, chosen, order = (torch.empty(size, dtype=torch.int32, device="meta") for size in (rows + 1, 1 << 22, rows))
    lists = BlockLists(starts, chosen, order, (1, 12, 720, fill + 720))
    remembered = (old, old) if ring else (None, None)
    forward = kernel_hopper.forward if hopper else kernel.forward
    forward(new, new, new, lists, *remembered, fill, GRID if tokens == 128 else ())


def dense_attention_fp8(*, width: int = 128) -> None:
    """Launch dense attention in 8 bits of a chunk of the generator, to its ring."""
    from ultraflash_kernels.block_sparse_attention import kernel_fp8_dense

    q, k, v = chunk_rows(width)
    kernel_fp8_dense.forward(q, k, v, torch.bfloat16)


def chunk_rows(width: int) -> tuple[Fp8Rows, Fp8Rows, Fp8Rows]:
    """Return a chunk of the generator in 8 bits, and the first keys and values of its
    ring, which holds a multiple of 16 tokens."""

    def rows(*shape: int) -> Tensor:
        return on_meta(1, 12, *shape, dtype=torch.float8_e4m3fn)

    def scales(*shape: int) -> Tensor:
        return on_meta(1, 12, *shape, dtype=torch.float32)

    capacity, used = 32768, 6 * 1560
    return (
        Fp8Rows(rows(4680, width), scales(4680, 1)),
        Fp8Rows(rows(capacity, width)[:, :, :used], scales(capacity, 1)[:, :, :used]),
        Fp8Rows(rows(width, capacity)[..., :used], scales(1, capacity)[..., :used]),
    )


def dense_attention(dtype: torch.dtype) -> None:
    """Launch dense attention of a chunk of the generator, to its ring."""
    from ultraflash_kernels.block_sparse_attention import kernel_hopper

    ring = torch.empty((1, 12, 21 * 1560, 128), dtype=dtype, device="meta")[:, :, : 6 * 1560]
    q = torch.empty((1, 12, 4680, 128), dtype=dtype, device="meta")
    kernel_hopper.dense(q, ring, ring)


def attention_fp8(*, width: int = 128, tokens: int = 128, ring: bool = True) -> None:
    """Launch block-sparse attention in 8 bits of a group of the 2K stage."""
    from ultraflash_kernels.block_sparse_attention import kernel_fp8

    rows = small_rows(tokens, width)
    turned, fill = small_rows(width, tokens, turned=True), 720 if ring else 0
    starts, chosen, order = (on_meta(size, dtype=torch.int32) for size in (12 * 720 + 1, 1 << 22, 12 * 720))
    lists = BlockLists(starts, chosen, order, (1, 12, 720, fill + 720))
    remembered = (rows, turned) if ring else None
    grid = GRID if tokens == 128 else ()
    kernel_fp8.forward(rows, rows, turned, lists, remembered, fill, grid, torch.bfloat16)


def hopper_fp8(*, ring: bool = True) -> None:
    """Launch block-sparse attention in 8 bits of a group of the 2K stage, by the kernel
    for Hopper."""
    from ultraflash_kernels.block_sparse_attention import kernel_fp8, kernel_hopper_fp8

    with mock.patch.object(kernel_fp8, "forward", kernel_hopper_fp8.forward):
        attention_fp8(ring=ring)


def hopper_fp8_dense() -> None:
    """Launch dense attention in 8 bits of a chunk of the generator by the kernel for
    Hopper."""
    from ultraflash_kernels.block_sparse_attention import kernel_fp8_dense, kernel_hopper_fp8

    with mock.patch.object(kernel_fp8_dense, "forward", kernel_hopper_fp8.dense):
        dense_attention_fp8()


def small_rows(rows: int, cols: int, *, turned: bool = False) -> Fp8Rows:
    """Return rows of the blocks of a group of the 2K stage in 8 bits."""
    step = (1, cols) if turned else (rows, 1)
    values = on_meta(1, 12, 720, rows, cols, dtype=torch.float8_e4m3fn)
    return Fp8Rows(values, on_meta(1, 12, 720, *step, dtype=torch.float32))


def choice(dtype: torch.dtype) -> None:
    """Launch means and selection of blocks of a group of the 2K stage."""
    from ultraflash_kernels.block_topk import kernel

    rule = BlockRule(rows=12, cols=20, temporal=3, remembered=3, window=9, budget=6400)
    q = blocks(torch.bfloat16)
    kernel.choose_blocks(kernel.block_means([q], dtype), kernel.block_means([q, q], dtype), rule)


def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return a tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")


def modulated(vectors: torch.dtype, *, small: bool = False) -> None:
    """Launch norm and modulation of a group of the 2K stage, to 8 bits if ``small``."""
    from ultraflash_kernels.adaln_modulate import kernel

    launch = kernel.modulate_fp8 if small else kernel.modulate
    launch(on_meta(1, 720, 128, 1536), on_meta(1, 1536, dtype=vectors), on_meta(1, 1536, dtype=vectors), 1e-6)


def moved(*, affine: bool = False) -> None:
    """Launch the norm of a residual stream that lacks an offset, of a group of the 2K
    stage."""
    from ultraflash_kernels.adaln_modulate import kernel

    offset = on_meta(1536, dtype=torch.float32)
    vector = on_meta(1536) if affine else on_meta(1, 1536, dtype=torch.float32)
    kernel.modulate(on_meta(1, 92160, 1536), vector, vector, 1e-6, offset, affine)


def gated() -> None:
    """Launch the gated sum of a group of the 2K stage."""
    from ultraflash_kernels.adaln_modulate import kernel

    x = on_meta(1, 720, 128, 1536)
    kernel.gate(x, x, on_meta(1, 1536, dtype=torch.float32))


def summed(norm: str) -> None:
    """Launch a sum and its norm of a group of the 2K stage, with an offset of a chunk of
    the generator."""
    from ultraflash_kernels.adaln_modulate import kernel

    x, vector = on_meta(1, 720, 128, 1536), on_meta(1, 1536, dtype=torch.float32)
    if norm == "weights":
        weight = on_meta(1536)
        kernel.residual_norm(x, x, vector, weight, weight, 1e-6, True, False)
    elif norm == "offset":
        chunk, vectors = on_meta(1, 3, 1560, 1536), on_meta(1, 3, 1536)
        kernel.residual_norm(chunk, chunk, vectors, vectors, vectors, 1e-6, False, False, on_meta(1536))
    else:
        kernel.residual_norm(x, x, None, vector, vector, 1e-6, False, norm == "fp8")


def normed() -> None:
    """Launch the norm of the tokens of a group of the 2K stage."""
    from ultraflash_kernels.rms_norm import kernel

    kernel.norm(on_meta(1, 92160, 1536), on_meta(1536), 1e-6)


def to_text(tokens: int, keys: int, *, small: bool = False) -> None:
    """Launch attention to a prompt for this many tokens; ``small`` writes 8 bits."""
    from ultraflash_kernels.text_attention import kernel

    kv = on_meta(1, 12, keys, 128)
    given = (on_meta(1, tokens, 1536), on_meta(1536), kv, kv, on_meta(keys, dtype=torch.float32), 1e-6)
    _ = kernel.forward_fp8(*given) if small else kernel.forward(*given)


def turned() -> None:
    """Launch norm, rotation and scatter of a group of the 2K stage."""
    from ultraflash_kernels.rms_norm_rope import kernel

    x, weight, turns = on_meta(1, 720, 128, 1536), on_meta(1536), on_meta(5298, 2, dtype=torch.float32)
    size = (6, 90, 156)
    out = on_meta(1, 12, 720, 128, 128)
    kernel.forward(x, x, x, weight, weight, turns, (22, 21, 21), size, size, (2, 8, 8), 1e-6, (out, out, out))


def turned_blocks(*, small: bool = False) -> None:
    """Launch norm, rotation, scatter and means of a group of the 2K stage, without
    padding, to 8 bits if ``small``."""
    from ultraflash_kernels.rms_norm_rope import kernel_blocks

    size, block = GRID[:3], GRID[3:]
    x, weight, turns = on_meta(1, 84240, 1536), on_meta(1536), on_meta(5298, 2, dtype=torch.float32)
    out, mean = on_meta(1, 12, 720, 128, 128), on_meta(1, 12, 720, 128)
    given = (x, x, x, weight, weight, turns, (22, 21, 21), size, size, block, 1e-6)
    if small:
        values, scales = small_rows(128, 128)
        kernel_blocks.forward(*given, (values, values, values), (mean, mean), (scales, scales, scales))
    else:
        kernel_blocks.forward(*given, (out, out, out), (mean, mean))


def turned_tokens() -> None:
    """Launch norm, rotation and scatter of a chunk of the generator to 8 bits, with
    keys and values to its ring."""
    from ultraflash_kernels.rms_norm_rope import kernel_tokens

    size = (3, 30, 52)
    x, weight, turns = on_meta(1, 4680, 1536), on_meta(1536), on_meta(1788, 2, dtype=torch.float32)
    (q, q_scales), (k, k_scales), (v, v_scales) = chunk_rows(128)
    out, scales = (q, k[:, :, :4680], v[..., :4680]), (q_scales, k_scales[:, :, :4680], v_scales[..., :4680])
    kernel_tokens.forward(x, x, x, weight, weight, turns, (22, 21, 21), size, size, 1e-6, out, scales)


def converted(dtype: torch.dtype, bits: int, *, last: bool) -> None:
    """Launch the conversion of a group of frames at 2K, channels last or as planes."""
    from ultraflash_kernels.frames_to_yuv import kernel
    from ultraflash_kernels.frames_to_yuv.levels import Levels

    frames = on_meta(24, 3, 1440, 2496, dtype=dtype)
    frames = frames.contiguous(memory_format=torch.channels_last) if last else frames
    packed = on_meta(24, 1440 * 2496 * 3 // 2, dtype=torch.uint8 if bits == 8 else torch.uint16)
    levels = Levels(0.2126, 0.7152, 0.0722, 219.0, 16.0, 120.7, 142.2, 128.0, 255.0)
    kernel.forward(frames, packed, levels)


def quantised(width: int, *, gelu: bool = False) -> None:
    """Launch the quantisation of rows of a group of the 1K stage."""
    from ultraflash_kernels.fp8_linear import kernel

    kernel.quantise(on_meta(39936, width), gelu=gelu)


def convolved(channels: int) -> None:
    """Launch the first and the last convolution of a memory block."""
    from ultraflash_kernels.memory_conv import kernel

    x = on_meta(2, channels, 120, 208, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    both, one = (on_meta(channels, n * channels, 3, 3, dtype=torch.float16) for n in (2, 1))
    both, one = (weight.contiguous(memory_format=torch.channels_last) for weight in (both, one))
    bias = on_meta(channels, dtype=torch.float16)
    kernel.forward(x.unsqueeze(0), x[:1], both, bias, None, 0.0)
    kernel.forward(x.unsqueeze(1), None, one, bias, x, 0.0)


def doubled(channels: int, outs: int) -> None:
    """Launch the convolution behind a stage of the decoder that doubles its size."""
    from ultraflash_kernels.memory_conv import kernel

    x = on_meta(2, channels, 120, 208, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    taps = on_meta(4 * outs, channels, 2, 2, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    kernel.upsampled(x, taps.unsqueeze(0), None, 1.0)


CASES: dict[str, Callable[[], None]] = {
    "block_sparse_attention, bf16, head 128, ring": lambda: attention(torch.bfloat16),
    "block_sparse_attention, fp16, head 128, ring": lambda: attention(torch.float16),
    "block_sparse_attention, bf16, head 128": lambda: attention(torch.bfloat16, ring=False),
    "block_sparse_attention, bf16, head 64, ring": lambda: attention(torch.bfloat16, width=64),
    "block_sparse_attention, bf16, head 96, ring": lambda: attention(torch.bfloat16, width=96),
    "block_sparse_attention, bf16, head 32, 32 tokens, ring": lambda: attention(torch.bfloat16, width=32, tokens=32),
    "block_sparse_attention, fp32, head 128, ring": lambda: attention(torch.float32),
    "block_sparse_attention_hopper, bf16, ring": lambda: attention(torch.bfloat16, hopper=True),
    "block_sparse_attention_hopper, fp16": lambda: attention(torch.float16, ring=False, hopper=True),
    "block_sparse_attention_hopper, bf16, dense": lambda: dense_attention(torch.bfloat16),
    "block_sparse_attention_hopper, fp8, ring": hopper_fp8,
    "block_sparse_attention_hopper, fp8": lambda: hopper_fp8(ring=False),
    "block_sparse_attention_hopper, fp8, dense": hopper_fp8_dense,
    "block_sparse_attention_fp8, bf16, head 128, ring": attention_fp8,
    "block_sparse_attention_fp8, bf16, head 128": lambda: attention_fp8(ring=False),
    "block_sparse_attention_fp8, bf16, head 32, 32 tokens, ring": lambda: attention_fp8(width=32, tokens=32),
    "dense_attention_fp8, bf16, head 128": dense_attention_fp8,
    "dense_attention_fp8, bf16, head 64": lambda: dense_attention_fp8(width=64),
    "block_topk, bf16": lambda: choice(torch.bfloat16),
    "block_topk, fp32": lambda: choice(torch.float32),
    "adaln_modulate, bf16, float32 vectors": lambda: modulated(torch.float32),
    "adaln_modulate, bf16": lambda: modulated(torch.bfloat16),
    "adaln_modulate with an offset, bf16, float32 vectors": moved,
    "adaln_modulate with an offset, bf16, weights": lambda: moved(affine=True),
    "adaln_modulate_fp8, bf16, float32 vectors": lambda: modulated(torch.float32, small=True),
    "gated_residual, bf16, float32 gate": gated,
    "residual_norm, bf16, gate, weights": lambda: summed("weights"),
    "residual_norm, bf16, float32 vectors": lambda: summed("vectors"),
    "residual_norm with an offset, bf16, gate": lambda: summed("offset"),
    "residual_norm_fp8, bf16, float32 vectors": lambda: summed("fp8"),
    "rms_norm, bf16, 1536": normed,
    "rms_norm_rope, bf16, 12 heads of 128": turned,
    "rms_norm_rope_means, bf16, 12 heads of 128": turned_blocks,
    "rms_norm_rope_means_fp8, bf16, 12 heads of 128": lambda: turned_blocks(small=True),
    "rms_norm_rope_fp8, bf16, 12 heads of 128": turned_tokens,
    "text_attention, bf16, 128 keys": lambda: to_text(84240, 128),
    "text_attention, bf16, 512 keys": lambda: to_text(84240, 512),
    "text_attention, bf16, a chunk of the generator, 128 keys": lambda: to_text(4680, 128),
    "text_attention_fp8, bf16, 128 keys": lambda: to_text(84240, 128, small=True),
    "frames_to_yuv, fp16 planes to 8 bits": lambda: converted(torch.float16, 8, last=False),
    "frames_to_yuv, fp16 channels last to 8 bits": lambda: converted(torch.float16, 8, last=True),
    "frames_to_yuv, fp32 planes to 10 bits": lambda: converted(torch.float32, 10, last=False),
    "quantise_rows, bf16, 1536": lambda: quantised(1536),
    "quantise_rows, bf16, 8960": lambda: quantised(8960),
    "quantise_rows of GELU, bf16, 8960": lambda: quantised(8960, gelu=True),
    "memory_conv, fp16, 64 channels": lambda: convolved(64),
    "memory_conv, fp16, 128 channels": lambda: convolved(128),
    "memory_conv, fp16, 256 channels": lambda: convolved(256),
    "upsampled_conv, fp16, 256 to 128 channels": lambda: doubled(256, 128),
    "upsampled_conv, fp16, 64 to 64 channels": lambda: doubled(64, 64),
}
"""Functions that launch kernels, by their names in the table; a case with several
kernels lists each after its name."""

EIGHT_BITS = (
    "adaln_modulate_fp8",
    "block_sparse_attention_fp8",
    "dense_attention_fp8",
    "quantise_rows",
    "residual_norm_fp8",
    "rms_norm_rope_fp8",
    "rms_norm_rope_means_fp8",
    "text_attention_fp8",
)
"""Prefixes of the names of kernels that read or write float8_e4m3fn, which targets
before 89 do not support."""
