"""Softmax attention to all keys."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from ultraflash_kernels.block_sparse_attention import hopper
from ultraflash_kernels.dispatch import KernelUnsupportedError

__all__ = ["DenseImpl", "dense_attention"]

DenseImpl = Literal["auto", "hopper", "reference"]
"""``hopper`` and ``reference``, which is SDPA, are used or raise; ``auto`` uses the
kernel for Hopper where ``HOPPER_WINS`` lists it and it has passed its check."""


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, impl: DenseImpl = "auto") -> Tensor:
    """Attend from ``q [B, H, tokens, D]`` to all of ``k`` and ``v [B, H, key tokens,
    D]``, scaled by ``1 / sqrt(D)``.

    Differentiable in q, k and v, by SDPA. Raises ValueError for an unknown
    implementation, KernelUnsupportedError for ``impl="hopper"`` if the kernel cannot
    run.
    """
    if impl not in ("auto", "hopper", "reference"):
        raise ValueError(
            f"dense_attention: impl must be auto, hopper or reference, got {impl!r}"
        )
    with_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if impl == "hopper":
        refusal = hopper.refusal(q, k, v)
        if with_gradients:
            refusal = "a tensor requires gradients, but the kernel has no backward pass."
        if refusal is not None:
            raise KernelUnsupportedError(f"dense_attention: {refusal}")
        return _dense_attention(q, k, v)
    if impl == "auto" and not with_gradients and hopper.is_chosen("dense", q, k, v):
        return _dense_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


@custom_op("ultraflash::dense_attention", mutates_args=())
def _dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from ultraflash_kernels.block_sparse_attention import kernel_hopper

    return kernel_hopper.dense(q, k, v)


@_dense_attention.register_fake
def _dense_shape(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    samples, heads, tokens, width = q.shape
    return q.new_empty((samples, tokens, heads, width)).transpose(1, 2)
