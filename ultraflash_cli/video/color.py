"""Colour tags, and conversion between YUV and RGB that honours them."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from struct import unpack
from typing import cast

import av
import av.logging
import numpy as np
from numpy.typing import NDArray

from ultraflash_cli.video.filters import FrameFilter, chroma_places, deinterlacer
from ultraflash_cli.video.sidedata import side_data

__all__ = [
    "BT709",
    "FULL",
    "LIMITED",
    "RGB",
    "UNSPECIFIED",
    "ColorInfo",
    "ContentLight",
    "MasteringDisplay",
    "Picture",
    "alpha_filter",
    "alpha_planes",
    "as_alpha",
    "as_frame",
    "as_picture",
    "chroma_location",
    "content_light",
    "is_rgb",
    "jfif_color",
    "mastering_display",
    "narrowed",
    "output_color",
    "picture_color",
    "resize_rgb",
    "resolve_color",
    "rgb_filter",
    "scale_matrix",
    "widened",
    "yuv_filter",
]

Picture = NDArray[np.uint8] | NDArray[np.uint16]
"""One RGB frame ``[height, width, 3]``: uint8, or full-range uint16."""

RGB = 0
UNSPECIFIED = 2
LIMITED = 1
FULL = 2
_BT709 = 1
_BT470BG = 5
_SMPTE170M = 6
_BT2020 = 9
_BT2020_CL = 10
_TRC_BT709 = 1
_TRC_SRGB = 13
_TRC_BT2020_10 = 14

_SCALE_MATRIX = {
    1: "bt709",
    4: "fcc",
    5: "bt470",
    6: "smpte170m",
    7: "smpte240m",
    9: "bt2020",
    10: "bt2020",
}
"""Names of the scale filter. An unsupported matrix (YCgCo, ICtCp) is read and written as bt709, so the values are
preserved under the same tag."""

_CHROMA_LOCATIONS = ("left", "center", "topleft", "top", "bottomleft", "bottom")
_CENTRED_CODECS = {"flv1", "h261", "h263", "mjpeg", "mpeg1video", "rv10", "rv20", "theora"}

_FLAGS = "lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"


@dataclass(frozen=True, kw_only=True)
class ColorInfo:
    """Colour tags in FFmpeg's numbers; 2 (0 for the range) means unspecified."""

    matrix: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    range: int = 0


BT709 = ColorInfo(matrix=_BT709, primaries=_BT709, transfer=_TRC_BT709, range=LIMITED)
"""The colour tags of generated clips."""


@dataclass(frozen=True, kw_only=True)
class MasteringDisplay:
    """The display that a clip was mastered on (SMPTE ST 2086)."""

    red: tuple[Fraction, Fraction]
    """CIE 1931 x and y."""
    green: tuple[Fraction, Fraction]
    blue: tuple[Fraction, Fraction]
    white: tuple[Fraction, Fraction]
    darkest_nits: Fraction
    brightest_nits: Fraction

    @property
    def x265(self) -> str:
        """The value of x265's ``master-display``."""
        colours = (("G", self.green), ("B", self.blue), ("R", self.red), ("WP", self.white))
        places = "".join(f"{name}({round(x * 50_000)},{round(y * 50_000)})" for name, (x, y) in colours)
        return f"{places}L({round(self.brightest_nits * 10_000)},{round(self.darkest_nits * 10_000)})"

    @property
    def svtav1(self) -> str:
        """The value of SVT-AV1's ``mastering-display``."""
        colours = (("G", self.green), ("B", self.blue), ("R", self.red), ("WP", self.white))
        places = "".join(f"{name}({float(x):.5f},{float(y):.5f})" for name, (x, y) in colours)
        return f"{places}L({float(self.brightest_nits):.4f},{float(self.darkest_nits):.4f})"


@dataclass(frozen=True, kw_only=True)
class ContentLight:
    """Brightest pixel and brightest frame average of a clip, in nits (CTA-861.3)."""

    max_cll: int
    max_fall: int


def mastering_display(frame: av.VideoFrame) -> MasteringDisplay | None:
    """Read the mastering display of ``frame``; None if it is incomplete."""
    data = side_data(frame).get("MASTERING_DISPLAY_METADATA", b"")
    if len(data) < 88:
        return None
    numbers = unpack("=22i", data[:88])
    if not (numbers[20] and numbers[21] and all(numbers[1:20:2])):
        return None
    values = [Fraction(numbers[i], numbers[i + 1]) for i in range(0, 20, 2)]
    red, green, blue, white = ((values[i], values[i + 1]) for i in range(0, 8, 2))
    return MasteringDisplay(
        red=red, green=green, blue=blue, white=white, darkest_nits=values[8], brightest_nits=values[9]
    )


def content_light(frame: av.VideoFrame) -> ContentLight | None:
    """Read the content light level; None if it is missing."""
    data = side_data(frame).get("CONTENT_LIGHT_LEVEL", b"")
    if len(data) < 8:
        return None
    max_cll, max_fall = unpack("=2I", data[:8])
    return ContentLight(max_cll=max_cll, max_fall=max_fall) if max_cll or max_fall else None


def chroma_location(frame: av.VideoFrame, codec: str) -> str:
    """Return the chroma location by the scale filter's name: that of ``frame`` or, if
    unspecified, the standard one. That is the centre for JPEG and the MPEG-1 family of
    codecs, and left for all others.
    """
    usual = "center" if codec in _CENTRED_CODECS else "left"
    tags = frame.color_primaries, frame.color_trc
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        # PyAV offers no other access to it.
        with av.logging.Capture() as said:
            FrameFilter(("showinfo", "checksum=0")).push(frame)
    finally:
        av.logging.set_level(level)
        frame.color_primaries, frame.color_trc = tags
    found = re.search(r"\bcl:(\w+)", "".join(text for _, _, text in said))
    return found[1] if found and found[1] in _CHROMA_LOCATIONS else usual


def is_rgb(pix_fmt: str) -> bool:
    """Return whether no YUV matrix applies; FFmpeg does not count palettes, monochrome
    and XYZ formats as RGB."""
    return av.VideoFormat(pix_fmt).is_rgb or pix_fmt in ("pal8", "monob", "monow", "xyz12le", "xyz12be")


def resolve_color(color: ColorInfo, *, width_px: int, height_px: int, rgb: bool, full: bool = False) -> ColorInfo:
    """Fill in missing tags the way players do.

    ``rgb`` means that the pixel format is RGB, ``full`` that it implies full range
    (yuvj). An unspecified matrix is bt601 up to 576 lines and below 1280 pixels of
    width, else bt709; unspecified primaries and transfer follow the television standard
    with that number of lines.
    """
    if rgb:
        return ColorInfo(
            matrix=RGB,
            primaries=_BT709 if color.primaries == UNSPECIFIED else color.primaries,
            transfer=_TRC_SRGB if color.transfer == UNSPECIFIED else color.transfer,
            range=FULL,
        )

    matrix = color.matrix
    if matrix in (RGB, UNSPECIFIED):
        standard = height_px <= 576 and width_px < 1280
        matrix = (_BT470BG if height_px == 576 else _SMPTE170M) if standard else _BT709

    primaries = color.primaries
    if primaries == UNSPECIFIED:
        if matrix in (_BT2020, _BT2020_CL):
            primaries = _BT2020
        else:
            primaries = {576: _BT470BG, 480: _SMPTE170M, 486: _SMPTE170M}.get(height_px, _BT709)

    transfer = color.transfer
    if transfer == UNSPECIFIED:
        transfer = {_BT2020: _TRC_BT2020_10, _BT709: _TRC_BT709}.get(primaries, _SMPTE170M)
    return ColorInfo(
        matrix=matrix,
        primaries=primaries,
        transfer=transfer,
        range=color.range or (FULL if full else LIMITED),
    )


def picture_color(color: ColorInfo) -> ColorInfo:
    """Fill in missing primaries and a missing transfer as for still pictures, which are
    sRGB unless they state something else."""
    return replace(
        color,
        primaries=_BT709 if color.primaries == UNSPECIFIED else color.primaries,
        transfer=_TRC_SRGB if color.transfer == UNSPECIFIED else color.transfer,
    )


def output_color(color: ColorInfo) -> ColorInfo:
    """Return the tags to write for a clip that was read with ``color``; RGB sources
    become limited-range bt709."""
    if color.matrix == RGB:
        return replace(color, matrix=_BT709, range=LIMITED)
    if color.matrix == _BT2020_CL:
        return replace(color, matrix=_BT2020)
    return color


def jfif_color(color: ColorInfo) -> ColorInfo:
    """Return the tags of a JPEG of a picture that was read with ``color``: JFIF fixes the
    matrix to BT.601 and the range to full."""
    return replace(color, matrix=_BT470BG, range=FULL)


def rgb_filter(
    color: ColorInfo,
    *,
    width_px: int,
    height_px: int,
    deep: bool,
    deinterlace: str | None,
    chroma_location: str,
    pix_fmt: str,
    chroma_shift: tuple[float, float] | None = None,
    denoise: tuple[float, float] | None = None,
    fields: bool = False,
    threads: int = 1,
) -> FrameFilter:
    """Return a filter from decoded frames to rgb24, or rgb48le where ``deep``; ``color`` is resolved.

    ``deinterlace`` is what ``filters.deinterlacer`` takes; with ``fields`` each
    deinterlaced frame yields two. ``chroma_location`` is the position of subsampled
    chroma (left, center, topleft, ...) in frames of ``pix_fmt``; libswscale would
    otherwise assume the centre, whatever the frames' tags. ``chroma_shift`` and
    ``denoise`` are those of ``probe.ClipInfo``.
    """
    filters = deinterlacer(deinterlace, fields)
    is_mended = denoise is not None or chroma_shift is not None
    if color.matrix == RGB and is_mended:
        pix_fmt = "yuv444p16le" if deep else "yuv444p"
        filters += [
            ("scale", f"flags={_FLAGS}:in_range=full:out_color_matrix=bt709:out_range=full"),
            ("format", f"pix_fmts={pix_fmt}"),
        ]
        color = replace(color, matrix=_BT709, range=FULL)

    if denoise is not None:
        for planes, sigma in zip((1, 6), denoise, strict=True):
            options = f"sigma={sigma}:planes={planes}:block=16:overlap=0.5:prev=1:next=1"
            filters += [("fftdnoiz", options)] if sigma > 0 else []

    source = "" if color.matrix == RGB else f":in_color_matrix={scale_matrix(color)}:in_range={_range(color)}"
    if chroma_shift is not None:
        moving, places = chroma_places(pix_fmt, chroma_location, chroma_shift)
        filters += moving
        source += places
    elif source:
        source += f":in_chroma_loc={chroma_location}"

    filters.append(("scale", f"w={width_px}:h={height_px}:flags={_FLAGS}{source}:out_range=full"))
    filters.append(("format", "pix_fmts=rgb48le" if deep else "pix_fmts=rgb24"))
    return FrameFilter(*filters, threads=threads)


def alpha_filter(
    *,
    width_px: int,
    height_px: int,
    pix_fmt: str,
    deinterlace: str | None,
    fields: bool = False,
    threads: int = 1,
) -> FrameFilter:
    """Return a filter from decoded frames to their transparency, as gray pictures for
    ``as_alpha``; see ``rgb_filter``. ``pix_fmt`` is the format of most frames; frames
    without transparency become opaque.
    """
    return FrameFilter(
        *deinterlacer(deinterlace, fields),
        *_extracting(pix_fmt),
        ("scale", f"w={width_px}:h={height_px}:flags=bicubic+accurate_rnd:in_range=full:out_range=full"),
        threads=threads,
    )


def alpha_planes(frame: av.VideoFrame) -> av.VideoFrame:
    """Return the transparency of ``frame`` as a gray picture. The timestamp of
    ``frame`` is overwritten."""
    tags = frame.color_primaries, frame.color_trc
    filters = FrameFilter(*_extracting(frame.format.name))
    (gray,) = filters.push(frame) + filters.flush()
    frame.color_primaries, frame.color_trc = tags
    return gray


def _extracting(pix_fmt: str) -> list[tuple[str, str]]:
    # For gray pictures with alpha, the filter reads the transparency of the next pixel.
    known = {"ya8": "rgba", "ya16le": "rgba64le", "ya16be": "rgba64le", "pal8": "rgba"}
    first = [("format", f"pix_fmts={known[pix_fmt]}")] if pix_fmt in known else []
    return [*first, ("extractplanes", "planes=a")]


def as_alpha(gray: av.VideoFrame, *, deep: bool) -> Picture:
    """Scale the samples of a gray picture to 8 bits, or to 16 if ``deep``: ``[height,
    width]``."""
    bits = gray.format.components[0].bits
    most = (1 << bits) - 1
    levels = np.asarray(gray.to_ndarray(format=gray.format.name)).astype(np.uint32)
    target = 65535 if deep else 255
    return as_picture(((levels * target + most // 2) // most).astype(np.uint16 if deep else np.uint8))


def yuv_filter(color: ColorInfo, *, pix_fmt: str, chroma_location: str = "left") -> FrameFilter:
    """Return a filter from rgb24 or rgb48le to ``pix_fmt`` with the matrix and range of
    ``color``, and with subsampled chroma at ``chroma_location``."""
    if color.matrix == RGB:
        target = ""
    else:
        target = f":out_color_matrix={scale_matrix(color)}:out_range={_range(color)}"
        if "420" in pix_fmt or "422" in pix_fmt:
            target += f":out_chroma_loc={chroma_location}"
    return FrameFilter(
        ("scale", f"flags={_FLAGS}:in_range=full{target}"),
        ("format", f"pix_fmts={pix_fmt}"),
        threads=1,
    )


def widened(rgb_hwc: Picture) -> Picture:
    """Scale libswscale's 16-bit RGB from YUV, in which white is 0xFF00, to the full
    range; 8 bits are unchanged."""
    if rgb_hwc.dtype == np.uint8:
        return rgb_hwc
    capped = np.minimum(rgb_hwc, 0xFF00)
    return as_picture(capped + (capped >> 8))


def narrowed(rgb_hwc: Picture) -> Picture:
    """Undo ``widened``, for libswscale's conversion back to YUV."""
    return rgb_hwc if rgb_hwc.dtype == np.uint8 else as_picture(rgb_hwc - (rgb_hwc >> 8))


def resize_rgb(rgb_hwc: Picture, width_px: int, height_px: int) -> Picture:
    """Resample one picture with libswscale's Lanczos filter, each colour separately;
    keeps the dtype."""
    pix_fmt = "gray16le" if rgb_hwc.dtype == np.uint16 else "gray"
    filters = FrameFilter(
        ("scale", f"w={width_px}:h={height_px}:flags=lanczos+accurate_rnd:in_range=full:out_range=full"),
        ("format", f"pix_fmts={pix_fmt}"),
    )
    planes: list[Picture] = []
    for channel in range(3):
        ready = filters.push(as_frame(as_picture(rgb_hwc[:, :, channel]), pix_fmt)) + filters.flush()
        planes.append(as_picture(ready[0].to_ndarray()))
    return as_picture(np.stack(planes, axis=-1))


def as_frame(array_hwc: Picture, pix_fmt: str) -> av.VideoFrame:
    """Return a frame with a copy of packed pixels."""
    return av.VideoFrame.from_ndarray(cast("NDArray[np.uint8]", np.ascontiguousarray(array_hwc)), format=pix_fmt)


def as_picture(array: object) -> Picture:
    """Narrow the type of an array from PyAV."""
    assert isinstance(array, np.ndarray) and array.dtype in (np.uint8, np.uint16), "8 or 16 bits a sample"
    return cast("NDArray[np.uint8]", array)


def scale_matrix(color: ColorInfo) -> str:
    """Return libswscale's name of the matrix that ``color`` is read and written with."""
    return _SCALE_MATRIX.get(color.matrix, "bt709")


def _range(color: ColorInfo) -> str:
    return "full" if color.range == FULL else "limited"
