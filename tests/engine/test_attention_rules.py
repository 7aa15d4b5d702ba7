"""Visibility between blocks of tokens, conversion of tokens to blocks, rotation, and
the contents of a ring."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ultraflash_cli.engine.cache import KvBlocks, KvRing, with_spares, without_spares
from ultraflash_cli.engine.layers.rope import rotation_tables
from ultraflash_cli.engine.sparsity import BlockGrid, allowed_blocks, causal_blocks, key_budget, window_blocks
from ultraflash_cli.engine.stage import as_tensor, state_from_tensors, state_leaves
from ultraflash_kernels.rms_norm_rope import rms_norm_rope


@pytest.mark.parametrize(
    ("grid", "budget"),
    [((6, 60, 104), 2704), ((3, 60, 104), 2704), ((6, 90, 156), 6400), ((6, 34, 60), 1223), ((4, 9, 10), 31)],
    ids=str,
)
def test_the_budget_scales_with_the_grid(grid: tuple[int, int, int], budget: int) -> None:
    frames, rows, cols = grid
    block_grid = BlockGrid(frames, rows, cols, (2, 8, 8))
    assert key_budget(block_grid, ratio=1.0, reference_tokens=1560, override=None) == budget
    assert key_budget(block_grid, ratio=1.0, reference_tokens=1560, override=5) == 5


def test_a_window_of_even_size_reaches_further_back_than_ahead() -> None:
    assert window_blocks(1, 5, 4)[2].tolist() == [True, True, True, True, False]
    assert window_blocks(1, 5, 3)[2].tolist() == [False, True, True, True, False]
    assert window_blocks(3, 3, 3)[0].view(3, 3).tolist() == [[True, True, False]] * 2 + [[False] * 3]
    assert window_blocks(2, 3, 0).all()


def test_causality_lets_a_chunk_see_itself_whole() -> None:
    assert causal_blocks(3, 1).tolist() == [[True, True, False, False], [True] * 3 + [False], [True] * 4]
    assert causal_blocks(3, 1, chunk=2).tolist() == [[True, True, False, False], [True] * 4, [True] * 4]
    allowed = allowed_blocks(window_blocks(1, 2, 1), causal_blocks(2, 0))
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert allowed.int().tolist() == expected


@given(
    frames=st.integers(1, 5), rows=st.integers(1, 9), cols=st.integers(1, 9), py=st.integers(1, 2), px=st.integers(1, 3)
)
def test_tokens_come_back_from_blocks_as_they_went_in(frames: int, rows: int, cols: int, py: int, px: int) -> None:
    grid = BlockGrid(frames, rows, cols, (2, 4, 3))
    image = torch.randn(2, 3, frames, rows * py, cols * px)
    tokens = grid.to_blocks(image)
    assert tokens.shape == (2, math.prod(grid.blocks), grid.block_tokens, 3 * py * px)
    assert torch.equal(grid.from_blocks(tokens, py, px), image)
    assert int((tokens == 0).all(-1)[0].sum()) == tokens.shape[1] * tokens.shape[2] - frames * rows * cols


def test_blocks_are_ordered_by_time_then_row_then_column() -> None:
    grid = BlockGrid(4, 4, 6, (2, 2, 3))
    image = torch.arange(4 * 4 * 6.0).view(1, 1, 4, 4, 6)
    tokens = grid.to_blocks(image)[0, :, :, 0]
    first_of_block = [0, 3, 12, 15, 48, 51, 60, 63]
    assert tokens[:, 0].tolist() == first_of_block
    assert tokens[1].tolist() == [3, 4, 5, 9, 10, 11, 27, 28, 29, 33, 34, 35]


def test_rotated_scores_depend_on_distance_alone() -> None:
    torch.manual_seed(0)
    alike = torch.randn(2, 1, 1, 24).expand(2, 3, 20, 24)  # one query and one key, everywhere
    tables = rotation_tables(24, first_frame=1000, frames=3, rows=4, cols=5, device=torch.device("cpu"))
    ones, size = torch.ones(24), tables.positions
    q, k, _ = rms_norm_rope(alike[:1], alike[1:], alike[:1], ones, ones, tables, size=size, block=(1, 4, 5))
    queries, keys = q.view(3, 4, 5, 24).double(), k.view(3, 4, 5, 24).double()

    def score(at: tuple[int, int, int], other: tuple[int, int, int]) -> float:
        return float(queries[at] @ keys[other])

    assert score((0, 1, 2), (1, 0, 1)) == pytest.approx(score((1, 3, 4), (2, 2, 3)), abs=1e-5)
    assert score((0, 1, 2), (1, 0, 1)) != pytest.approx(score((0, 1, 2), (1, 1, 1)), abs=1e-3)


def test_a_ring_remembers_the_last_blocks_oldest_first() -> None:
    ring = KvRing.empty((1, 1, 3, 1, 1), dtype=torch.float32, device=torch.device("cpu"))
    for first in (0, 2, 4):
        new = torch.tensor([first, first + 1.0]).view(1, 1, 2, 1, 1)
        k, v = ring.join(new, -new)
        ring = ring.keep(k, v, 3, in_place=True)
    assert ring.fill == 3
    assert ring.k.flatten().tolist() == [3, 4, 5]
    assert ring.v.flatten().tolist() == [-3, -4, -5]


def test_a_paired_ring_turns_where_a_group_replaces_all_and_saves_what_is_in_use() -> None:
    cpu = torch.device("cpu")
    ring = KvRing.empty((1, 1, 3, 1, 1), dtype=torch.float32, device=cpu, paired=True)
    assert ring.beside(4) is None and KvRing.empty((1, 1, 3, 1, 1), dtype=torch.float32, device=cpu).beside(1) is None
    for first in (0.0, 3.0, 6.0):
        beside = ring.beside(3)
        assert beside is not None
        new = torch.arange(first, first + 3).view(1, 1, 3, 1, 1)
        beside.k.copy_(new)
        beside.v.copy_(-new)
        before = ring.in_use[0].clone()
        ring = ring.turn(new[..., 0])
        after = ring.beside(3)
        assert after is not None and torch.equal(after[0], before), "what was remembered is whole until then"
        found = ring.in_use
        assert [x.flatten().tolist() for x in (found.k, found.v)] == [x.flatten().tolist() for x in (new, -new)]
    assert ring.half == 1 and ring.fill == 3
    nine = torch.full((1, 1, 1, 1, 1), 9.0)
    ring = ring.push(KvBlocks(nine, -nine), 3, nine[..., 0])
    assert ring.in_use[0].flatten().tolist() == [7, 8, 9]
    means = ring.k_mean
    assert means is not None and means.flatten().tolist() == [7, 8, 9]

    saved = without_spares(state_leaves((ring,)))
    kept = {name for name, leaf in saved.items() if leaf is not None}
    assert kept == {"0.k", "0.v", "0.fill", "0.half", "0.k_mean"} and saved["0.half"] == 0
    tensors = {name: as_tensor(leaf) for name, leaf in saved.items() if leaf is not None}
    fresh = (KvRing.empty((1, 1, 3, 1, 1), dtype=torch.float32, device=cpu, paired=True),)
    (back,) = state_from_tensors(fresh, with_spares(tensors, state_leaves(fresh)))
    assert (
        back.fill == 3
        and torch.equal(back.in_use[0], ring.in_use[0])
        and back.k_mean is not None
        and torch.equal(back.k_mean, means)
    )
    del tensors["0.k_mean"]  # saved by a run without pairs
    (back,) = state_from_tensors(fresh, with_spares(tensors, state_leaves(fresh)))
    assert back.k_mean is not None and torch.equal(back.k_mean, means)
