"""Measured limits of a device: a large matmul, a large copy and a plain convolution."""

from dataclasses import dataclass

import torch

from ultraflash_kernels.measure import Case, measure

__all__ = ["Limits", "measure_limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Rates that the device reaches in this run, at the precision of the model."""

    precision: str
    product_flops_per_second: float
    """Rate of a square matmul that fills the device."""
    copy_bytes_per_second: float
    """Rate of a copy larger than any cache, counting bytes read and written."""
    convolution_flops_per_second: float
    """Rate of a 3x3 convolution of 64 channels, channels last."""


def measure_limits(device: torch.device, precision: str) -> Limits:
    """Measure the limits of ``device``; ``precision`` is fp32, fp16 or bf16, anything else counts as bf16."""
    gpu = device.type == "cuda"
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    side, copied = (8192, 1 << 30) if gpu else (768, 128 << 20)
    channels, height, width = 64, *((240, 416) if gpu else (120, 208))

    # Random values: a GPU multiplies constants some 13 % faster, because fewer of its wires switch.
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.randint(0, 256, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
    x_nchw = torch.randn(16 if gpu else 1, channels, height, width, device=device).to(dtype)
    kernel, x_nchw = (each.contiguous(memory_format=torch.channels_last) for each in (kernel, x_nchw))
    cases = (
        Case(name="product", dtype=dtype, calls={"torch": lambda: a @ b}, moved_bytes=0, flops=2 * side**3),
        Case(name="copy", dtype=dtype, calls={"torch": lambda: target.copy_(source)}, moved_bytes=2 * copied),
        Case(
            name="convolution",
            dtype=dtype,
            calls={"torch": lambda: torch.nn.functional.conv2d(x_nchw, kernel, padding=1)},
            moved_bytes=0,
            flops=2 * 9 * channels**2 * x_nchw.shape[0] * height * width,
        ),
    )
    with torch.inference_mode():
        product, copy, convolution = (measure(case, device)[0] for case in cases)

    return Limits(
        precision=precision,
        product_flops_per_second=product.flop_per_s,
        copy_bytes_per_second=copy.bytes_per_s,
        convolution_flops_per_second=convolution.flop_per_s,
    )
