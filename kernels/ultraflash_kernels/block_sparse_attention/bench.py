"""Timing of block-sparse attention at the sizes of the SR transformer, compared with
dense and flexible attention."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ultraflash_kernels.block_lists import BlockRule
from ultraflash_kernels.block_sparse_attention import block_list_attention, hopper
from ultraflash_kernels.block_sparse_attention.op import AttentionImpl
from ultraflash_kernels.block_topk import choose_blocks
from ultraflash_kernels.measure import Case, main

__all__ = ["cases", "flexible_mask"]

RULES = {
    "1K": BlockRule(rows=8, cols=13, temporal=3, remembered=3, window=9, budget=2704),
    "2K": BlockRule(rows=12, cols=20, temporal=3, remembered=3, window=9, budget=6400),
}
SMALL = BlockRule(rows=3, cols=4, temporal=3, remembered=3, window=9, budget=60)


def flexible_mask(mask: Tensor, tokens: int) -> BlockMask:
    """Return FlexAttention's form of the same selection of whole blocks."""
    counts = mask.sum(dim=-1, dtype=torch.int32)
    blocks = mask.byte().argsort(dim=-1, descending=True, stable=True).int()

    def selected(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return mask[
            b, h, q // tokens, kv // tokens
        ]  # not called inside whole blocks by compiled code

    partial = torch.zeros_like(counts), torch.zeros_like(blocks)
    return BlockMask.from_kv_blocks(
        *partial, counts, blocks, BLOCK_SIZE=tokens, mask_mod=selected
    )


def cases(device: torch.device) -> list[Case]:
    """A steady group at 1K and 2K on a GPU, a small one elsewhere."""
    if device.type != "cuda":
        return [_case("small", SMALL, 2, 32, torch.float32, device)]
    return [
        _case(size, rule, 12, 128, torch.bfloat16, device) for size, rule in RULES.items()
    ]


def _case(
    size: str,
    rule: BlockRule,
    heads: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Case:
    fill = rule.keys - rule.queries
    new = torch.randn(3, 1, rule.queries, 128, heads, width, dtype=dtype, device=device)
    q, k, v = new.permute(0, 1, 4, 2, 3, 5)
    ring_k, ring_v = torch.randn(2, 1, heads, fill, 128, width, dtype=dtype, device=device)
    # Means of independent values are near zero; these are spread, so that rows differ
    # in length.
    q_mean, k_mean = (
        2 * torch.randn(1, heads, count, width, device=device)
        for count in (rule.queries, rule.keys)
    )
    lists = choose_blocks(q_mean, k_mean, rule)
    flat_q, flat_k = q.flatten(2, 3), torch.cat([ring_k, k], dim=2).flatten(2, 3)
    flat_v = torch.cat([ring_v, v], dim=2).flatten(2, 3)

    def sparse(impl: AttentionImpl) -> Callable[[], Tensor]:
        return lambda: block_list_attention(
            q, k, v, lists, ring=(ring_k, ring_v), fill=fill, impl=impl
        )

    calls: dict[str, Callable[[], object]] = {
        "reference": sparse("reference"),
        "dense": lambda: F.scaled_dot_product_attention(flat_q, flat_k, flat_v),
    }
    if device.type == "cuda":
        block_mask, flexible = (
            flexible_mask(lists.to_mask(), 128),
            torch.compile(flex_attention, dynamic=False),
        )
        calls["triton"] = sparse("triton")
        if hopper.is_chosen("block lists", q, k, v, ring_k, ring_v):
            calls["hopper"] = sparse("hopper")
        calls["flex"] = lambda: flexible(flat_q, flat_k, flat_v, block_mask=block_mask)
    pairs = int(lists.starts[-1])
    return Case(
        name=f"block_list_attention {size}, {pairs / lists.order.numel():.1f} blocks a row",
        dtype=dtype,
        calls=calls,
        moved_bytes=2 * (q.nbytes + k.nbytes + ring_k.nbytes),
        flops=4
        * pairs
        * 128
        * 128
        * width,  # of the selected blocks, even if an implementation computes more
    )


if __name__ == "__main__":
    main(__file__, cases)
