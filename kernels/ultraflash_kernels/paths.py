"""Implementation of every operation on a device, with the reason for the choice."""

from typing import NamedTuple

import torch

from ultraflash_kernels import dispatch
from ultraflash_kernels.block_sparse_attention import hopper
from ultraflash_kernels.fp8_linear import fp8_refusal
from ultraflash_kernels.linear_gelu.op import device_refusal as gelu_refusal
from ultraflash_kernels.memory_conv import library
from ultraflash_kernels.memory_conv.op import KERNEL_WINS

__all__ = ["KernelPath", "kernel_paths"]

_TRITON = (
    "adaln_modulate",
    "block_topk",
    "frames_to_yuv",
    "rms_norm",
    "rms_norm_rope",
    "text_attention",
)


class KernelPath(NamedTuple):
    """The implementation of an operation."""

    operation: str
    path: str
    """Short description of the implementation."""
    reason: str | None
    """Reason why it is not the fastest implementation; None if it is."""


def kernel_paths(device: torch.device) -> list[KernelPath]:
    """Return the implementation that ``auto`` uses for every operation on ``device``,
    in half precision."""
    refusal = dispatch.device_refusal(device)
    if device.type != "cuda":
        refusal = refusal or f"kernels are for GPUs, this is {device}"
    found = [_by(name, "Triton kernel", refusal) for name in _TRITON]
    found.append(_by("block_sparse_attention", "Triton kernel", refusal))
    if refusal is None:
        found[-1] = KernelPath("block_sparse_attention", *hopper.path(device))

    in_8_bits = fp8_refusal(device)
    taken = "torch._scaled_mm, and Triton kernels for attention"
    found.append(_by("fp8_linear", taken, in_8_bits))
    found.append(
        _by("linear_gelu", "cuBLASLt with GELU in its product", gelu_refusal(device))
    )

    conv = library.library_refusal(device, torch.float16)
    wins = sorted(
        f"{channels} to {outs} channels"
        for capability, channels, outs in KERNEL_WINS
        if device.type == "cuda" and capability == dispatch.capability(device)
    )
    taken = "cuDNN with bias, sum and ReLU in its convolutions"
    if wins:
        taken = f"Triton kernel for {', '.join(wins)}, else {taken}"
    found.append(_by("memory_conv", taken, None if wins else conv))
    return sorted(found)


def _by(operation: str, path: str, refusal: str | None) -> KernelPath:
    if refusal is None:
        return KernelPath(operation, path, None)
    return KernelPath(operation, "PyTorch", refusal.rstrip("."))
