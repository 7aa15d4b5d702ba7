"""Frames to the planes that a video encoder takes."""

from ultraflash_kernels.frames_to_yuv.op import (
    Dither,
    Matrix,
    Siting,
    YuvPlanes,
    frames_to_yuv,
)

__all__ = ["Dither", "Matrix", "Siting", "YuvPlanes", "frames_to_yuv"]
