"""Attention in 8 bits: near attention that is not, the kernel near the reference,
padding, refusals."""

import math

import pytest
import torch
from torch import Tensor

from ultraflash_kernels import dispatch
from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import block_list_attention
from ultraflash_kernels.dispatch import Impl, KernelUnsupportedError
from ultraflash_kernels.testing import DEVICE

FILL = 2


def attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    fp8: bool = True,
    impl: Impl = "reference",
) -> Tensor:
    """Attend with the first ``FILL`` blocks of k and v in a ring whose unused places
    are NaN."""
    rings: list[Tensor] = []
    for x in (k, v):
        ring = torch.full_like(x, math.nan)
        ring[:, :, :FILL] = x[:, :, :FILL]
        rings.append(ring)
    lists, new = BlockLists.from_mask(mask), slice(FILL, None)
    ring = (rings[0], rings[1])
    return block_list_attention(
        q, k[:, :, new], v[:, :, new], lists, ring=ring, fill=FILL, fp8=fp8, impl=impl
    )


def case(
    tokens: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blocks of tokens of uneven size, some of them padding; a row that lists nothing,
    and one that lists all."""
    draw = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, 2, n, tokens, width, generator=draw) for n in (2, 4, 4))
    v = v * 4.0 ** torch.randn(1, 2, 4, tokens, 1, generator=draw)
    for x in (k, v):
        x[:, :, 1, tokens // 2 :] = 0.0
        x[:, :, 3] = 0.0
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]).bool().expand(1, 2, 2, 4)
    return q.to(DEVICE, dtype), k.to(DEVICE, dtype), v.to(DEVICE, dtype), mask.to(DEVICE)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(
    ("tokens", "width", "dtype"),
    [
        pytest.param(128, 128, torch.float16, id="as published"),
        pytest.param(32, 24, torch.float32, id="two blocks a step"),
        pytest.param(37, 16, torch.float32, id="odd"),
    ],
)
def test_the_kernel_is_near_the_definition_and_both_near_16_bits(
    tokens: int, width: int, dtype: torch.dtype
) -> None:
    q, k, v, mask = case(tokens, width, dtype)
    by_kernel, defined = attended(q, k, v, mask, impl="triton"), attended(q, k, v, mask)
    assert by_kernel.dtype == dtype and (by_kernel[:, :, 0] == 0).all(), (
        "a row without blocks gives zeros"
    )
    assert off(by_kernel, defined) < 0.04, "weights of three bits of mantissa"
    assert 0 < off(defined, attended(q, k, v, mask, fp8=False)) < 0.1


def test_what_cannot_run_in_8_bits_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, mask = case(512, 128, torch.float16)
    with pytest.raises(
        KernelUnsupportedError, match="65536 values, expected at most 32768"
    ):
        attended(q, k, v, mask, impl="triton")
    monkeypatch.setattr(dispatch, "device_refusal", lambda _device: "there is none.")
    q, k, v, mask = case(16, 16, torch.float16)
    with pytest.raises(KernelUnsupportedError, match="there is none"):
        attended(q, k, v, mask, impl="triton")
