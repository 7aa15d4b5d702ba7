"""Linear layers with inputs and weights in 8-bit floating point, and a scale for every
row of both."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ultraflash_kernels.dispatch import (
    Impl,
    KernelUnsupportedError,
    chooses_triton,
    device_refusal,
)
from ultraflash_kernels.fp8_linear import reference

__all__ = [
    "Fp8Impl",
    "Fp8Rows",
    "e4m3_refusal",
    "fp8_linear",
    "fp8_refusal",
    "quantise_gelu_rows",
    "quantise_rows",
    "scaled_mm_refusal",
]

Fp8Impl = Literal["auto", "scaled_mm", "reference"]
"""``scaled_mm`` and ``reference`` are used or raise; ``auto`` uses the first if it can
run."""

OLDEST_CAPABILITY = (8, 9)
"""Minimum compute capability of GPUs with 8-bit floating-point matmuls."""
MULTIPLE = 16
"""Both widths of a layer must be multiples of this."""


class Fp8Rows(NamedTuple):
    """Rows in 8-bit floating point; they represent ``values * scales``."""

    values: Tensor
    """``[..., D]``, float8_e4m3fn."""
    scales: Tensor
    """``[..., 1]``, float32."""

    def turned(self) -> "Fp8Rows":
        """Return values ``[..., D, N]`` and scales ``[..., 1, N]`` of N rows, for a
        matmul that sums over the rows: in 8 bits it needs them next to each other."""
        return Fp8Rows(*(x.transpose(-1, -2).contiguous() for x in self))

    def wide(self, dtype: torch.dtype) -> Tensor:
        """Return the represented numbers in ``dtype``, also of ``turned`` rows."""
        return (self.values.float() * self.scales).to(dtype)


def quantise_rows(x: Tensor, *, impl: Impl = "auto") -> Fp8Rows:
    """Round rows of ``x [..., D]`` to float8_e4m3fn, each scaled so that its largest
    magnitude becomes 448.

    Scales are ``max(|row|) / 448``, with a lower bound on the maximum of 1e-12;
    division and rounding (to nearest, ties to even) are those of float32. Not
    differentiable. Raises ValueError unless ``x`` is floating point.
    """
    if not x.is_floating_point() or x.ndim < 1:
        raise ValueError(
            f"quantise_rows: rows must be floats, got {x.dtype} {list(x.shape)}"
        )
    if chooses_triton("quantise_rows", impl, x, refusal=e4m3_refusal(x)):
        return Fp8Rows(*_quantise(x))
    with torch.no_grad():
        return Fp8Rows(*reference.quantise(x))


def quantise_gelu_rows(x: Tensor, *, impl: Impl = "auto") -> Fp8Rows:
    """Return ``quantise_rows`` of the tanh form of GELU of ``x [..., D]``, rounded to
    the dtype of x, without writing the latter. Not differentiable."""
    if not x.is_floating_point() or x.ndim < 1:
        raise ValueError(
            f"quantise_gelu_rows: rows must be floats, got {x.dtype} {list(x.shape)}"
        )
    if chooses_triton("quantise_gelu_rows", impl, x, refusal=e4m3_refusal(x)):
        return Fp8Rows(*_quantise_gelu(x))
    with torch.no_grad():
        return Fp8Rows(*reference.quantise_gelu(x))


def fp8_linear(
    x: Tensor | Fp8Rows,
    weight: Fp8Rows,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    fast_accumulation: bool = True,
    impl: Fp8Impl = "auto",
) -> Tensor:
    """Return ``x @ weight^T + bias`` for ``x [..., K]`` and ``weight [N, K]`` with
    quantised rows. A tensor x is quantised first; an input shared by several layers is
    quantised once and passed as ``Fp8Rows``. Products of the stored numbers are summed
    in float32, multiplied by both scales, the bias ``[N]`` is added, and the result is
    rounded to ``dtype`` (that of x; bfloat16 for rows). ``fast_accumulation`` lets
    Hopper sum with fewer bits. Inference only. Raises ValueError for invalid shapes,
    KernelUnsupportedError if ``scaled_mm`` is requested and cannot run.
    """
    if impl not in ("auto", "scaled_mm", "reference"):
        raise ValueError(
            f"fp8_linear: impl must be auto, scaled_mm or reference, got {impl!r}"
        )
    given = x.values if isinstance(x, Fp8Rows) else x
    out, width = weight.values.shape
    if (
        given.shape[-1] != width
        or weight.scales.shape != (out, 1)
        or (bias is not None and bias.shape != (out,))
    ):
        shapes = [
            list(y.shape)
            for y in (
                given,
                weight.values,
                weight.scales,
                *([] if bias is None else [bias]),
            )
        ]
        raise ValueError(
            "fp8_linear: x [..., K], weight [N, K] with scales [N, 1], bias [N] expected, "
            f"got {shapes}"
        )
    dtype = dtype or (torch.bfloat16 if isinstance(x, Fp8Rows) else x.dtype)
    refusal = (
        None if impl == "reference" else scaled_mm_refusal(given.device, width, out, dtype)
    )
    if impl == "scaled_mm" and refusal:
        raise KernelUnsupportedError(f"fp8_linear: {refusal}")
    with torch.no_grad():
        rows = (
            x
            if isinstance(x, Fp8Rows)
            else quantise_rows(x, impl="reference" if impl == "reference" else "auto")
        )
        if impl == "reference" or refusal:
            return reference.linear(*rows, *weight, bias, dtype)
        from ultraflash_kernels.fp8_linear import scaled_mm

        return scaled_mm.linear(*rows, *weight, bias, dtype, fast_accumulation)


def scaled_mm_refusal(
    device: torch.device, width: int, out: int, dtype: torch.dtype
) -> str | None:
    """Return a sentence that explains why a matmul of these sizes cannot run in 8 bits
    on ``device``, or None."""
    if width % MULTIPLE or out % MULTIPLE:
        return f"widths must be multiples of {MULTIPLE}, got {width} and {out}."
    if device.type != "cuda":
        return f"8-bit matmuls need an NVIDIA GPU, the tensors are on {device}."
    if torch.version.hip is not None:
        return "8-bit matmuls are checked on NVIDIA GPUs only."
    if dtype != torch.bfloat16:
        return f"row-wise matmuls return bfloat16, not {dtype}."
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is older than 8.9."
    return None


def fp8_refusal(device: torch.device) -> str | None:
    """Return a sentence that explains why networks (layers and attention) cannot run in
    8 bits on ``device``, or None."""
    if not hasattr(torch, "_scaled_mm"):
        return "this torch has no 8-bit matmuls."
    return scaled_mm_refusal(device, MULTIPLE, MULTIPLE, torch.bfloat16) or device_refusal(
        device
    )


def e4m3_refusal(x: Tensor) -> str | None:
    """Return a sentence that explains why no kernel can write ``x`` as float8_e4m3fn on
    its device, or None."""
    if (
        x.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(x.device) < OLDEST_CAPABILITY
    ):
        return "compute capability 8.9 is the first to support float8_e4m3fn."
    return None


@torch.library.custom_op("ultraflash::quantise_rows", mutates_args=())
def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    from ultraflash_kernels.fp8_linear import kernel

    return kernel.quantise(x)


@_quantise.register_fake
def _quantise_shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    scales = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), scales


@torch.library.custom_op("ultraflash::quantise_gelu_rows", mutates_args=())
def _quantise_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    from ultraflash_kernels.fp8_linear import kernel

    return kernel.quantise(x, gelu=True)


_quantise_gelu.register_fake(_quantise_shapes)
