"""Encoder settings, chosen for a clip and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av

from ultraflash_cli.errors import UsageError
from ultraflash_cli.video.codecs import (
    CODECS,
    Codec,
    bits_of,
    choose_codec,
    choose_pix_fmt,
    chroma_share,
    is_rgb_format,
    opaque,
)
from ultraflash_cli.video.color import (
    BT709,
    FULL,
    RGB,
    ColorInfo,
    ContentLight,
    MasteringDisplay,
    jfif_color,
    output_color,
    resolve_color,
)
from ultraflash_cli.video.containers import is_iso, own_suffix
from ultraflash_cli.video.nvenc import NVENC
from ultraflash_cli.video.presets import choose_preset
from ultraflash_cli.video.probe import ClipInfo

__all__ = [
    "MADE_TICKS",
    "EncodeSpec",
    "choose_spec",
    "losses",
    "made_spec",
    "made_times",
]

MADE_TICKS = 1000
"""Ticks per frame, at an integer frame rate, if timestamps do not come from a source;
players prefer a time base finer than a frame."""


@dataclass(frozen=True, kw_only=True)
class EncodeSpec:
    """Everything that determines the packets; equal specs and frames give equal packets."""

    codec: str
    """The codec of the stream, a name of ``codecs.CODECS``."""
    hardware: str | None = None
    """The encoder of the GPU that makes it, a name of ``nvenc.NVENC``; None for
    software."""
    crf: int | None
    pix_fmt: str
    """Pixel format of the stream."""
    preset: str
    threads: int
    options: tuple[tuple[str, str], ...]
    """Additional encoder options, which take precedence over our own."""
    width_px: int
    """Size of the input frames in coded orientation."""
    height_px: int
    time_base: Fraction
    """Time base of the frames' timestamps."""
    rate: Fraction
    """Average frames per second, for rate control and headers."""
    color: ColorInfo
    sample_aspect_ratio: Fraction
    rotation_deg: int
    """Clockwise rotation of the coded picture for display."""
    mirrored: bool = False
    """Whether the coded picture is mirrored left to right, before rotation."""
    mastering_display: MasteringDisplay | None = None
    content_light: ContentLight | None = None

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise UsageError(f"--codec {self.codec}: unknown codec; use one of {', '.join(CODECS)}")
        assert self.hardware is None or NVENC[self.hardware].stream == self.codec, "a GPU's encoder of this codec"

        known, name = self.capabilities, self.codec_name
        if self.pix_fmt not in known.all_fmts:
            raise UsageError(
                f"--pix-fmt {self.pix_fmt}: not possible with {name}; use one of {', '.join(known.all_fmts)}"
            )
        if self.crf is not None and known.crf is None:
            found = "is always written at its best quality" if known.is_jfif else "has no quality setting"
            raise UsageError(f"--crf: {name} {found}; remove it")
        if self.crf is not None and not known.least_crf <= self.crf <= known.max_crf:
            limits = f"between {known.least_crf} and {known.max_crf}"
            raise UsageError(f"--crf must be {limits} for {name}, got {self.crf}")

        width_px, height_px = self.coded_size_px
        if width_px < 2 or height_px < 2:
            raise UsageError(f"the output would be {width_px}x{height_px}, expected at least 2x2 pixels")
        format_ = av.VideoFormat(self.pix_fmt)

        # If two pixels share a chroma sample, odd sides do not divide evenly.
        halved = not is_rgb_format(self.pix_fmt)
        if halved and (
            (format_.chroma_height(2) < 2 and height_px % 2) or (format_.chroma_width(2) < 2 and width_px % 2)
        ):
            raise UsageError(
                f"--pix-fmt {self.pix_fmt}: needs even sides, but the output is {width_px}x{height_px}; "
                "use a yuv444p format or another --res"
            )

    @property
    def deep(self) -> bool:
        """Whether more than 8 bits per sample are encoded, so that frames should come as uint16."""
        return bits_of(self.pix_fmt) > 8

    @property
    def alpha(self) -> bool:
        """Whether transparency is encoded."""
        return not opaque(self.pix_fmt)

    @property
    def turns(self) -> bool:
        """Whether frames are rotated upright before encoding, because the file cannot
        store a rotation."""
        return not self.capabilities.has_turn and (self.rotation_deg != 0 or self.mirrored)

    @property
    def coded_size_px(self) -> tuple[int, int]:
        """Width and height of the coded picture."""
        swapped = self.turns and self.rotation_deg in (90, 270)
        return (self.height_px, self.width_px) if swapped else (self.width_px, self.height_px)

    @property
    def coded_aspect(self) -> Fraction:
        """Pixel aspect ratio (width over height) in the file."""
        swapped = self.turns and self.rotation_deg in (90, 270)
        return 1 / self.sample_aspect_ratio if swapped else self.sample_aspect_ratio

    @property
    def capabilities(self) -> Codec:
        """What the encoder can do."""
        return CODECS[self.codec] if self.hardware is None else NVENC[self.hardware]

    @property
    def codec_name(self) -> str:
        """Value of ``--codec``."""
        return self.hardware or self.codec

    @property
    def fed_pix_fmt(self) -> str:
        """Pixel format in which the encoder takes frames."""
        return dict(self.capabilities.fed_fmts).get(self.pix_fmt, self.pix_fmt)

    @property
    def summary(self) -> dict[str, object]:
        """Summary for reports."""
        return {
            "name": self.encoder,
            "codec": self.codec,
            "crf": self.crf,
            "pix_fmt": self.pix_fmt,
            "preset": self.preset,
        }

    @property
    def encoder(self) -> str:
        """FFmpeg's name of the encoder."""
        return self.capabilities.encoder

    @property
    def track_time_base(self) -> Fraction:
        """Time base inside segment files and MP4: one over an integer."""
        return Fraction(1, self.time_base.denominator)


def choose_spec(
    info: ClipInfo,
    *,
    width_px: int,
    height_px: int,
    codec: str = "auto",
    crf: int | None = None,
    pix_fmt: str = "auto",
    enc_options: Sequence[tuple[str, str]] = (),
    threads: int,
    time_base: Fraction | None = None,
    rate: Fraction | None = None,
    suffix: str | None = None,
    fed_fps: float | None = None,
) -> EncodeSpec:
    """Choose settings for a clip like ``info`` at a new size (coded orientation).
    ``auto`` is h264 for 8 bits and hevc above, or a codec that keeps transparency and
    fits into the container that the user named with ``suffix``. Chroma subsampling is
    that of the source if the codec supports it, or 4:4:4 if a side is odd. ``threads``
    is the number of cores that the encoder may use. ``time_base`` and ``rate`` differ
    from the clip's if the frame rate is changed. ``fed_fps``: see ``choose_preset``.
    ``losses`` lists what is not kept. Raises ``UsageError`` for incompatible settings.
    """
    container = suffix
    if container is None and info.has_alpha:
        # QuickTime stores transparency in ProRes, the other containers that support it
        # in VP9.
        container = ".mov" if own_suffix(info) == ".mov" else None

    name, hardware = _split_codec(codec, info.bit_depth, has_alpha=info.has_alpha, suffix=container)
    known = CODECS[name] if hardware is None else NVENC[hardware]
    chosen = pix_fmt
    has_alpha = info.has_alpha and not (name == "vp9" and suffix is not None and is_iso(suffix.lower()))
    if pix_fmt == "auto":
        chosen = choose_pix_fmt(
            info.pix_fmt,
            info.bit_depth,
            known,
            width_px,
            height_px,
            rgb=info.is_rgb,
            has_alpha=has_alpha,
        )

    color = resolve_color(
        info.color,
        width_px=info.stored_wh[0],
        height_px=info.stored_wh[1],
        rgb=info.is_rgb,
        full=info.pix_fmt.startswith("yuvj"),
    )

    return EncodeSpec(
        codec=name,
        hardware=hardware,
        crf=known.crf if crf is None else crf,
        pix_fmt=chosen,
        preset=choose_preset(known, width_px * height_px, threads, fed_fps=fed_fps),
        threads=threads,
        options=tuple(enc_options),
        width_px=width_px,
        height_px=height_px,
        time_base=time_base or info.time_base,
        rate=(rate or info.average_rate).limit_denominator(1_000_000),
        color=_color_in(chosen, color, known),
        sample_aspect_ratio=info.sample_aspect_ratio,
        rotation_deg=info.rotation_deg,
        mirrored=info.mirrored,
        mastering_display=info.mastering_display,
        content_light=info.content_light,
    )


def made_spec(
    *,
    width_px: int,
    height_px: int,
    rate: Fraction,
    codec: str = "auto",
    crf: int | None = None,
    pix_fmt: str = "auto",
    enc_options: Sequence[tuple[str, str]] = (),
    threads: int,
    suffix: str | None = None,
    fed_fps: float | None = None,
) -> EncodeSpec:
    """Choose settings for an 8-bit clip without a source, at ``rate`` frames per
    second, timed by ``made_times``. ``auto`` is h264 and yuv420p, or the closest
    alternative if the codec, an odd side or the container ``suffix`` requires one.
    Colours are limited-range bt709. ``fed_fps``: see ``choose_preset``. Raises
    ``UsageError`` for incompatible settings.
    """
    name, hardware = _split_codec(codec, 8, suffix=suffix)
    known = CODECS[name] if hardware is None else NVENC[hardware]
    chosen = choose_pix_fmt("yuv420p", 8, known, width_px, height_px) if pix_fmt == "auto" else pix_fmt
    return EncodeSpec(
        codec=name,
        hardware=hardware,
        crf=known.crf if crf is None else crf,
        pix_fmt=chosen,
        preset=choose_preset(known, width_px * height_px, threads, fed_fps=fed_fps),
        threads=threads,
        options=tuple(enc_options),
        width_px=width_px,
        height_px=height_px,
        time_base=made_times(rate)[0],
        rate=rate,
        color=_color_in(chosen, BT709, known),
        sample_aspect_ratio=Fraction(1),
        rotation_deg=0,
    )


def made_times(rate: Fraction) -> tuple[Fraction, int]:
    """Return the time base for ``rate`` frames per second, and the duration of a frame in it."""
    finer = -(-MADE_TICKS // rate.denominator)
    return Fraction(1, rate.numerator * finer), rate.denominator * finer


def losses(info: ClipInfo, spec: EncodeSpec) -> tuple[str, ...]:
    """Return the properties of ``info``'s picture that the settings cannot keep, one
    sentence each, which become warnings. Transparency is not included: ``read_frames``
    reports its loss.
    """
    found: list[str] = []
    if info.lost_alpha:
        found.append("transparency is not kept: it is in an HEVC layer that the built-in FFmpeg cannot read")
    if bits_of(spec.pix_fmt) < info.bit_depth:
        found.append(f"the input has {info.bit_depth} bits per sample, {spec.pix_fmt} keeps {bits_of(spec.pix_fmt)}")
    if not info.is_rgb and chroma_share(spec.pix_fmt) < chroma_share(info.pix_fmt):
        found.append(f"the input has finer chroma ({info.pix_fmt}) than the output ({spec.pix_fmt})")
    if (info.mastering_display or info.content_light) and not spec.capabilities.hdr:
        found.append(f"HDR metadata (mastering display, light levels) is not kept; {_without_hdr(spec)}")
    return tuple(found)


def _split_codec(codec: str, bit_depth: int, *, has_alpha: bool = False, suffix: str | None) -> tuple[str, str | None]:
    """Return the codec of the stream, and the encoder of the GPU if one was named."""
    if codec in NVENC:
        return NVENC[codec].stream, codec
    return choose_codec(codec, bit_depth, has_alpha=has_alpha, suffix=suffix), None


def _without_hdr(spec: EncodeSpec) -> str:
    if spec.hardware is not None and CODECS[spec.codec].hdr:
        return f"{spec.hardware} does not write it, --codec {spec.codec} does"
    return f"{spec.codec} cannot store it"


def _color_in(pix_fmt: str, color: ColorInfo, codec: Codec) -> ColorInfo:
    """Return the tags of a picture read with ``color`` and stored in ``pix_fmt``."""
    if codec.is_jfif:
        return jfif_color(color)
    try:
        stores_rgb = is_rgb_format(pix_fmt)
    except ValueError:
        stores_rgb = False  # an unknown format, for which EncodeSpec raises an error
    if stores_rgb:
        return ColorInfo(matrix=RGB, primaries=color.primaries, transfer=color.transfer, range=FULL)
    return output_color(color)
