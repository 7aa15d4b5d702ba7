"""Lists of blocks against the masks they stand for, and the rule of a group against a
loop over pairs."""

import pytest
import torch

from ultraflash_kernels.block_lists import BlockLists, BlockRule

RULES = [
    pytest.param(BlockRule(rows=1, cols=1, temporal=1, budget=1), id="one block"),
    pytest.param(
        BlockRule(rows=3, cols=5, temporal=3, window=3, budget=4), id="first group"
    ),
    pytest.param(
        BlockRule(rows=4, cols=3, temporal=2, remembered=3, window=2, budget=4),
        id="an even window",
    ),
    pytest.param(
        BlockRule(rows=2, cols=7, temporal=3, remembered=1, window=9, chunk=2, budget=4),
        id="chunks",
    ),
    pytest.param(
        BlockRule(rows=5, cols=2, temporal=1, remembered=2, chunk=5, budget=4),
        id="no window",
    ),
]


@pytest.mark.parametrize("rule", RULES)
def test_the_allowed_pairs_are_those_of_window_and_causality(rule: BlockRule) -> None:
    allowed = rule.allowed()
    assert allowed.shape == (rule.queries, rule.keys)
    for row in range(rule.queries):
        time, y, x = row // rule.spatial, row % rule.spatial // rule.cols, row % rule.cols
        for key in range(rule.keys):
            down, right = key % rule.spatial // rule.cols - y, key % rule.cols - x
            low, high = -(rule.window // 2), rule.window - 1 - rule.window // 2
            near = rule.window == 0 or (low <= down <= high and low <= right <= high)
            until = ((time + rule.remembered) // rule.chunk + 1) * rule.chunk
            assert bool(allowed[row, key]) == (near and key // rule.spatial < until), (
                row,
                key,
            )
    assert int(allowed.sum()) == rule.allowed_pairs


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 37, 63)], ids=str)
def test_lists_stand_for_their_mask(
    shape: tuple[int, int, int, int], density: float
) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    lists = BlockLists.from_mask(mask)
    for row, chosen in enumerate(mask.flatten(0, 2)):
        listed = lists.blocks[lists.starts[row] : lists.starts[row + 1]]
        assert listed.tolist() == chosen.nonzero().flatten().tolist()
    assert torch.equal(lists.to_mask(), mask)


def test_lists_are_made_and_read_without_looking_at_a_value() -> None:
    mask = torch.zeros(
        2, 3, 5, 7, dtype=torch.bool, device="meta"
    )  # any look at a value is an error here
    lists = BlockLists.from_mask(mask)
    assert [x.shape for x in (lists.starts, lists.blocks, lists.order)] == [
        (31,),
        (210,),
        (30,),
    ]
    assert lists.to_mask().shape == mask.shape


def test_what_lies_after_the_last_list_does_not_matter() -> None:
    mask = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.3
    lists = BlockLists.from_mask(mask)
    lists.blocks[int(lists.starts[-1]) :] = 2**31 - 1
    assert torch.equal(lists.to_mask(), mask)


def test_long_rows_come_first_and_rows_of_one_class_keep_their_order() -> None:
    counts = [0, 3, 1, 9, 2, 8, 15, 16, 1]
    mask = torch.arange(20)[None, :] < torch.tensor(counts)[:, None]
    assert BlockLists.from_mask(mask[None, None]).order.tolist() == [
        7,
        3,
        5,
        6,
        1,
        4,
        2,
        8,
        0,
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", 0),
        ("temporal", 0),
        ("chunk", 0),
        ("budget", 0),
        ("remembered", -1),
        ("window", -1),
    ],
)
def test_rules_that_make_no_sense_are_refused(name: str, value: int) -> None:
    sizes = {"rows": 2, "cols": 2, "temporal": 1, "budget": 1, name: value}
    with pytest.raises(ValueError, match=name):
        BlockRule(**sizes)
