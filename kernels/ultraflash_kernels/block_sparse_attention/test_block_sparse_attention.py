"""Block-sparse attention against a loop over rows and tokens."""

import math

import pytest
import torch
from torch import Tensor

from ultraflash_kernels.block_sparse_attention import block_sparse_attention
from ultraflash_kernels.testing import TOLERANCE


def oracle(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """One query token at a time, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    batch, heads, rows, tokens, width = q.shape
    for b in range(batch):
        for h in range(heads):
            for i in range(rows):
                chosen = [j for j in range(k.shape[2]) if mask[b, h, i, j]]
                if not chosen:
                    continue
                keys = torch.cat([k[b, h, j] for j in chosen])
                values = torch.cat([v[b, h, j] for j in chosen])
                for t in range(tokens):
                    weight = torch.exp(keys @ q[b, h, i, t] / math.sqrt(width))
                    out[b, h, i, t] = (weight / weight.sum()) @ values
    return out


def example(
    batch: int,
    heads: int,
    rows: int,
    keys: int,
    tokens: int,
    width: int,
    *,
    density: float = 0.3,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rows * 100 + keys)
    q = torch.randn(batch, heads, rows, tokens, width, generator=draw, dtype=torch.float64)
    k, v = (
        torch.randn(batch, heads, keys, tokens, width, generator=draw, dtype=torch.float64)
        for _ in range(2)
    )
    return q, k, v, torch.rand(batch, heads, rows, keys, generator=draw) < density


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("batch", "heads", "rows", "keys", "tokens", "width"),
    [
        pytest.param(1, 1, 1, 1, 1, 1, id="one of everything"),
        pytest.param(2, 3, 5, 7, 4, 6, id="small"),
        pytest.param(1, 2, 37, 11, 3, 5, id="odd sizes"),
        pytest.param(1, 2, 3, 4, 128, 32, id="a block of 128"),
    ],
)
def test_it_equals_a_loop_over_tokens(
    batch: int,
    heads: int,
    rows: int,
    keys: int,
    tokens: int,
    width: int,
    dtype: torch.dtype,
) -> None:
    q, k, v, mask = example(batch, heads, rows, keys, tokens, width)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    out = block_sparse_attention(q, k, v, mask)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), oracle(q, k, v, mask), rtol=0, atol=2 * TOLERANCE[dtype]
    )


def test_inputs_need_not_be_contiguous() -> None:
    q, k, v, mask = example(2, 3, 5, 7, 4, 6)
    sq, sk, sv = (
        x.permute(0, 2, 3, 1, 4).contiguous().permute(0, 3, 1, 2, 4) for x in (q, k, v)
    )
    assert not sq.is_contiguous()
    torch.testing.assert_close(
        block_sparse_attention(sq, sk, sv, mask), block_sparse_attention(q, k, v, mask)
    )


def test_a_row_that_selects_nothing_gives_zeros() -> None:
    q, k, v, mask = example(1, 2, 4, 5, 3, 4)
    mask[0, 1, 2] = False
    out = block_sparse_attention(q, k, v, mask)
    assert (out[0, 1, 2] == 0).all()
    assert (block_sparse_attention(q, k, v, torch.zeros_like(mask)) == 0).all()


def test_heads_use_their_own_masks() -> None:
    q, k, v, mask = example(1, 2, 4, 5, 3, 4, density=0.5)
    alone = block_sparse_attention(q[:, :1], k[:, :1], v[:, :1], mask[:, :1])
    # Products of another number of heads may be summed in another order.
    torch.testing.assert_close(
        block_sparse_attention(q, k, v, mask)[:, :1], alone, rtol=1e-12, atol=1e-12
    )


def test_padded_keys_are_attended_to() -> None:
    q, k, v, _ = example(1, 1, 1, 1, 4, 2)
    k[..., 2:, :], v[..., 2:, :] = 0.0, 0.0
    weight = torch.exp(q[0, 0, 0] @ k[0, 0, 0, :2].T / math.sqrt(2))
    expected = (
        weight @ v[0, 0, 0, :2] / (weight.sum(-1, keepdim=True) + 2)
    )  # each padded key adds exp(0)
    out = block_sparse_attention(q, k, v, torch.ones(1, 1, 1, 1, dtype=torch.bool))
    torch.testing.assert_close(out[0, 0, 0], expected)


def test_a_row_depends_on_nothing_but_the_blocks_it_selects() -> None:
    q, k, v, mask = example(1, 2, 9, 6, 8, 4)
    mask[..., 0] = True
    mask[..., 5] = False
    mask[:, :, 4, 5] = True
    before = block_sparse_attention(q.float(), k.float(), v.float(), mask)
    q[:, :, 4], k[:, :, 5], v[:, :, 5] = math.nan, math.nan, math.nan
    mask[:, :, 4] = True  # and how many its neighbour selects
    after = block_sparse_attention(q.float(), k.float(), v.float(), mask)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(before[:, :, others], after[:, :, others])
    assert after[:, :, 4].isnan().all()


def test_gradients_are_those_of_the_definition() -> None:
    q, k, v, mask = example(1, 2, 3, 4, 2, 2, density=0.5)
    for x in (q, k, v):
        x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b, c: block_sparse_attention(a, b, c, mask), (q, k, v)
    )


def test_arguments_that_do_not_fit_are_refused() -> None:
    q, k, v, mask = example(1, 2, 3, 4, 2, 2)
    with pytest.raises(ValueError, match="q, k, v must be"):
        block_sparse_attention(q, k, v[:, :, 1:], mask)
    with pytest.raises(ValueError, match="mask must be bool"):
        block_sparse_attention(q, k, v, mask[:, :, 1:])
    with pytest.raises(ValueError, match="mask must be bool"):
        block_sparse_attention(q, k, v, mask.float())
