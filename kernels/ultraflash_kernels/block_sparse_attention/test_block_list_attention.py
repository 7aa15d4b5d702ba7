"""The attention kernel against its reference in float64, with remembered blocks in a
ring."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import (
    block_list_attention,
    block_list_attention_fp8,
    block_sparse_attention,
)
from ultraflash_kernels.block_sparse_attention.bench import flexible_mask
from ultraflash_kernels.dispatch import KernelUnsupportedError
from ultraflash_kernels.fp8_linear import quantise_rows
from ultraflash_kernels.testing import DEVICE, DTYPES, TOLERANCE
from ultraflash_kernels.token_order import drop_padding


class Example:
    """Blocks in the order the SR transformer has them, a ring whose unused part is NaN,
    and a mask."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        tokens: int,
        width: int,
        dtype: torch.dtype,
        *,
        density: float = 0.4,
    ) -> None:
        samples, heads, blocks = shape
        draw = torch.Generator().manual_seed(tokens * 1000 + width)
        new = torch.randn(3, samples, blocks, tokens, heads, width, generator=draw)
        self.fill = 2
        old = torch.randn(2, samples, heads, self.fill + 2, tokens, width, generator=draw)
        old[:, :, :, self.fill :] = math.nan
        self.q, self.k, self.v = new.permute(0, 1, 4, 2, 3, 5).to(DEVICE, dtype)
        self.ring = (old[0].to(DEVICE, dtype), old[1].to(DEVICE, dtype))
        mask = (
            torch.rand(samples, heads, blocks, self.fill + blocks, generator=draw) < density
        )
        self.mask = mask.to(DEVICE)

    @property
    def joined(self) -> tuple[Tensor, Tensor]:
        """Remembered and present keys and values, one after the other."""
        old_k, old_v = (x[:, :, : self.fill] for x in self.ring)
        return torch.cat([old_k, self.k], dim=2), torch.cat([old_v, self.v], dim=2)

    def expected(self) -> Tensor:
        """The reference in float64."""
        k, v = self.joined
        return block_sparse_attention(
            self.q.double(), k.double(), v.double(), self.mask, impl="reference"
        )

    def got(self) -> Tensor:
        """The kernel's answer; what lies behind the last list would show as a wrong
        address."""
        lists = BlockLists.from_mask(self.mask)
        lists.blocks[int(lists.starts[-1]) :] = 2**31 - 1
        return block_list_attention(
            self.q, self.k, self.v, lists, ring=self.ring, fill=self.fill, impl="triton"
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "tokens", "width"),
    [
        pytest.param((1, 1, 1), 1, 1, id="one of everything"),
        pytest.param((2, 3, 3), 4, 6, id="small"),
        pytest.param((1, 2, 5), 37, 63, id="odd sizes"),
        pytest.param((1, 1, 3), 32, 32, id="several blocks a step"),
        pytest.param((1, 1, 3), 128, 128, id="as published"),
        pytest.param((1, 1, 2), 128, 100, id="a padded head"),
        pytest.param((1, 1, 2), 256, 16, id="several query tiles a block"),
    ],
)
def test_the_kernel_follows_the_definition(
    shape: tuple[int, int, int], tokens: int, width: int, dtype: torch.dtype
) -> None:
    case = Example(shape, tokens, width, dtype)
    out = case.got()
    assert out.dtype == dtype and out.shape == case.q.shape
    torch.testing.assert_close(
        out.double(), case.expected(), rtol=0, atol=2 * TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_are_taken_too(dtype: torch.dtype) -> None:
    case = Example((2, 2, 3), 5, 8, dtype)
    out = block_sparse_attention(case.q, *case.joined, case.mask, impl="triton")
    torch.testing.assert_close(
        out.double(), case.expected(), rtol=0, atol=2 * TOLERANCE[dtype]
    )
    assert torch.equal(out, case.got())


def test_rows_of_very_different_length_are_each_computed_once() -> None:
    case = Example((1, 2, 37), 2, 4, torch.float32)
    case.mask[:] = torch.arange(39) < (torch.arange(37)[:, None] * 7) % 40
    torch.testing.assert_close(
        case.got().double(), case.expected(), rtol=0, atol=2 * TOLERANCE[torch.float32]
    )


def test_a_row_that_lists_nothing_gives_zeros() -> None:
    case = Example((1, 2, 3), 4, 4, torch.float32)
    case.mask[0, 1, 2] = False
    assert (case.got()[0, 1, 2] == 0).all()
    case.mask[:] = False
    assert (case.got() == 0).all()


def test_padded_keys_stay_in_the_denominator() -> None:
    case = Example((1, 1, 1), 4, 2, torch.float32)
    case.mask[..., : case.fill] = False
    case.mask[..., case.fill :] = True
    case.k[..., 2:, :], case.v[..., 2:, :] = 0.0, 0.0
    q, k, v = case.q[0, 0, 0], case.k[0, 0, 0], case.v[0, 0, 0]
    weight = torch.exp(q @ k[:2].T / math.sqrt(2))
    torch.testing.assert_close(
        case.got()[0, 0, 0], weight @ v[:2] / (weight.sum(-1, keepdim=True) + 2)
    )


def test_a_row_depends_on_nothing_but_the_blocks_it_lists() -> None:
    case = Example((1, 2, 4), 8, 4, torch.float32)
    case.mask[..., 0] = True
    case.mask[..., 4] = False
    case.mask[:, :, 1, 4] = True
    before = case.got()
    case.q[:, :, 1], case.k[:, :, 2], case.v[:, :, 2] = (
        math.nan,
        math.nan,
        math.nan,
    )  # key block 4
    case.mask[:, :, 1] = True
    after = case.got()
    assert torch.equal(before[:, :, (0, 2, 3)], after[:, :, (0, 2, 3)])
    assert after[:, :, 1].isnan().all()


def test_large_scores_do_not_overflow() -> None:
    case = Example((1, 1, 2), 4, 4, torch.float16)
    case.q *= 200
    case.mask[:] = True
    torch.testing.assert_close(
        case.got().double(), case.expected(), rtol=0, atol=2 * TOLERANCE[torch.float16]
    )


def test_the_result_lies_as_the_next_layer_reads_it() -> None:
    case = Example((2, 3, 2), 4, 8, torch.float32)
    assert case.got().permute(0, 2, 3, 1, 4).is_contiguous()


def test_channels_need_not_be_adjacent() -> None:
    case = Example((1, 2, 2), 4, 8, torch.float32)
    expected = case.got()
    for name in ("q", "k", "v"):
        setattr(
            case, name, getattr(case, name).transpose(3, 4).contiguous().transpose(3, 4)
        )
    assert torch.equal(case.got(), expected)


def test_without_a_ring_all_blocks_are_present_ones() -> None:
    case = Example((1, 2, 4), 4, 8, torch.float32)
    lists = BlockLists.from_mask(case.mask[..., 2:].contiguous())
    got, expected = (
        block_list_attention(case.q, case.k, case.v, lists, impl=x)
        for x in ("triton", "reference")
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=2 * TOLERANCE[torch.float32])


def test_a_compiled_graph_holds_the_operation_whole() -> None:
    case = Example((1, 1, 2), 4, 8, torch.float32)
    lists = BlockLists.from_mask(case.mask)

    def attend(q: Tensor) -> Tensor:
        return block_list_attention(
            q, case.k, case.v, lists, ring=case.ring, fill=case.fill, impl="triton"
        )

    assert torch.equal(
        torch.compile(attend, backend="eager", fullgraph=True)(case.q), case.got()
    )


def test_the_mask_given_to_flexible_attention_selects_the_same() -> None:
    q, k, v = torch.randn(3, 1, 2, 3, 128, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor(
        [[[1, 0, 0], [1, 1, 0], [0, 1, 1]], [[1, 1, 1], [0, 0, 1], [0, 1, 0]]]
    ).bool()[None]
    flat_q, flat_k, flat_v = (x.flatten(2, 3) for x in (q, k, v))
    got = flex_attention(flat_q, flat_k, flat_v, block_mask=flexible_mask(mask, 128))
    expected = block_sparse_attention(q, k, v, mask).flatten(2, 3)
    assert isinstance(got, Tensor)
    torch.testing.assert_close(got, expected, rtol=0, atol=2 * TOLERANCE[torch.float32])


def test_arguments_that_do_not_fit_are_refused() -> None:
    case = Example((1, 2, 3), 4, 8, torch.float32)
    lists = BlockLists.from_mask(case.mask)
    with pytest.raises(ValueError, match=r"lists are for \[1, 2, 3, 5\]"):
        block_list_attention(case.q, case.k, case.v, lists, ring=case.ring, fill=1)
    with pytest.raises(ValueError, match="no ring"):
        block_list_attention(case.q, case.k, case.v, lists, fill=2)
    short = (case.ring[0][:, :, :1], case.ring[1][:, :, :1])
    with pytest.raises(ValueError, match="2 remembered blocks in a ring of 1"):
        block_list_attention(case.q, case.k, case.v, lists, ring=short, fill=2)


def test_an_explicit_kernel_never_falls_back() -> None:
    case = Example((1, 1, 2), 2, 160, torch.float32)
    k, v = case.joined
    with pytest.raises(KernelUnsupportedError, match="heads are 160 wide"):
        block_sparse_attention(case.q, k, v, case.mask, impl="triton")
    with pytest.raises(KernelUnsupportedError, match="one dtype"):
        block_sparse_attention(
            case.q.double(), k.double(), v.double(), case.mask, impl="triton"
        )
    case = Example((1, 1, 2), 2, 16, torch.float32)
    with pytest.raises(KernelUnsupportedError, match="gradients"):
        block_sparse_attention(
            case.q.requires_grad_(), *case.joined, case.mask, impl="triton"
        )
    assert block_sparse_attention(case.q, *case.joined, case.mask).requires_grad


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a GPU bfloat16 is computed rightly"
)
def test_the_interpreter_is_not_asked_for_bfloat16() -> None:
    case = Example((1, 1, 2), 2, 16, torch.bfloat16)
    with pytest.raises(
        KernelUnsupportedError, match="interpreter computes bfloat16 incorrectly"
    ):
        case.got()


@pytest.mark.parametrize("fp8", [False, True], ids=["as it is", "8 bits"])
@pytest.mark.parametrize(
    ("size", "block"),
    [((2, 3, 3), (2, 2, 2)), ((3, 4, 2), (2, 2, 2)), ((2, 4, 4), (2, 2, 2))],
    ids=["rows and columns are padded", "frames are padded", "nothing is padded"],
)
def test_a_result_without_padding_is_the_one_with_it_less_its_padding(
    size: tuple[int, int, int], block: tuple[int, int, int], fp8: bool
) -> None:
    case = Example((1, 2, 4), 8, 16, torch.float32, density=0.6)
    lists = BlockLists.from_mask(case.mask)
    for impl in ("triton", "reference"):
        if fp8:
            ring_k, ring_v = (quantise_rows(x.contiguous()) for x in case.ring)
            q, k, v = (quantise_rows(x.contiguous()) for x in (case.q, case.k, case.v))
            attend = partial(
                block_list_attention_fp8,
                q,
                k,
                v.turned(),
                lists,
                ring=(ring_k, ring_v.turned()),
                dtype=case.q.dtype,
            )
        else:
            given = (case.q, case.k, case.v, lists)
            attend = partial(block_list_attention, *given, ring=case.ring)
        whole = attend(fill=case.fill, impl=impl)
        dense = attend(fill=case.fill, impl=impl, size=size, block=block)
        tokens = whole.permute(0, 2, 3, 1, 4).flatten(1, 2)
        expected = drop_padding(tokens, size, block)
        assert dense.shape == (1, 2, 1, math.prod(size), 16)
        assert torch.equal(dense[:, :, 0].transpose(1, 2), expected)
