"""Conversion of frames to YUV planes for a video encoder."""

from ultraflash_kernels.frames_to_yuv.op import Matrix, YuvPlanes, frames_to_yuv

__all__ = ["Matrix", "YuvPlanes", "frames_to_yuv"]
