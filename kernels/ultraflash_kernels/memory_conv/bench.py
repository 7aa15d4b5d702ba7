"""Timing of the memory block's convolutions at the sizes of the decoder and the
upsampler."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_kernels.measure import Case, implementations, main
from ultraflash_kernels.memory_conv import memory_conv, residual_conv, upsampled_conv

__all__ = ["cases"]


def cases(device: torch.device) -> list[Case]:
    """Stages of the decoder for one latent frame at 1K, and the upsampler, on a GPU;
    one small block elsewhere."""
    sizes = [(1, 64, 60, 104)]
    if device.type == "cuda":
        sizes = [
            (1, 256, 120, 208),
            (1, 128, 240, 416),
            (2, 64, 480, 832),
            (6, 128, 120, 208),
        ]
    grown = [((1, 64, 30, 52), 64)]
    if device.type == "cuda":
        grown = [
            ((1, 256, 120, 208), 128),
            ((2, 128, 240, 416), 64),
            ((4, 64, 480, 832), 64),
        ]
    return [case for size in sizes for case in _pair(size, device)] + [
        _doubled(*each, device) for each in grown
    ]


def _doubled(size: tuple[int, int, int, int], outs: int, device: torch.device) -> Case:
    """The convolution after a decoder stage that doubles its size."""
    frames, channels, height, width = size
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    x, weight = (
        torch.randn(shape, dtype=dtype, device=device).contiguous(
            memory_format=torch.channels_last
        )
        for shape in (size, (outs, channels, 3, 3))
    )
    weight = weight / (9 * channels)
    pixels = 4 * frames * height * width
    return Case(
        name=f"upsampled_conv {'x'.join(map(str, size))} to {outs}",
        dtype=dtype,
        calls={
            impl: partial(upsampled_conv, x, weight, impl=impl)
            for impl in implementations(device)
        },
        moved_bytes=x.nbytes + weight.nbytes + pixels * outs * x.element_size(),
        flops=2 * 4 * pixels * channels * outs,  # of the phases; the reference takes 9 / 4
    )


def _pair(size: tuple[int, int, int, int], device: torch.device) -> tuple[Case, Case]:
    frames, channels, height, width = size
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    x, weight, single = (
        torch.randn(shape, dtype=dtype, device=device).contiguous(
            memory_format=torch.channels_last
        )
        for shape in (size, (channels, 2 * channels, 3, 3), (channels, channels, 3, 3))
    )
    weight, single = weight / (27 * channels), single / (27 * channels)
    bias = torch.zeros(channels, dtype=dtype, device=device)
    clip, past = x.unsqueeze(0), x[:1]
    flops, named = 2 * 9 * frames * channels**2 * height * width, "x".join(map(str, size))

    impls = implementations(device)
    first = {
        impl: partial(memory_conv, clip, past, weight, bias, impl=impl) for impl in impls
    }
    last = {impl: partial(residual_conv, x, x, single, bias, impl=impl) for impl in impls}
    return (
        Case(
            name=f"memory_conv {named}",
            dtype=dtype,
            calls={**first, "joined": partial(_joined, x, weight, bias)},
            moved_bytes=2 * x.nbytes + weight.nbytes,
            flops=2 * flops,
        ),
        Case(
            name=f"residual_conv {named}",
            dtype=dtype,
            calls=last,
            moved_bytes=3 * x.nbytes + single.nbytes,
            flops=flops,
        ),
    )


def _joined(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The published block: current and previous frame concatenated along the
    channels."""
    return F.conv2d(torch.cat([x, x], dim=1), weight, bias, padding=1).relu_()


if __name__ == "__main__":
    main(__file__, cases)
