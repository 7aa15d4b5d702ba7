"""Arithmetic and memory traffic of a computation: operations and bytes."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ultraflash_cli.engine.clock import StageClock

__all__ = ["CountingClock", "Work", "counting", "counting_flops"]


class Work(NamedTuple):
    """The cost of a computation."""

    flops: int
    """Operations of convolutions, matmuls and attention (only of selected blocks); a
    multiply-add counts as 2."""
    bytes: int
    """Bytes read and written, summed over all operations; views do not count."""


@contextmanager
def counting() -> Generator[Callable[[], Work]]:
    """Count the computations inside the block; yields a function that returns the count
    so far."""
    with (
        _Traffic() as traffic,
        FlopCounterMode(display=False, custom_mapping=_formulas()) as flops,
    ):
        yield lambda: Work(flops.get_total_flops(), traffic.bytes)


@contextmanager
def counting_flops() -> Generator[Callable[[], int]]:
    """Count only the arithmetic, which is cheaper."""
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as flops:
        yield flops.get_total_flops


class CountingClock(StageClock):
    """A stage clock that also counts the computations of each stage while ``so_far`` is
    set."""

    def __init__(
        self, device: torch.device, elsewhere: Mapping[str, torch.device] | None = None
    ) -> None:
        super().__init__(device, elsewhere)
        self.so_far: Callable[[], Work] | None = None
        self.work: dict[str, Work] = {}

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Time and count the computations inside the block."""
        before = self.so_far() if self.so_far else None
        with super().__call__(stage):
            yield
        if self.so_far and before:
            after, sum_ = self.so_far(), self.work.get(stage, Work(0, 0))
            self.work[stage] = Work(
                sum_.flops + after.flops - before.flops,
                sum_.bytes + after.bytes - before.bytes,
            )


class _Traffic(TorchDispatchMode):
    """Sums the sizes of tensors read and written by operations."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            touched = [
                each
                for each in tree_leaves((args, kwargs, out))
                if isinstance(each, Tensor)
            ]
            self.bytes += sum(each.numel() * each.element_size() for each in touched)
        return out


def _formulas() -> dict[Any, Callable[..., int]]:
    """Return formulas for the operations that torch does not count itself."""
    for name in ("block_sparse_attention", "linear_gelu", "memory_conv", "text_attention"):
        import_module(f"ultraflash_kernels.{name}.op")  # registers the operation with torch

    # torch does not count its own attention on a CPU.
    return {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten.addmm_: _addmm_flops,
        torch.ops.ultraflash.block_list_attention: _block_list_flops,
        torch.ops.ultraflash.block_list_attention_fp8: _block_list_flops,
        torch.ops.ultraflash.block_list_attention_fp8_hopper: _block_list_flops,
        torch.ops.ultraflash.block_list_attention_hopper: _block_list_flops,
        torch.ops.ultraflash.dense_attention: _attention_flops,
        torch.ops.ultraflash.dense_attention_fp8: _dense_fp8_flops,
        torch.ops.ultraflash.dense_attention_fp8_hopper: _dense_fp8_flops,
        torch.ops.ultraflash.fused_conv: _fused_conv_flops,
        torch.ops.ultraflash.linear_gelu: _linear_gelu_flops,
        torch.ops.ultraflash.memory_conv: _memory_conv_flops,
        torch.ops.ultraflash.earlier_conv: _memory_conv_flops,
        torch.ops.ultraflash.text_attention: _text_attention_flops,
        torch.ops.ultraflash.text_attention_fp8: _text_attention_flops,
        torch.ops.ultraflash.upsampled_conv: _upsampled_conv_flops,
    }


def _addmm_flops(
    stream: torch.Size, rows: torch.Size, weight: torch.Size, *_: object, **__: object
) -> int:
    return 2 * rows[0] * rows[1] * weight[1]


def _linear_gelu_flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * x.numel() * weight[0]


def _fused_conv_flops(
    x_nchw: torch.Size,
    weight: torch.Size,
    *_: object,
    out_shape: torch.Size,
    **__: object,
) -> int:
    return 2 * out_shape.numel() * weight[1:].numel()


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return sdpa_flop_count(query, key, value)


def _dense_fp8_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return 4 * query.numel() * key[2]


def _text_attention_flops(
    query: torch.Size, weight: torch.Size, key: torch.Size, *_: object, **__: object
) -> int:
    return 4 * query.numel() * key[2]


def _block_list_flops(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *_: object, **__: object
) -> int:
    """Two matmuls for each pair of blocks in the lists."""
    tokens, width = q.shape[3:]
    return 4 * int(starts.flatten()[-1]) * tokens * tokens * width


_block_list_flops._get_raw = True  # pyright: ignore[reportFunctionMemberAccess]  how torch asks for tensors


def _memory_conv_flops(
    x_btchw: torch.Size,
    past: object,
    weight: torch.Size,
    *_: object,
    out_shape: torch.Size,
    **__: object,
) -> int:
    return 2 * out_shape.numel() * weight[1:].numel()


def _upsampled_conv_flops(
    x: torch.Size, taps: torch.Size, *_: object, out_shape: torch.Size, **__: object
) -> int:
    """Four taps for each pixel."""
    return 2 * out_shape.numel() * taps[2:].numel()
