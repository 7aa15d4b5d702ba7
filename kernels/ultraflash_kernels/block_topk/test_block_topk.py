"""Block choice against an oracle that spells the rules out pair by pair."""

import math

import pytest
import torch
from torch import Tensor

from ultraflash_kernels.block_topk import block_topk


def oracle(
    q_mean: Tensor, k_mean: Tensor, allowed: Tensor, budget: int, run: int
) -> Tensor:
    """The rules in words of one row, one pair at a time, for [Nq, D], [Nk, D] in
    float64."""
    rows, keys = allowed.shape
    mask = torch.zeros(rows, keys, dtype=torch.bool)
    shares = [[0.0] * keys for _ in range(rows)]
    for i in range(rows):
        scores = {
            j: float(q_mean[i] @ k_mean[j]) / math.sqrt(q_mean.shape[1])
            for j in range(keys)
            if allowed[i, j]
        }
        total = sum(math.exp(score) for score in scores.values())
        for j, score in scores.items():
            shares[i][j] = math.exp(score) / total
    for first in range(0, rows, run):
        pool = sorted(
            (share for i in range(first, first + run) for share in shares[i]), reverse=True
        )
        threshold = pool[min(budget, len(pool) - 1)]
        for i in range(first, first + run):
            for j in range(keys):
                mask[i, j] = bool(allowed[i, j]) and shares[i][j] >= threshold
    for i in range(rows):
        if not mask[i].any():
            mask[i, next(j for j in range(keys) if allowed[i, j])] = True
        if rows == keys:
            mask[i, i] = True
    return mask


def causal_window(runs: int, remembered: int, run: int, reach: int) -> Tensor:
    """Row (t, s) may use key (u, r) iff u is not later than t and r lies within
    ``reach`` of s."""
    allowed = torch.zeros(runs * run, (remembered + runs) * run, dtype=torch.bool)
    for row in range(runs * run):
        for key in range((remembered + runs) * run):
            in_time = key // run <= remembered + row // run
            allowed[row, key] = in_time and abs(key % run - row % run) <= reach
    return allowed


def means(
    batch: int, heads: int, rows: int, keys: int, width: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(batch, heads, rows, width, generator=draw, dtype=torch.float64)
    return q, 2 * torch.randn(
        batch, heads, keys, width, generator=draw, dtype=torch.float64
    )


@pytest.mark.parametrize("budget", [1, 3, 10, 10**6], ids=lambda n: f"budget {n}")
@pytest.mark.parametrize(
    ("runs", "remembered", "run", "reach"),
    [
        pytest.param(1, 0, 1, 0, id="one block"),
        pytest.param(3, 0, 5, 1, id="first group"),
        pytest.param(2, 3, 7, 2, id="with a cache"),
        pytest.param(1, 1, 37, 4, id="an odd many"),
    ],
)
def test_the_mask_follows_the_rules_row_by_row(
    runs: int, remembered: int, run: int, reach: int, budget: int
) -> None:
    allowed = causal_window(runs, remembered, run, reach)
    q, k = means(2, 3, *allowed.shape, width=6)
    mask = block_topk(q, k, allowed, budget=budget, rows_per_budget=run)
    for batch in range(2):
        for head in range(3):
            expected = oracle(q[batch, head], k[batch, head], allowed, budget, run)
            assert torch.equal(mask[batch, head], expected), (batch, head)


@pytest.mark.parametrize("budget", [1, 7, 10])
def test_budget_plus_one_pairs_survive_without_ties(budget: int) -> None:
    q, k = means(1, 2, 6, 12, 8)
    mask = block_topk(
        q, k, torch.ones(6, 12, dtype=torch.bool), budget=budget, rows_per_budget=1
    )
    assert (mask.sum(-1) == budget + 1).all()


def test_all_pairs_tied_with_the_threshold_are_kept() -> None:
    q, k = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 8, 8)
    mask = block_topk(q, k, torch.ones(4, 8, dtype=torch.bool), budget=1, rows_per_budget=4)
    assert mask.all()


def test_a_row_left_empty_gets_the_first_block_it_is_allowed() -> None:
    q, k = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 4, 4)
    q[..., 0, 0], k[..., 2:, 0] = (
        1.0,
        3.0,
    )  # row 0 prefers blocks 2 and 3, row 1 is indifferent
    allowed = torch.tensor([[True, True, True, True], [False, True, True, True]])
    mask = block_topk(q, k, allowed, budget=1, rows_per_budget=2)[0, 0]
    assert mask.tolist() == [[False, False, True, True], [False, True, False, False]]


def test_the_diagonal_is_added_to_square_masks_only() -> None:
    q, k = means(1, 1, 9, 18, 4, seed=3)
    square = block_topk(
        q, k[:, :, :9], torch.ones(9, 9, dtype=torch.bool), budget=1, rows_per_budget=9
    )
    assert square[0, 0].diagonal().all()
    wide = block_topk(
        q, k, torch.ones(9, 18, dtype=torch.bool), budget=1, rows_per_budget=9
    )
    assert not wide[0, 0].diagonal().all()


def test_without_any_constraint_one_empty_row_brings_in_the_whole_diagonal() -> None:
    q, k = means(1, 2, 6, 9, 4, seed=1)
    crowded = block_topk(q, k, None, budget=1, rows_per_budget=6)
    assert crowded[0].diagonal(dim1=1, dim2=2).all()
    roomy = block_topk(q, k, None, budget=53, rows_per_budget=6)
    assert roomy.all()


def test_bfloat16_means_are_scored_with_bfloat16_rounding() -> None:
    q, k = (x.bfloat16() for x in means(1, 1, 8, 16, 64, seed=5))
    allowed = torch.ones(8, 16, dtype=torch.bool)
    product = (q.float() @ k.float().transpose(-1, -2)).bfloat16()
    share = (product.float() / 8).bfloat16().float().softmax(-1).bfloat16().flatten()
    ordered = share.sort(descending=True).values
    budget = next(i for i in range(20, 100) if ordered[i] == ordered[i + 1])
    expected = share >= ordered[budget]
    assert int(expected.sum()) > budget + 1, "rounding makes a tie at the threshold"
    mask = block_topk(q, k, allowed, budget=budget, rows_per_budget=8).flatten()
    rows = expected.view(8, 16).any(dim=-1)
    assert torch.equal(mask.view(8, 16)[rows], expected.view(8, 16)[rows])


def test_a_later_run_of_rows_and_forbidden_keys_do_not_matter() -> None:
    allowed = causal_window(2, 1, 5, 5)
    q, k = means(1, 2, *allowed.shape, width=4)
    before = block_topk(q, k, allowed, budget=4, rows_per_budget=5)
    q[:, :, 5:], k[:, :, 10:] = math.nan, math.nan
    after = block_topk(q, k, allowed, budget=4, rows_per_budget=5)
    assert torch.equal(before[:, :, :5], after[:, :, :5])


@pytest.mark.parametrize(
    ("rows", "allowed", "budget", "run"),
    [
        pytest.param(6, (6, 4), 1, 4, id="rows that do not split"),
        pytest.param(6, (6, 5), 1, 6, id="a constraint of another size"),
        pytest.param(6, (6, 4), 0, 6, id="no budget"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    rows: int, allowed: tuple[int, int], budget: int, run: int
) -> None:
    q, k = means(1, 1, rows, 4, 2)
    with pytest.raises(ValueError, match=r"do not split|allowed must be|at least 1"):
        block_topk(
            q, k, torch.ones(allowed, dtype=torch.bool), budget=budget, rows_per_budget=run
        )


def test_means_of_different_width_are_refused() -> None:
    with pytest.raises(ValueError, match="block means must be"):
        block_topk(
            torch.zeros(1, 1, 2, 4),
            torch.zeros(1, 1, 2, 3),
            None,
            budget=1,
            rows_per_budget=2,
        )
