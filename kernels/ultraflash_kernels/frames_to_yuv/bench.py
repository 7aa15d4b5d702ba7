"""Timing of the conversion of frames at the sizes of the cascade's output."""

from functools import partial
from itertools import product

import torch

from ultraflash_kernels.frames_to_yuv import frames_to_yuv
from ultraflash_kernels.measure import Case, implementations, main

__all__ = ["cases"]


def cases(device: torch.device) -> list[Case]:
    """Groups of 24 frames at 1K and 2K, in the decoder's layout too, on a GPU; one
    frame at 1K elsewhere."""
    gpu = device.type == "cuda"
    sizes = [(24, 960, 1664), (24, 1440, 2496)] if gpu else [(1, 960, 1664)]
    return [
        _case(size, bits, last, device)
        for size, bits, last in product(sizes, (8, 10), (False, True))
    ]


def _case(size: tuple[int, int, int], bits: int, last: bool, device: torch.device) -> Case:
    count, height, width = size
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    frames = torch.rand(count, 3, height, width, dtype=dtype, device=device)
    if last:
        frames = frames.contiguous(memory_format=torch.channels_last)
    return Case(
        name=f"frames_to_yuv {count}x{height}x{width}, {bits} bits, "
        f"{'channels last' if last else 'planes'}",
        dtype=dtype,
        calls={
            impl: partial(frames_to_yuv, frames, bits=bits, impl=impl)
            for impl in implementations(device)
        },
        moved_bytes=frames.nbytes
        + count * height * width * 3 // 2 * (1 if bits == 8 else 2),
    )


if __name__ == "__main__":
    main(__file__, cases)
