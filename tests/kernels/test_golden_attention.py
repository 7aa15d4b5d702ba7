"""The published attention core through the kernels: block selection, ring in place,
attention."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity.vector_set import TOLERANCE
from ultraflash_cli.engine.sparsity import BlockGrid, allowed_blocks, causal_blocks, window_blocks
from ultraflash_kernels.block_lists import BlockRule
from ultraflash_kernels.block_sparse_attention import block_list_attention
from ultraflash_kernels.block_topk import block_means, choose_blocks


@pytest.fixture(scope="session")
def golden(repository: Path) -> Path:
    """Return the folder of vectors computed with the published code."""
    return repository / "tests" / "vectors"


def to_blocks(tokens: Tensor, grid: BlockGrid) -> Tensor:
    """``[B, tokens, heads, D]`` in frame order to ``[B, heads, blocks, block tokens, D]``."""
    image = tokens.flatten(2).transpose(1, 2).unflatten(2, (grid.frames, grid.rows, grid.cols))
    return grid.to_blocks(image).unflatten(-1, tokens.shape[2:]).permute(0, 3, 1, 2, 4)


@pytest.mark.parametrize("number", [0, 1], ids=["a window", "padding"])
def test_attention_of_two_groups_equals_the_published_one(golden: Path, number: int) -> None:
    folder = golden / "sparse_attention"
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text())
    case, io = settings["cases"][number], load_file(folder / "io.safetensors")
    name, heads, width = case["name"], case["heads"], case["head_dim"]
    old_k = old_v = torch.empty(0)
    fill = capacity = 0
    for group, frames in enumerate(case["group_frames"]):
        grid = BlockGrid(frames, case["h"], case["w"], tuple(settings["block"]))
        q, k, v = (to_blocks(io[f"{name}.g{group}.{x}"], grid) for x in "qkv")
        temporal, rows, cols = grid.blocks
        if group == 0:
            capacity = case["kv_len"] * grid.spatial_blocks
            old_k, old_v = (torch.full((1, heads, capacity, 128, width), math.nan) for _ in range(2))
        rule = BlockRule(
            rows=rows,
            cols=cols,
            temporal=temporal,
            remembered=fill // grid.spatial_blocks,
            window=case["range"],
            budget=case["top_k"],
        )
        k_mean = block_means(old_k[:, :, :fill], k, impl="triton")
        lists = choose_blocks(block_means(q, impl="triton"), k_mean, rule, impl="triton")
        assert torch.equal(lists.to_mask()[0].to(torch.uint8), io[f"{name}.g{group}.mask"])
        out = block_list_attention(q, k, v, lists, ring=(old_k, old_v), fill=fill, impl="triton")
        tokens = grid.from_blocks(out.permute(0, 2, 3, 1, 4).flatten(3), 1, 1).flatten(2).transpose(1, 2)
        wanted = io[f"{name}.g{group}.out"]
        torch.testing.assert_close(tokens.unflatten(2, (heads, width)), wanted, rtol=0, atol=TOLERANCE)
        fill = min(capacity, k.shape[2])
        old_k[:, :, :fill], old_v[:, :, :fill] = k[:, :, -fill:], v[:, :, -fill:]


def test_draft_masks_equal_the_published_ones(repository: Path) -> None:
    folder = repository / "tests" / "vectors" / "block_masks"
    io = load_file(folder / "io.safetensors")
    compared = 0
    for case in json.loads((folder / "config.json").read_text())["cases"]:
        if not case["name"].startswith("draft") or not (case["causal"] or case["range"]):
            continue  # without any constraint the rule for empty rows is different
        rule = BlockRule(
            rows=case["bh"],
            cols=case["bw"],
            temporal=case["tq"],
            remembered=case["tcache"],
            window=case["range"],
            chunk=1 if case["causal"] else case["tq"] + case["tcache"],
            budget=case["top_k"],
        )
        blocks = (io[f"{case['name']}.{x}_blocks"].unflatten(-1, (case["heads"], -1)) for x in "qk")
        q_mean, k_mean = (block_means(x.permute(2, 0, 1, 3)[None], impl="triton") for x in blocks)
        mask = choose_blocks(q_mean, k_mean, rule, impl="triton").to_mask()[0]
        assert torch.equal(mask.to(torch.uint8), io[f"{case['name']}.mask"]), case["name"]
        compared += 1
    assert compared >= 4


@pytest.mark.parametrize(("window", "chunk", "remembered"), [(9, 1, 3), (0, 1, 0), (4, 2, 1)])
def test_the_rule_allows_what_the_engine_allows(window: int, chunk: int, remembered: int) -> None:
    rule = BlockRule(rows=4, cols=7, temporal=3, remembered=remembered, window=window, chunk=chunk, budget=1)
    expected = allowed_blocks(window_blocks(4, 7, window), causal_blocks(3, remembered, chunk))
    assert torch.equal(rule.allowed(), expected)
