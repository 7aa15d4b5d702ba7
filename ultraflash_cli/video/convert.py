"""Decoded frames as pictures of one size and format, even if the stream changes."""

from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np

from ultraflash_cli.video.color import (
    RGB,
    UNSPECIFIED,
    ColorInfo,
    Picture,
    alpha_filter,
    as_alpha,
    as_picture,
    is_rgb,
    resolve_color,
    rgb_filter,
    widened,
)
from ultraflash_cli.video.filters import FrameFilter
from ultraflash_cli.video.probe import ClipInfo

__all__ = ["FrameConverter", "Look", "look_of"]

_BT601 = {5, 6}
"""Two codes for the same matrix: a disc may tag some frames with one of them and others
not at all."""
_SAME_SHAPE = Fraction(102, 100)
"""Maximum ratio of aspect ratios that is corrected by stretching; rounding to even
sides stays below it."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Properties needed to read a frame: its position in the clip's picture, and
    complete colour tags."""

    stored_wh: tuple[int, int]
    """Size of the frame itself."""
    fitted_wh: tuple[int, int]
    """Size of the frame within the clip's stored picture; the rest is black."""
    color: ColorInfo
    pix_fmt: str


def look_of(frame: av.VideoFrame, aspect: Fraction | None, info: ClipInfo, first: ColorInfo) -> Look:
    """Return how to read ``frame``, whose pixel aspect ratio is ``aspect`` according to
    the decoder. Its colour tags are used where they differ from those of the ``first``
    frame, which ``info`` describes.
    """
    own = replace(
        info.color,
        matrix=info.color.matrix if frame.colorspace in (UNSPECIFIED, first.matrix) else frame.colorspace,
        range=info.color.range if frame.color_range in (0, first.range) else frame.color_range,
    )
    name = frame.format.name
    usual, color = (
        resolve_color(
            each,
            width_px=info.stored_wh[0],
            height_px=info.stored_wh[1],
            rgb=is_rgb(name),
            full=name.startswith("yuvj"),
        )
        for each in (info.color, own)
    )
    if {usual.matrix, color.matrix} <= _BT601:
        color = replace(color, matrix=usual.matrix)

    return Look(
        stored_wh=(frame.width, frame.height), fitted_wh=_fitted(frame, aspect, info), color=color, pix_fmt=name
    )


def _fitted(frame: av.VideoFrame, aspect: Fraction | None, info: ClipInfo) -> tuple[int, int]:
    """Fit a frame of a different shape into the clip's picture."""
    width, height = info.stored_wh
    if not frame.width or not frame.height:
        return width, height
    wider = Fraction(frame.width * height, frame.height * width) * ((aspect or info.coded_aspect) / info.coded_aspect)
    if 1 / _SAME_SHAPE < wider < _SAME_SHAPE:
        return width, height
    if wider > 1:
        return width, max(1, round(height / wider))
    return max(1, round(width * wider)), height


class FrameConverter:
    """Converts decoded frames to RGB pictures, with transparency, in the clip's size.
    ``deinterlace`` is that of ``color.rgb_filter``. Frames with a different size,
    colour matrix or range are converted to match.
    """

    def __init__(self, info: ClipInfo, *, deinterlace: str | None, alpha: bool, threads: int) -> None:
        self._info = info
        self._deinterlace = deinterlace
        self._alpha = alpha
        self._threads = threads
        self._look: Look | None = None
        self._rgb: FrameFilter | None = None
        self._opaque: FrameFilter | None = None

    def begins_anew(self, look: Look) -> bool:
        """Whether a frame with this look needs new filters, so that the current ones
        must be flushed."""
        return look != self._look

    def push(self, frame: av.VideoFrame, look: Look) -> list[tuple[Picture, Picture | None]]:
        """Push one frame; return the pictures that are ready, in order. Tags of ``frame`` are overwritten."""
        ready: list[tuple[Picture, Picture | None]] = []
        if look != self._look:
            ready = self.flush()
            self._begin(look)
        assert self._rgb is not None, "begun above"
        frame.colorspace = look.color.matrix
        frame.color_range = look.color.range
        alphas = self._opaque.push(frame) if self._opaque is not None else []
        return ready + self._finished(self._rgb.push(frame), alphas)

    def flush(self) -> list[tuple[Picture, Picture | None]]:
        """Return the remaining pictures."""
        if self._rgb is None:
            return []
        return self._finished(self._rgb.flush(), self._opaque.flush() if self._opaque is not None else [])

    def _begin(self, look: Look) -> None:
        width_px, height_px = look.fitted_wh
        self._look = look
        self._rgb = rgb_filter(
            look.color,
            width_px=width_px,
            height_px=height_px,
            deep=self._info.bit_depth > 8,
            deinterlace=self._deinterlace,
            chroma_location=self._info.chroma_location,
            pix_fmt=look.pix_fmt,
            chroma_shift=self._info.chroma_shift,
            denoise=self._info.denoise,
            fields=self._info.fields,
            threads=self._threads,
        )

        if self._alpha:
            self._opaque = alpha_filter(
                width_px=width_px,
                height_px=height_px,
                pix_fmt=look.pix_fmt,
                deinterlace=self._deinterlace,
                fields=self._info.fields,
                threads=self._threads,
            )

    def _finished(
        self, frames: list[av.VideoFrame], alphas: list[av.VideoFrame]
    ) -> list[tuple[Picture, Picture | None]]:
        assert self._look is not None, "frames come from filters that were built for a look"
        deep = self._info.bit_depth > 8
        pairs: list[tuple[Picture, Picture | None]] = []
        for number, frame in enumerate(frames):
            rgb_hwc = as_picture(frame.to_ndarray())
            is_mended = self._info.denoise is not None or self._info.chroma_shift is not None
            from_yuv = self._look.color.matrix != RGB or is_mended
            rgb_hwc = self._placed(widened(rgb_hwc) if from_yuv else rgb_hwc)
            pairs.append((rgb_hwc, self._placed(as_alpha(alphas[number], deep=deep)) if self._alpha else None))
        return pairs

    def _placed(self, picture: Picture) -> Picture:
        """Centre a picture in the clip's, and crop."""
        width, height = self._info.stored_wh
        if picture.shape[:2] != (height, width):
            whole = np.zeros((height, width, *picture.shape[2:]), picture.dtype)
            top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
            whole[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            picture = as_picture(whole)
        crop = self._info.crop
        if crop is None:
            return picture
        shown = picture[crop.top_px : height - crop.bottom_px, crop.left_px : width - crop.right_px]
        return as_picture(np.ascontiguousarray(shown))
