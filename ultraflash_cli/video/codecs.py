"""Capabilities of the encoders, and the choice of codec and pixel format."""

from dataclasses import dataclass, field
from fractions import Fraction

import av

from ultraflash_cli.errors import UsageError
from ultraflash_cli.video.sequence import WRITTEN_PICTURES

__all__ = [
    "CODECS",
    "Codec",
    "bits_of",
    "choose_codec",
    "choose_pix_fmt",
    "chroma_share",
    "is_rgb_format",
    "opaque",
]

_YUV = ("yuv420p", "yuv422p", "yuv444p")
_YUV_10 = ("yuv420p10le", "yuv422p10le", "yuv444p10le")
_YUV_12 = ("yuv420p12le", "yuv422p12le", "yuv444p12le")


@dataclass(frozen=True, kw_only=True)
class Codec:
    """One kind of output, and the encoder that makes it."""

    encoder: str
    stream: str = ""
    """The codec of the stream, if several encoders make it; empty for the name itself."""
    segment_format: str
    segment_options: tuple[tuple[str, str], ...] = ()
    crf: int | None
    """Default CRF; None for intra codecs, which have no such setting."""
    max_crf: int
    least_crf: int = 0
    pix_fmts: tuple[str, ...]
    """Pixel formats supported by both the encoder and players, most common first."""
    fed_fmts: tuple[tuple[str, str], ...] = ()
    """Pixel formats that the encoder takes in another memory layout."""
    alpha_fmts: tuple[str, ...] = ()
    """Pixel formats with transparency."""
    reorders: bool = False
    """Whether the decoding order of frames differs from their display order."""
    presets: tuple[tuple[int, tuple[tuple[int, str], ...]], ...] = ()
    """Presets by maximum number of pixels and minimum number of cores. A fixed table
    rather than a measurement, as the preset affects the result."""
    speeds: tuple[tuple[str, float], ...] = ()
    """Presets beside a GPU, from slow to fast, with megapixels per second and core of
    a detailed clip."""
    most_cores: int = 32
    """Number of cores beyond which it hardly becomes faster."""
    hdr: bool = False
    """Whether the stream can hold HDR metadata."""
    lacks_hdr_messages: bool = False
    """Whether HDR metadata has to be added to the packets of the encoder."""
    has_turn: bool = True
    """Whether its containers can store a rotation."""
    is_jfif: bool = False
    """Whether pictures are full-range BT.601 with the chroma samples between the pixels."""
    options: dict[str, str] = field(default_factory=dict[str, str])
    """Encoder settings that do not depend on the clip."""

    @property
    def all_fmts(self) -> tuple[str, ...]:
        """Every pixel format, with and without transparency."""
        return self.pix_fmts + self.alpha_fmts


_LOSSLESS = {"level": "3", "slicecrc": "1", "g": "1", "slices": "4"}

CODECS = {
    "h264": Codec(
        encoder="libx264",
        segment_format="mp4",
        crf=18,
        max_crf=51,
        pix_fmts=_YUV + _YUV_10,
        reorders=True,
        hdr=True,
        presets=(
            (1_100_000, ((16, "slow"), (4, "medium"), (0, "fast"))),
            (2_300_000, ((16, "medium"), (8, "fast"), (0, "veryfast"))),
            (4_500_000, ((32, "medium"), (16, "fast"), (8, "faster"), (0, "veryfast"))),
            (1 << 62, ((32, "fast"), (16, "veryfast"), (0, "superfast"))),
        ),
        speeds=(
            *(("slow", 2.3), ("medium", 3.7), ("fast", 4.6)),
            *(("faster", 6.4), ("veryfast", 10.1), ("superfast", 18.5)),
        ),
    ),
    "hevc": Codec(
        encoder="libx265",
        segment_format="mp4",
        crf=20,
        max_crf=51,
        pix_fmts=_YUV + _YUV_10 + _YUV_12,
        reorders=True,
        hdr=True,
        presets=(
            (1_100_000, ((16, "medium"), (4, "fast"), (0, "veryfast"))),
            (2_300_000, ((16, "medium"), (8, "fast"), (0, "veryfast"))),
            (1 << 62, ((32, "fast"), (16, "veryfast"), (0, "superfast"))),
        ),
        speeds=(
            *(("medium", 1.4), ("fast", 1.8), ("veryfast", 2.1)),
            *(("superfast", 2.4), ("ultrafast", 5.0)),
        ),
    ),
    "av1": Codec(
        encoder="libsvtav1",
        segment_format="mp4",
        crf=26,
        max_crf=63,
        pix_fmts=("yuv420p", "yuv420p10le"),
        reorders=True,
        hdr=True,
        presets=(
            (1_100_000, ((16, "6"), (4, "8"), (0, "9"))),
            (1 << 62, ((32, "7"), (16, "8"), (0, "9"))),
        ),
        # The library warns of artefacts from preset 10 on.
        speeds=(("6", 5.9), ("8", 11.6), ("9", 16.4)),
        most_cores=64,
    ),
    "vp9": Codec(
        encoder="libvpx-vp9",
        segment_format="nut",
        # Needed for NUT to keep packet side data, where VP9 stores its transparency.
        segment_options=(("syncpoints", "none"), ("strict", "experimental")),
        crf=24,
        max_crf=63,
        pix_fmts=_YUV,
        alpha_fmts=("yuva420p",),
        presets=(
            (1_100_000, ((16, "2"), (4, "3"), (0, "4"))),
            (2_300_000, ((16, "3"), (8, "4"), (0, "5"))),
            (1 << 62, ((32, "3"), (16, "4"), (0, "5"))),
        ),
        speeds=(("3", 1.8), ("4", 2.0), ("5", 2.0)),
        most_cores=4,
        options={"deadline": "good", "tile-columns": "2"},
    ),
    "ffv1": Codec(
        encoder="ffv1",
        segment_format="nut",
        crf=None,
        max_crf=0,
        pix_fmts=(
            *(*_YUV, *_YUV_10, *_YUV_12),
            *("yuv420p16le", "yuv422p16le", "yuv444p16le"),
            *("bgr0", "gbrp10le", "gbrp12le", "gbrp16le"),
        ),
        alpha_fmts=(
            *("yuva420p", "yuva422p", "yuva444p"),
            *("yuva420p10le", "yuva422p10le", "yuva444p10le", "yuva422p12le", "yuva444p12le"),
            *("yuva420p16le", "yuva422p16le", "yuva444p16le"),
            *("bgra", "gbrap10le", "gbrap12le", "gbrap16le"),
        ),
        options=_LOSSLESS,
    ),
    "prores": Codec(
        encoder="prores_ks",
        segment_format="mov",
        crf=None,
        max_crf=0,
        pix_fmts=("yuv422p10le", "yuv444p10le"),
        alpha_fmts=("yuva444p10le",),
        options={"vendor": "apl0"},
    ),
    "png": Codec(
        encoder="png",
        segment_format="nut",
        crf=None,
        max_crf=0,
        pix_fmts=("rgb24", "rgb48be"),
        alpha_fmts=("rgba", "rgba64be"),
        has_turn=False,
    ),
    "jpeg": Codec(
        encoder="mjpeg",
        segment_format="nut",
        crf=None,
        max_crf=0,
        pix_fmts=("yuv420p", "yuv444p"),
        has_turn=False,
        is_jfif=True,
        # The finest scale: tables like those of libjpeg at quality 95. bitexact: no comment.
        options={"qmin": "1", "qmax": "1", "flags": "+bitexact"},
    ),
    "y4m": Codec(
        encoder="ffv1",
        segment_format="nut",
        crf=None,
        max_crf=0,
        pix_fmts=_YUV + _YUV_10 + _YUV_12,
        has_turn=False,
        options=_LOSSLESS,
    ),
}
"""Output codecs, keyed by ``--codec`` name. ``y4m`` frames are stored in lossless segments until the final file is
written uncompressed."""

_TRANSPARENT = {".webm": ("vp9",), ".mkv": ("vp9", "ffv1"), ".mov": ("prores",), "": ("vp9", "prores")}
"""Codecs for transparent video by suffix; the last one is for more than 8 bits."""
_OF_SUFFIX = {
    ".webm": ("vp9", "av1"),
    ".y4m": ("y4m",),
    **{suffix: (codec,) for suffix, codec in WRITTEN_PICTURES.items()},
}
"""Codecs for opaque video by suffix, for containers that hold neither H.264 nor
HEVC."""


def choose_codec(codec: str, bit_depth: int, *, has_alpha: bool = False, suffix: str | None = None) -> str:
    """Resolve ``auto`` to a name in ``CODECS``; raises ``UsageError`` for unknown
    names. The choice is h264 for 8 bits and hevc above, or a suitable codec for
    transparent video and for containers (``suffix``) that hold neither.
    """
    if codec != "auto":
        if codec not in CODECS:
            raise UsageError(f"--codec {codec}: unknown codec; use auto or one of {', '.join(CODECS)}")
        return codec
    asked = (suffix or "").lower()
    choice = _OF_SUFFIX.get(asked, ("h264", "hevc"))
    if has_alpha and asked in _TRANSPARENT:
        choice = _TRANSPARENT[asked]
    return choice[-1] if bit_depth > 8 else choice[0]


def choose_pix_fmt(
    source_pix_fmt: str,
    bit_depth: int,
    codec: Codec,
    width_px: int,
    height_px: int,
    *,
    rgb: bool = False,
    has_alpha: bool = False,
) -> str:
    """Choose the codec's pixel format that best preserves the source's bit depth,
    chroma and transparency. ``rgb`` means that the source stores red, green and blue.
    """
    source = av.VideoFormat(source_pix_fmt)
    names = codec.alpha_fmts if has_alpha and codec.alpha_fmts else codec.pix_fmts
    if rgb or all(is_rgb_format(name) for name in names):
        own = [name for name in names if is_rgb_format(name)]
        if own:
            return min(own, key=lambda name: (bits_of(name) < bit_depth, abs(bits_of(name) - bit_depth)))
        sampling = "444" if codec.crf is None else "420"
    else:
        chroma = [component for component in source.components if not (component.is_luma or component.is_alpha)]
        narrow = bool(chroma) and source.chroma_width(64) < 64
        low = bool(chroma) and source.chroma_height(64) < 64
        sampling = "420" if low or not chroma else "422" if narrow else "444"

    if width_px % 2 or (height_px % 2 and sampling == "420"):
        sampling = "444"
    samplings = {"420": ("420", "422", "444"), "422": ("422", "444", "420"), "444": ("444", "422", "420")}[sampling]
    known = [name for name in names if not is_rgb_format(name)]
    depths = sorted({bits_of(name) for name in known})
    enough = [bits for bits in depths if bits >= bit_depth]

    # The source's bit depth if possible, else the next higher one, else the highest.
    for bits in [*enough, *reversed(depths)]:
        for each in samplings:
            fitting = [name for name in known if each in name and bits_of(name) == bits]
            if fitting:
                return fitting[0]
    return names[0]


def bits_of(pix_fmt: str) -> int:
    """Return the bit depth of a pixel format's deepest component."""
    return max(component.bits for component in av.VideoFormat(pix_fmt).components)


def is_rgb_format(pix_fmt: str) -> bool:
    """Return whether an encoder stores red, green and blue for this pixel format."""
    return av.VideoFormat(pix_fmt).is_rgb


def opaque(pix_fmt: str) -> bool:
    """Return whether a pixel format stores no transparency."""
    return not any(component.is_alpha for component in av.VideoFormat(pix_fmt).components)


def chroma_share(pix_fmt: str) -> Fraction:
    """Return the number of samples per pixel in each chroma plane; 1 without
    subsampling, 0 without colour."""
    known = av.VideoFormat(pix_fmt)
    if known.is_rgb or known.has_palette:
        return Fraction(1)
    if len(known.components) < 3:
        return Fraction(0)
    return Fraction(known.chroma_width(64) * known.chroma_height(64), 64 * 64)
