"""A linear layer whose matmul applies GELU before the result is written."""

from typing import Literal

import torch
from torch import Tensor

from ultraflash_kernels import dispatch
from ultraflash_kernels.dispatch import KernelUnsupportedError
from ultraflash_kernels.linear_gelu import reference

__all__ = ["LinearGeluImpl", "epilogue_refusal", "linear_gelu"]

LinearGeluImpl = Literal["auto", "epilogue", "reference"]
"""``epilogue`` and ``reference`` are used or raise; ``auto`` uses the first if it can
run."""

DTYPES = (torch.float16, torch.bfloat16)
SLOW_MAJOR = 12
"""GPUs of compute capability 12.x, where the library's matmul with GELU is slow."""


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, *, impl: LinearGeluImpl = "auto"
) -> Tensor:
    """Return ``gelu(x @ weight^T + bias)`` for ``x [..., K]``, ``weight [N, K]`` and
    ``bias [N]``, GELU in its tanh form.

    The reference rounds the sum to the dtype of x before GELU; the epilogue of the
    matmul does not. Raises ValueError for invalid shapes, KernelUnsupportedError for
    ``impl="epilogue"`` if it cannot run.
    """
    if impl not in ("auto", "epilogue", "reference"):
        raise ValueError(
            f"linear_gelu: impl must be auto, epilogue or reference, got {impl!r}"
        )
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1] or bias.shape != weight.shape[:1]:
        shapes = [list(each.shape) for each in (x, weight, bias)]
        raise ValueError(f"linear_gelu: x [..., K], weight [N, K], bias [N], got {shapes}")
    refusal = None if impl == "reference" else epilogue_refusal(x, weight, bias)
    if impl == "epilogue" and refusal:
        raise KernelUnsupportedError(f"linear_gelu: {refusal}")
    if impl == "reference" or refusal:
        return reference.linear_gelu(x, weight, bias)
    return _linear_gelu(x, weight, bias)


def epilogue_refusal(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Return a sentence that explains why the library cannot apply GELU in its matmul,
    or None."""
    dtypes = {each.dtype for each in (x, weight, bias)}
    if len(dtypes) > 1 or x.dtype not in DTYPES:
        return f"tensors must all be float16 or bfloat16, got {sorted(map(str, dtypes))}."
    if torch.is_grad_enabled() and any(y.requires_grad for y in (x, weight, bias)):
        return "a tensor requires gradients, but the epilogue has no backward pass."
    return device_refusal(x.device)


def device_refusal(device: torch.device) -> str | None:
    """Return a sentence that explains why no matmul on ``device`` applies GELU, or
    None."""
    if not dispatch.prefers_kernels(device):
        return f"it needs an NVIDIA GPU of compute capability 8.0 or later, got {device}."
    if device.type == "cuda" and dispatch.capability(device)[0] == SLOW_MAJOR:
        return "on compute capability 12 the library is slower with GELU than without."
    return None


@torch.library.custom_op("ultraflash::linear_gelu", mutates_args=())
def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from ultraflash_kernels.linear_gelu import epilogue

    return epilogue.linear_gelu(x, weight, bias)


@_linear_gelu.register_fake
def _linear_gelu_shape(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
