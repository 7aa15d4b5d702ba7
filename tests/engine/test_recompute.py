"""Gradients of the transformers: against dense attention under a mask in float64, with and
without recomputation."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.engine.cache import KvRing
from ultraflash_cli.engine.layers import sparse_attention
from ultraflash_cli.engine.layers.dit import DitBlock
from ultraflash_cli.engine.layers.modulation import Addend
from ultraflash_cli.engine.layers.sparse_attention import SparseAttended, SparseLayout, sparse_causal_attention
from ultraflash_cli.engine.profiles import TINY_RANDOM, ULTRAFLASH
from ultraflash_cli.engine.seeds import generator_of
from ultraflash_cli.engine.sparsity import BlockGrid
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig
from ultraflash_cli.train.flows import chunk_flow, group_flow
from ultraflash_cli.train.roles import dense


def network(config: SrDitConfig) -> SrDit:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = SrDit(config)
        for parameter in made.parameters():
            parameter.data.add_(0.02 * torch.randn(parameter.shape))
    return made


def gradients(made: torch.nn.Module, out: Tensor) -> dict[str, Tensor]:
    made.zero_grad()
    out.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_blocks_that_are_computed_again_have_the_same_gradients(kind: str) -> None:
    assert TINY_RANDOM.sr_dit is not None
    config = replace(TINY_RANDOM.sr_dit, group_latents=2, kv_len=1, block=(2, 2, 2))
    made = network(config if kind == "sparse" else dense(config))
    clip = torch.randn(1, 16, 6, 8, 8, generator=generator_of("clip"))
    results = [
        gradients(made, group_flow(made, clip, clip, torch.ones(1), None, recompute=again)) for again in (False, True)
    ]
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


def test_chunks_of_a_generator_that_are_computed_again_have_the_same_gradients() -> None:
    assert TINY_RANDOM.generator is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = Generator(replace(TINY_RANDOM.generator, window=6))
    clip = torch.randn(1, 16, 6, 4, 4, generator=generator_of("clip"))
    level = torch.full((1, 6), 0.5)
    plain, again = (
        gradients(made, chunk_flow(made, clip, level, None, recompute=recompute)) for recompute in (False, True)
    )
    for name, value in plain.items():
        assert torch.equal(again[name], value), name


def test_groups_without_gradients_are_seen_and_teach_nothing() -> None:
    assert TINY_RANDOM.sr_dit is not None
    made = network(replace(TINY_RANDOM.sr_dit, group_latents=2, kv_len=1, block=(2, 2, 2)))
    clip = torch.randn(1, 16, 4, 8, 8, generator=generator_of("clip"))
    whole = group_flow(made, clip, clip, torch.ones(1), None)
    part = group_flow(made, clip, clip, torch.ones(1), None, ungraded=1)
    assert torch.equal(whole, part)
    assert not part[:, :, :2].grad_fn or gradients(made, part[:, :, 2:])


def masked_attention(q: Tensor, k: Tensor, v: Tensor, layout: SparseLayout, cache: KvRing) -> SparseAttended:
    """Return the same attention computed as one masked softmax over all tokens."""
    attended = sparse_causal_attention(q.detach(), k.detach(), v.detach(), layout, cache)
    k_all, v_all = cache.join(k, v)
    mask = attended.mask.repeat_interleave(q.shape[3], 2).repeat_interleave(q.shape[3], 3)
    flat = (x.flatten(2, 3) for x in (q, k_all, v_all))
    out = F.scaled_dot_product_attention(*flat, attn_mask=mask).view_as(q)
    after = cache.keep(k_all, v_all, layout.remember, in_place=False)
    return SparseAttended(out.permute(0, 2, 3, 1, 4).flatten(3), after, attended.chosen)


def layout_of(kind: str, grid: BlockGrid, remembered: int) -> SparseLayout:
    """Return the layout of one temporal block of a group after a cached one."""
    budget = 2 if kind == "sparse" else 2**31 - 1
    return SparseLayout.of(
        grid,
        remembered=remembered,
        window=3 if kind == "sparse" else 0,
        chunk=1,
        budget=budget,
        kv_len=1,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_attention_has_the_gradients_of_one_masked_softmax_in_float64(kind: str) -> None:
    """Heads of 128 in blocks of 128 tokens, as published; also with the keys of the
    previous group."""
    grid = BlockGrid(2, 8, 32, (2, 8, 8))
    rng = generator_of("attention")
    leaves = [torch.randn(1, 2, 4, 128, 128, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(5)]
    results: list[tuple[Tensor, ...]] = []
    for attend in (sparse_causal_attention, masked_attention):
        q, k, v, k_old, v_old = leaves
        attended = attend(q, k, v, layout_of(kind, grid, 4), KvRing(k_old, v_old, 4))
        assert kind == "dense" or not attended.mask.all()
        loss = attended.out.square().sum() + attended.cache.k.sum()
        results.append((attended.out, *torch.autograd.grad(loss, leaves)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def plain_layer(
    block: DitBlock, x: Tensor, time: Tensor, turns: Tensor, mask: Tensor, context: Tensor, k_old: Tensor, v_old: Tensor
) -> Tensor:
    """Compute a layer by its formulas, with tokens in a row: ``x [tokens, width]``,
    rotations ``turns [tokens, d / 2]``, keys and values before them ``[heads, tokens,
    d]``."""
    attn, cross = block.self_attn, block.cross_attn
    vectors = (block.modulation + time)[0]

    def heads(layer: Any, norm: Any, rows: Tensor) -> Tensor:
        out = layer(rows)
        if norm is not None:
            out = out / (out.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
        return out.unflatten(-1, (attn.heads, -1)).transpose(0, 1)

    def turned(rows: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(rows.unflatten(-1, (-1, 2))) * turns).flatten(-2)

    def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def centred(rows: Tensor) -> Tensor:
        away = rows - rows.mean(-1, keepdim=True)
        return away / (away.square().mean(-1, keepdim=True) + block.eps).sqrt()

    y = centred(x) * (1 + vectors[1]) + vectors[0]
    k = torch.cat([k_old, turned(heads(attn.k, attn.norm_k, y))], dim=1)
    v = torch.cat([v_old, heads(attn.v, None, y)], dim=1)
    x = x + vectors[2] * attn.o(attended(turned(heads(attn.q, attn.norm_q, y)), k, v, mask))
    y = centred(x) * block.norm3.weight + block.norm3.bias
    k, v = heads(cross.k, cross.norm_k, context), heads(cross.v, None, context)
    x = x + cross.o(attended(heads(cross.q, cross.norm_q, y), k, v, None))
    wide = block.ffn[0](centred(x) * (1 + vectors[4]) + vectors[3])
    bent = 0.5 * wide * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
    return x + vectors[5] * block.ffn[2](bent)


def test_a_layer_of_the_published_width_is_its_formulas_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """1536 wide, 12 heads, two blocks of 128 tokens and two of the previous group, some
    not selected: the result, and all gradients."""
    assert ULTRAFLASH.sr_dit is not None
    config = replace(ULTRAFLASH.sr_dit, num_layers=1, text_dim=8, text_len=4)
    made = network(config).double()
    block, rng = cast("DitBlock", made.blocks[0]), generator_of("layer")
    grid = BlockGrid(2, 8, 16, (2, 8, 8))
    layout = SparseLayout.of(
        grid, remembered=2, window=0, chunk=1, budget=1, kv_len=1, device=torch.device("cpu"), mask_dtype=torch.float64
    )
    x, k_old, v_old, words = (
        torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()
        for shape in ((1, 2, 128, 1536), (1, 12, 2, 128, 128), (1, 12, 2, 128, 128), (1, 4, 1536))
    )
    time = torch.randn(1, 6, 1536, generator=rng, dtype=torch.float64)
    tables, masks = made.rotations(2, 2, 8, 16), list[Tensor]()

    def noted(*given: Any) -> SparseAttended:
        attended = sparse_causal_attention(*given)
        masks.append(attended.mask)
        return attended

    monkeypatch.setattr(sparse_attention, "sparse_causal_attention", noted)
    where = (tables, layout, KvRing(k_old, v_old, 2))
    stream, addend, _ = block(x, Addend(), time, where, block.cross_attn.project(words))
    assert addend.y is not None and addend.gate is not None and not masks[0].all() and masks[0][..., :2].any()
    ours = stream + addend.y * addend.gate

    cuts = [n * p for n, p in zip(tables.positions, tables.pairs, strict=True)]
    parts = torch.view_as_complex(tables.turns).to(torch.complex128).split(cuts)
    axes = [part.view(n, p) for part, n, p in zip(parts, tables.positions, tables.pairs, strict=True)]
    places = [(f, r, 8 * b + c) for b in range(2) for f in range(2) for r in range(8) for c in range(8)]
    turns = torch.stack([torch.cat([axis[at] for axis, at in zip(axes, place, strict=True)]) for place in places])
    mask = masks[0][0].repeat_interleave(128, 1).repeat_interleave(128, 2)
    before = (k_old[0].flatten(1, 2), v_old[0].flatten(1, 2))
    theirs = plain_layer(block, x[0].flatten(0, 1), time, turns, mask, words[0], *before).view_as(ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    leaves = [x, k_old, v_old, words, *block.parameters()]
    for mine, wanted in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-10 * float(wanted.abs().max()))


def test_a_layer_of_the_published_width_has_the_gradients_of_masked_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """1536 wide, 12 heads, blocks of 128 tokens, a third of them attended to; its norms compute in float32."""
    assert ULTRAFLASH.sr_dit is not None
    config = replace(
        ULTRAFLASH.sr_dit,
        num_layers=1,
        text_dim=64,
        text_len=4,
        group_latents=2,
        kv_len=1,
        top_k=1,
        local_range=3,
        mask_dtype="float32",
    )
    made = network(config)
    clip = torch.randn(1, 16, 2, 16, 32, generator=generator_of("clip"))
    context = torch.randn(1, 4, 64, generator=generator_of("text"))
    level = torch.full((1,), 0.7)
    ours = gradients(made, group_flow(made, clip, clip, level, context, recompute=True))
    monkeypatch.setattr(sparse_attention, "sparse_causal_attention", masked_attention)
    theirs = gradients(made, group_flow(made, clip, clip, level, context))
    assert {"blocks.0.self_attn.q.weight", "blocks.0.ffn.0.weight"} <= ours.keys()
    for name, value in theirs.items():
        largest = float(value.abs().max())
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4 * largest, msg=name)
