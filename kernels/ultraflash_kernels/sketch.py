"""Attention on meta tensors: shapes, the tensors that a fused kernel keeps for its
backward pass, and its operations, for counting memory and work."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

__all__ = ["sketched_attention"]


def sketched_attention(q: Tensor, k: Tensor, v: Tensor, pairs: int) -> Tensor:
    """Return an empty result of attention from ``q [*, D]`` to ``k`` and ``v`` over
    ``pairs`` pairs of query and key tokens; differentiable.

    Like a fused kernel, it keeps q, k, v, the result and one number per query for the
    backward pass. FlopCounterMode counts 4 D operations per pair, and 10 D in the
    backward pass, which recomputes the products of q and k.
    """
    return _attention(q, k, v, pairs)[0]


@torch.library.custom_op("ultraflash::sketched_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    raise NotImplementedError(
        "sketched attention runs only on meta tensors, which have no values"
    )


@torch.library.custom_op("ultraflash::sketched_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, pairs: int
) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError(
        "sketched attention runs only on meta tensors, which have no values"
    )


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, pairs: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.pairs = inputs
    ctx.save_for_backward(q, k, v, *output)


def _back(ctx: Any, grad: Tensor, _sums: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad, *ctx.saved_tensors, ctx.pairs), None


_attention.register_autograd(_back, setup_context=_keep)


@register_flop_formula(torch.ops.ultraflash.sketched_attention)
def _flops(q_shape: tuple[int, ...], _k: Any, _v: Any, pairs: int, **_: Any) -> int:
    return 4 * q_shape[-1] * pairs


@register_flop_formula(torch.ops.ultraflash.sketched_attention_backward)
def _backward_flops(grad_shape: tuple[int, ...], *rest: Any, **_: Any) -> int:
    return 10 * grad_shape[-1] * rest[-1]
