"""Whether attention in 8 bits uses its kernel for Hopper, and its comparison with the
Triton kernels."""

import math

import torch
from torch import Tensor

from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import hopper
from ultraflash_kernels.block_sparse_attention.hopper import HopperUse
from ultraflash_kernels.fp8_linear import Fp8Rows, quantise_rows
from ultraflash_kernels.token_order import blocks_of

__all__ = ["E4M3", "dense_off", "is_chosen", "lists_off", "refusal"]

E4M3 = torch.float8_e4m3fn
"""The dtype of entries of ``HOPPER_WINS`` for 8 bits."""
GROUP = 16
"""Tokens per group that TMA reads; a buffer's capacity per head must be a multiple."""


def is_chosen(use: HopperUse, q: Fp8Rows, *others: Fp8Rows) -> bool:
    """Return whether ``auto`` uses the kernel for these queries, keys and values."""
    return (
        (use, E4M3) in hopper.HOPPER_WINS
        and refusal(q, *others) is None
        and hopper.works(use, q.values.device, E4M3)
    )


def refusal(q: Fp8Rows, *others: Fp8Rows) -> str | None:
    """Return a sentence that explains why the kernel supports no such queries, and
    pairs of keys and values that are ``turned``, in blocks or not, or None."""
    if (reason := hopper.device_refusal(q.values.device)) is not None:
        return reason
    side = hopper.SIDE
    for at, rows in enumerate((q, *others)):
        shape = list(rows.values.shape)
        channels, tokens = shape[-2:] if at and at % 2 == 0 else reversed(shape[-2:])
        if channels != side or (len(shape) == 5 and tokens != side):
            return f"the kernel for Hopper needs blocks and heads of {side}, got {shape}."
        if rows.values.numel() == 0:
            return f"the kernel for Hopper needs tokens, got {shape}."
        if rows.values.storage_offset() % GROUP:
            return f"the kernel for Hopper reads from multiples of {GROUP} bytes."
    for k, v in zip(others[::2], others[1::2], strict=True):
        if k.values.ndim == 4 and not _whole_buffers(k, v):
            return (
                "the kernel for Hopper needs keys and values that start buffers of equal "
                f"capacity, a multiple of {GROUP} tokens."
            )
    return None


def _whole_buffers(k: Fp8Rows, v: Fp8Rows) -> bool:
    """Return whether keys ``[B, H, keys, D]`` and values ``[B, H, D, keys]`` are the
    first ones of contiguous buffers of as many tokens, a multiple of ``GROUP``."""
    samples, heads, keys, width = k.values.shape
    capacity = v.values.stride(2)
    heads_apart = {x.stride(1) for x in (k.values, v.values)}
    heads_apart |= {x.stride(1) * width for x in (k.scales, v.scales)}
    whole = heads_apart == {capacity * width} and all(
        samples == 1 or x.stride(0) == heads * x.stride(1) for x in (*k, *v)
    )
    rows = k.values.stride()[2:] == (width, 1) and v.values.stride(3) == 1
    scales = k.scales.stride(2) == v.scales.stride(3) == 1
    stored = k.values.untyped_storage().nbytes() - k.values.storage_offset()
    last = ((samples * heads - 1) * capacity + -(-keys // GROUP) * GROUP) * width
    return whole and rows and scales and capacity % GROUP == 0 and last <= stored


def lists_off(device: torch.device, seed: int) -> float:
    """Return the largest error relative to the Triton kernel with lists of all lengths,
    from a ring and the group, with and without padding."""
    from ultraflash_kernels.block_sparse_attention import kernel_fp8, kernel_hopper_fp8

    random = torch.Generator(device).manual_seed(seed)
    blocks, heads = math.prod(blocks_of(hopper.CHECKED_SIZE, hopper.CHECKED_BLOCK)), 2
    fill = blocks // 3
    size = (1, heads, blocks + fill, hopper.SIDE)
    q, k, v = (_uneven(size, random) for _ in range(3))
    small_q, small_k = _small(4 * q[:, :, :blocks]), _small(k)
    small_v = _small(v).turned()
    parts = (slice(0, fill), slice(fill, blocks + fill))
    ring, new = ((_part(small_k, part), _part(small_v, part)) for part in parts)
    share = torch.linspace(0, 0.5, blocks, device=device)[:, None]
    drawn = torch.rand((1, heads, blocks, fill + blocks), generator=random, device=device)
    given = (small_q, *new, BlockLists.from_mask(drawn < share * share), ring, fill)

    grids = ((), (*hopper.CHECKED_SIZE, *hopper.CHECKED_BLOCK))
    dtype = torch.bfloat16
    return max(
        hopper.off(
            kernel_hopper_fp8.forward(*given, grid, dtype),
            kernel_fp8.forward(*given, grid, dtype),
        )
        for grid in grids
    )


def dense_off(device: torch.device, seed: int) -> float:
    """Return the largest error relative to the Triton kernel with keys that fill no
    whole number of blocks, in larger buffers."""
    from ultraflash_kernels.block_sparse_attention import (
        kernel_fp8_dense,
        kernel_hopper_fp8,
    )

    random = torch.Generator(device).manual_seed(seed)
    tokens, heads = hopper.CHECKED_TOKENS + seed, 12
    keys, capacity = tokens // 2 + 130 * seed, GROUP * (2 * tokens // GROUP + 1)
    q, k, v = (_uneven((1, heads, capacity), random) for _ in range(3))
    # What follows the keys must not matter.
    k[:, :, keys:] = torch.nan
    v[:, :, keys:] = torch.nan
    small_q = _small(4 * q[:, :, :tokens])
    small_k = _part(_small(k), slice(0, keys))
    small_v = Fp8Rows(*(x[..., :keys] for x in _small(v).turned()))
    given = (small_q, small_k, small_v, torch.bfloat16)
    return hopper.off(kernel_hopper_fp8.dense(*given), kernel_fp8_dense.forward(*given))


def _uneven(size: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Draw tokens ``[*size, SIDE]`` of different sizes, so that each scale matters."""
    drawn = torch.randn(*size, hopper.SIDE + 1, generator=random, device=random.device)
    return 2 ** drawn[..., -1:] * drawn[..., :-1]


def _small(x: Tensor) -> Fp8Rows:
    return quantise_rows(x, impl="reference")


def _part(rows: Fp8Rows, part: slice) -> Fp8Rows:
    return Fp8Rows(*(x[:, :, part] for x in rows))
