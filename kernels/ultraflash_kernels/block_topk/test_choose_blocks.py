"""Block means and lists of blocks: the kernels against the reference, bit for bit
where it is a choice."""

import math

import pytest
import torch
from torch import Tensor

from ultraflash_kernels.block_lists import BlockLists, BlockRule
from ultraflash_kernels.block_topk import block_means, block_topk, choose_blocks
from ultraflash_kernels.dispatch import KERNEL_DTYPES, KernelUnsupportedError
from ultraflash_kernels.testing import DEVICE, TOLERANCE

POISON = torch.iinfo(torch.int32).max
"""What fresh memory of integers holds here."""


RULES = [
    pytest.param(BlockRule(rows=1, cols=1, temporal=1, budget=1), id="one block"),
    pytest.param(
        BlockRule(rows=2, cols=3, temporal=2, window=3, budget=3), id="first group"
    ),
    pytest.param(
        BlockRule(rows=3, cols=2, temporal=2, remembered=1, window=2, budget=7),
        id="with a cache",
    ),
    pytest.param(
        BlockRule(rows=1, cols=4, temporal=2, remembered=2, chunk=3, budget=9),
        id="chunks, no window",
    ),
    pytest.param(
        BlockRule(rows=1, cols=7, temporal=1, remembered=2, window=5, budget=10**6),
        id="all allowed",
    ),
]


def means(
    rule: BlockRule, width: int, dtype: torch.dtype, *, heads: int = 1
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    sizes = ((1, heads, rule.queries, width), (1, heads, rule.keys, width))
    q, k = (2 * torch.randn(size, generator=draw) for size in sizes)
    return q.to(DEVICE, dtype), k.to(DEVICE, dtype)


def assert_equal_lists(got: BlockLists, expected: BlockLists) -> None:
    assert got.shape == expected.shape
    assert torch.equal(got.starts, expected.starts)
    used = int(expected.starts[-1])
    assert torch.equal(got.blocks[:used], expected.blocks[:used])
    assert torch.equal(got.order, expected.order)


@pytest.mark.parametrize("rule", RULES)
def test_the_definition_is_block_topk_with_the_pairs_that_the_rule_allows(
    rule: BlockRule,
) -> None:
    q, k = means(rule, 6, torch.float32)
    mask = block_topk(
        q, k, rule.allowed(q.device), budget=rule.budget, rows_per_budget=rule.spatial
    )
    assert torch.equal(choose_blocks(q, k, rule, impl="reference").to_mask(), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_the_kernel_chooses_what_the_definition_chooses(
    rule: BlockRule, dtype: torch.dtype
) -> None:
    q, k = means(rule, 6, dtype, heads=2 if dtype == torch.float32 else 1)
    assert_equal_lists(
        choose_blocks(q, k, rule, impl="triton"),
        choose_blocks(q, k, rule, impl="reference"),
    )


def test_a_pool_that_several_programs_count_has_one_threshold() -> None:
    rule = BlockRule(rows=6, cols=8, temporal=1, remembered=1, window=5, budget=700)
    q, k = means(rule, 128, torch.float32)
    chosen = choose_blocks(q, k, rule, impl="triton")
    assert_equal_lists(chosen, choose_blocks(q, k, rule, impl="reference"))
    assert int(chosen.starts[-1]) < rule.allowed_pairs


def test_the_unused_part_of_the_index_buffer_is_not_touched() -> None:
    rule = BlockRule(rows=2, cols=3, temporal=1, remembered=1, window=3, budget=3)
    lists = choose_blocks(*means(rule, 6, torch.float32), rule, impl="triton")
    used = int(lists.starts[-1])
    assert used < lists.blocks.numel() == rule.allowed_pairs
    assert (lists.blocks[used:] == POISON).all()


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_all_pairs_tied_with_the_threshold_are_kept(dtype: torch.dtype) -> None:
    rule = BlockRule(rows=2, cols=2, temporal=1, remembered=1, budget=1)
    q, k = means(rule, 4, dtype)
    chosen = choose_blocks(torch.zeros_like(q), k, rule, impl="triton")
    assert chosen.to_mask().all()
    # Products of small integers are exact, so pairs of one score tie in any order of
    # summation.
    q, k = (x.float().round().clamp(-1, 1).to(dtype) for x in (q, k))
    assert_equal_lists(
        choose_blocks(q, k, rule, impl="triton"),
        choose_blocks(q, k, rule, impl="reference"),
    )


def test_a_row_left_empty_gets_the_first_block_it_is_allowed() -> None:
    rule = BlockRule(rows=1, cols=4, temporal=1, remembered=1, window=3, budget=1)
    q, k = torch.zeros(1, 1, 4, 4, device=DEVICE), torch.zeros(1, 1, 8, 4, device=DEVICE)
    q[..., 0, 0], k[..., (0, 1), 0] = (
        4.0,
        3.0,
    )  # row 0 prefers blocks 0 and 1, the others are indifferent
    lists = choose_blocks(q, k, rule, impl="triton")
    assert lists.to_mask()[0, 0].nonzero().tolist() == [
        [0, 0],
        [0, 1],
        [1, 0],
        [2, 1],
        [3, 2],
    ]


def test_nan_stays_where_it_is() -> None:
    rule = BlockRule(rows=1, cols=3, temporal=3, remembered=1, window=3, budget=2)
    q, k = means(rule, 4, torch.float32)
    q[:, :, 4], k[:, :, 9:] = (
        math.nan,
        math.nan,
    )  # one row of the second run; keys that only the third may see
    got, expected = (
        choose_blocks(q, k, rule, impl="triton"),
        choose_blocks(q, k, rule, impl="reference"),
    )
    assert_equal_lists(got, expected)


def test_means_need_not_be_contiguous() -> None:
    rule = BlockRule(rows=2, cols=2, temporal=1, remembered=1, window=3, budget=3)
    q, k = means(rule, 6, torch.float32)
    sq, sk = (x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for x in (q, k))
    assert_equal_lists(
        choose_blocks(sq, sk, rule, impl="triton"), choose_blocks(q, k, rule, impl="triton")
    )


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("of", KERNEL_DTYPES, ids=lambda dtype: f"of {dtype}")
def test_means_are_summed_in_float32_and_rounded_once(
    dtype: torch.dtype, of: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(3)
    ring, new = (torch.randn(2, 3, n, 37, 6, generator=draw).to(DEVICE, of) for n in (4, 1))
    expected = torch.cat([ring[:, :, :2], new], dim=2).double().mean(dim=3)
    for impl in ("triton", "reference"):
        got = block_means(ring[:, :, :2], new, dtype=dtype, impl=impl)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (63, 5), (128, 128)], ids=str)
def test_means_of_odd_blocks_in_any_memory_order(tokens: int, width: int) -> None:
    x = torch.randn(1, 2, tokens, 2, width, generator=torch.Generator().manual_seed(1)).to(
        DEVICE
    )
    x = x.permute(
        0, 3, 1, 2, 4
    )  # [B, heads, blocks, tokens, D], heads of one token side by side
    expected = x.double().mean(dim=3)
    torch.testing.assert_close(
        block_means(x, impl="triton").double(),
        expected,
        rtol=0,
        atol=TOLERANCE[torch.float32],
    )
    across = x.transpose(3, 4).contiguous().transpose(3, 4)
    assert torch.equal(block_means(across, impl="triton"), block_means(x, impl="triton"))


def test_a_compiled_graph_holds_the_operations_whole() -> None:
    rule = BlockRule(rows=2, cols=2, temporal=1, remembered=1, window=3, budget=3)
    blocks = torch.randn(
        1, 1, rule.keys, 4, 8, generator=torch.Generator().manual_seed(1)
    ).to(DEVICE)

    def choose(blocks: Tensor) -> tuple[Tensor, Tensor]:
        k_mean = block_means(blocks, impl="triton")
        lists = choose_blocks(k_mean[:, :, rule.spatial :], k_mean, rule, impl="triton")
        return lists.starts, lists.order

    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    for got, expected in zip(compiled(blocks), choose(blocks), strict=True):
        assert torch.equal(got, expected)


def test_arguments_that_do_not_fit_are_refused() -> None:
    rule = BlockRule(rows=2, cols=2, temporal=1, budget=3)
    q, k = means(rule, 6, torch.float32)
    with pytest.raises(ValueError, match="the rule is for 4 query and 4 key blocks"):
        choose_blocks(q[:, :, 1:], k, rule)
    with pytest.raises(ValueError, match="same dtype"):
        choose_blocks(q, k.double(), rule)
    with pytest.raises(ValueError, match="impl must be"):
        choose_blocks(q, k, rule, impl="cuda")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"blocks must be \[B, H, N, T, D\]"):
        block_means(torch.zeros(1, 1, 2, 3, 4), torch.zeros(1, 1, 2, 3, 5))


def test_an_explicit_kernel_never_falls_back() -> None:
    rule = BlockRule(rows=2, cols=2, temporal=1, budget=3)
    q, k = (x.double() for x in means(rule, 6, torch.float32))
    with pytest.raises(
        KernelUnsupportedError, match=r"choose_blocks: means must be .*float64"
    ):
        choose_blocks(q, k, rule, impl="triton")
    assert choose_blocks(q, k, rule).shape == (1, 1, 4, 4)
    with pytest.raises(KernelUnsupportedError, match=r"block_means: .*float64"):
        block_means(q[:, :, None], impl="triton")
