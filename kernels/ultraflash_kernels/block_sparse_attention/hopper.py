"""Whether attention uses its kernel for Hopper, which is compared with other
implementations before its first use."""

import functools
import importlib
import math
import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_kernels import dispatch
from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.token_order import blocks_of

__all__ = [
    "HOPPER_WINS",
    "HopperUse",
    "device_refusal",
    "fault",
    "is_chosen",
    "off",
    "path",
    "refusal",
    "works",
]

HopperUse = Literal["block lists", "dense"]

HOPPER_WINS: frozenset[tuple[HopperUse, torch.dtype]] = frozenset()
"""Uses and dtypes for which ``auto`` uses the kernel, float8_e4m3fn for the one in 8
bits. Only measured wins over the Triton kernel, or over SDPA for dense attention in 16
bits, belong here, and nothing has been measured yet."""

CAPABILITY = (9, 0)
DTYPES = (torch.bfloat16, torch.float16)
SIDE = 128
"""Tokens of a block and channels of a head."""
ALIGNMENT = 16
"""Multiple of bytes at which TMA reads rows."""

CHECKS = 3
"""Random examples that are compared."""
MOST_OFF = 0.02
"""Allowed norm of the error of a token, relative to its norm; roundings to bfloat16
amount to 0.005."""
MOST_OFF_FP8 = 0.15
"""The same in 8 bits, where both kernels round weights by up to a sixteenth."""
CHECKED_SIZE = (6, 60, 60)
"""Frames, rows and columns of tokens in an example: 192 blocks of ``CHECKED_BLOCK``,
more than a GPU computes at once."""
CHECKED_BLOCK = (2, 8, 8)
CHECKED_TOKENS = 2000
"""Approximate number of queries of an example without blocks."""


def is_chosen(use: HopperUse, q: Tensor, *others: Tensor) -> bool:
    """Return whether ``auto`` uses the kernel for these queries, keys and values."""
    return (
        (use, q.dtype) in HOPPER_WINS
        and refusal(q, *others) is None
        and works(use, q.device, q.dtype)
    )


def refusal(q: Tensor, *others: Tensor) -> str | None:
    """Return a sentence that explains why the kernel supports no such queries, keys and
    values ``[B, H, N, T, D]`` or ``[B, H, tokens, D]``, or None."""
    if (reason := device_refusal(q.device)) is not None:
        return reason
    if q.dtype not in DTYPES or any(x.dtype != q.dtype for x in others):
        return f"the kernel for Hopper needs bfloat16 or float16, got {q.dtype}."
    for x in (q, *others):
        if x.shape[-1] != SIDE or (x.ndim == 5 and x.shape[3] != SIDE):
            shape = list(x.shape)
            return f"the kernel for Hopper needs blocks and heads of {SIDE}, got {shape}."
        if x.numel() == 0:
            return f"the kernel for Hopper needs tokens, got {list(x.shape)}."
        if not _tma_reads(x):
            layout = list(x.stride())
            return f"the kernel for Hopper cannot read tokens with strides {layout}."
    return None


def device_refusal(device: torch.device) -> str | None:
    """Return a sentence that explains why the kernel does not run on ``device``, or
    None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"the kernel for Hopper needs an NVIDIA GPU, the tensors are on {device}."
    if (found := dispatch.capability(device)) != CAPABILITY:
        got = ".".join(map(str, found))
        return f"the kernel for Hopper needs compute capability 9.0, got {got}."
    if not _has_gluon():
        return "the kernel for Hopper needs Gluon, which is part of Triton 3.6 and later."
    return None


def _tma_reads(x: Tensor) -> bool:
    """Return whether TMA can read the tokens of ``x``: channels are contiguous, and
    blocks follow one another."""
    adjoining = x.ndim == 4 or x.shape[2] == 1 or x.stride(2) == SIDE * x.stride(3)
    offsets = (*x.stride()[:-1], x.storage_offset())
    aligned = all(each * x.itemsize % ALIGNMENT == 0 for each in offsets)
    return x.stride(-1) == 1 and adjoining and aligned


# torch.compile treats the results of these as constants.
@torch.compiler.assume_constant_result
def _has_gluon() -> bool:
    return _finds_gluon()


@functools.cache
def _finds_gluon() -> bool:
    try:
        importlib.import_module("triton.experimental.gluon.language.nvidia.hopper")
    except (ImportError, AttributeError):
        return False
    return True


@torch.compiler.assume_constant_result
def works(use: HopperUse, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the kernel has passed its check. A CUDA graph that is being
    recorded cannot wait for one; whatever it records has run before, with a check."""
    try:
        return fault(use, device, dtype) is None
    except _RecordingError:
        return False


class _RecordingError(Exception):
    """A CUDA graph is being recorded, so that nothing can be compared."""


@functools.cache
def fault(use: HopperUse, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what the kernel does wrong on ``device``, to follow its name, or None.

    Determined once per process, by comparing it on random examples with the Triton
    kernel or with SDPA; a fault is reported as a warning.
    """
    if torch.cuda.is_current_stream_capturing():
        raise _RecordingError
    check = {"block lists": _lists_off, "dense": _dense_off}[use]
    fp8 = dtype == torch.float8_e4m3fn
    found: str | None = None
    try:
        with torch.no_grad():
            most = max(check(device, dtype, seed) for seed in range(CHECKS))
        if not most <= (MOST_OFF_FP8 if fp8 else MOST_OFF):
            found = f"computes wrong results (a token is off by {most:.2g} of its norm)"
    except Exception as error:  # compilers raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        found = f"fails ({reason})"
    if found is not None:
        other = "the Triton kernel" if fp8 or use == "block lists" else "SDPA"
        warnings.warn(
            f"the attention kernel for Hopper{' in 8 bits' * fp8} {found}; {other} runs "
            "instead",
            RuntimeWarning,
            stacklevel=2,
        )
    return found


def _lists_off(device: torch.device, dtype: torch.dtype, seed: int) -> float:
    """Return the largest error with lists of all lengths, from a ring and the group,
    with and without padding."""
    if dtype == torch.float8_e4m3fn:
        from ultraflash_kernels.block_sparse_attention import hopper_fp8

        return hopper_fp8.lists_off(device, seed)
    from ultraflash_kernels.block_sparse_attention import kernel, kernel_hopper

    random = torch.Generator(device).manual_seed(seed)
    blocks, heads = math.prod(blocks_of(CHECKED_SIZE, CHECKED_BLOCK)), 2
    fill = blocks // 3
    drawn = torch.randn(
        (3, 1, heads, blocks + fill, SIDE, SIDE), generator=random, device=device
    )
    # Large queries make weights differ, so that each block matters.
    q, k, v = (x.to(dtype) for x in (4 * drawn[0, :, :, :blocks], *drawn[1:]))
    ring = k[:, :, :fill].contiguous(), v[:, :, :fill].contiguous()
    k, v = k[:, :, fill:], v[:, :, fill:]
    shape = (1, heads, blocks, fill + blocks)
    share = torch.linspace(0, 0.5, blocks, device=device)[:, None]
    lists = BlockLists.from_mask(
        torch.rand(shape, generator=random, device=device) < share * share
    )
    given = (q, k, v, lists, *ring, fill)
    return max(
        off(kernel_hopper.forward(*given, grid), kernel.forward(*given, grid))
        for grid in ((), (*CHECKED_SIZE, *CHECKED_BLOCK))
    )


def _dense_off(device: torch.device, dtype: torch.dtype, seed: int) -> float:
    """Return the largest error with keys that fill no whole number of blocks."""
    if dtype == torch.float8_e4m3fn:
        from ultraflash_kernels.block_sparse_attention import hopper_fp8

        return hopper_fp8.dense_off(device, seed)
    from ultraflash_kernels.block_sparse_attention import kernel_hopper

    random = torch.Generator(device).manual_seed(seed)
    tokens, keys, heads = CHECKED_TOKENS + seed, CHECKED_TOKENS // 2 + 130 * seed, 12
    size = (3, 1, heads, 2 * tokens, SIDE)
    drawn = torch.randn(size, generator=random, device=device).to(dtype)
    q, k, v = 4 * drawn[0, :, :, :tokens], drawn[1, :, :, :keys], drawn[2, :, :, :keys]
    # What follows the keys must not matter.
    drawn[1:, :, :, keys:] = torch.nan
    return off(kernel_hopper.dense(q, k, v), F.scaled_dot_product_attention(q, k, v))


def off(got: Tensor, expected: Tensor) -> float:
    """Return the largest error of a token relative to its norm; infinite if there is
    none, as of NaN."""
    error = (got.float() - expected.float()).norm(dim=-1)
    norm = expected.float().norm(dim=-1)
    ratio = torch.where(error == 0, 0.0, error / norm)
    return float(ratio.nan_to_num(nan=torch.inf).max())


def path(device: torch.device) -> tuple[str, str | None]:
    """Return which kernel ``auto`` uses on a GPU with Triton, and why it is not the one
    for Hopper, if that was measured to win."""
    if device_refusal(device) is not None:
        return "Triton kernel", None
    if not HOPPER_WINS:
        return "Triton kernel, as the one for Hopper has not been measured", None
    uses: set[str] = set()
    for use, dtype in sorted(HOPPER_WINS, key=str):
        if (found := fault(use, device, dtype)) is not None:
            return "Triton kernel", f"the one for Hopper {found}"
        uses.add(f"{use} in 8 bits" if dtype == torch.float8_e4m3fn else use)
    *most, last = sorted(uses)
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"Gluon kernel for {listed}, else Triton kernel and SDPA", None
