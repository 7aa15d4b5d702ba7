"""Frames to the planes that a video encoder takes."""

from ultraflash_kernels.frames_to_yuv.op import Matrix, YuvPlanes, frames_to_yuv

__all__ = ["Matrix", "YuvPlanes", "frames_to_yuv"]
