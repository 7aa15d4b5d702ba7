"""FlexAttention's masks and results against the reference; its backward pass needs a
GPU."""

import pytest
import torch

from ultraflash_kernels.block_sparse_attention import (
    block_sparse_attention,
    flex,
    reference,
)
from ultraflash_kernels.testing import TOLERANCE


def example(tokens: int, width: int, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(5)
    q = torch.randn(2, 3, 4, tokens, width, generator=rng)
    k, v = torch.randn(2, 2, 3, 5, tokens, width, generator=rng)
    mask = torch.rand(2, 3, 4, 5, generator=rng) < 0.4
    mask[0, 0, 1] = False
    return tuple(x.to(device) for x in (q, k, v, mask))


def test_lists_and_transposed_lists_hold_what_the_mask_selects_of_every_head() -> None:
    mask = example(8, 16)[3]
    lists = flex.block_mask_of(mask, 8)
    assert lists.kv_num_blocks.sum() == 0  # nothing inside a block is masked
    for counts, indices, wanted in (
        (lists.full_kv_num_blocks, lists.full_kv_indices, mask),
        (lists.full_q_num_blocks, lists.full_q_indices, mask.transpose(2, 3)),
    ):
        assert counts is not None and indices is not None
        used = torch.arange(indices.shape[-1]) < counts[..., None]
        found = torch.zeros_like(wanted, dtype=torch.int).scatter_add_(
            3, indices.long(), used.int()
        )
        assert torch.equal(found.bool(), wanted)
        assert found.max() == 1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_it_returns_what_the_reference_does_and_zeros_where_nothing_is_selected() -> None:
    q, k, v, mask = example(8, 16)
    out = flex.forward(q, k, v, mask)
    torch.testing.assert_close(
        out, reference.forward(q, k, v, mask), rtol=0, atol=4 * TOLERANCE[torch.float32]
    )
    assert (out[0, 0, 1] == 0).all()


def test_it_is_not_taken_without_a_gpu_nor_for_other_blocks() -> None:
    assert "on a GPU only" in (flex.flex_refusal(example(128, 64)[0]) or "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gradients_on_a_gpu_are_the_references() -> None:
    q, k, v, mask = example(128, 64, "cuda")
    grads: list[list[torch.Tensor]] = []
    for attend in (block_sparse_attention, reference.forward):
        a, b, c = (x.detach().clone().requires_grad_() for x in (q, k, v))
        attend(a, b, c, mask).square().sum().backward()
        grads.append([x.grad for x in (a, b, c) if x.grad is not None])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
