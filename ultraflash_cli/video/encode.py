"""Encoder settings: chosen for a clip, checked, applied to the encoder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import av.logging
from av.error import FFmpegError

from ultraflash_cli.errors import UsageError
from ultraflash_cli.host import keep_scheduling
from ultraflash_cli.video.codecs import (
    CODECS,
    Codec,
    bits_of,
    choose_codec,
    choose_pix_fmt,
    choose_preset,
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
from ultraflash_cli.video.probe import ClipInfo

__all__ = [
    "MADE_TICKS",
    "EncodeSpec",
    "check_encoder",
    "choose_spec",
    "encoder_options",
    "losses",
    "made_spec",
    "made_times",
    "open_encoder",
    "prepare_encoder",
]

_CHOICES = {
    "libx264": {
        "preset": (
            "ultrafast",
            "superfast",
            "veryfast",
            "faster",
            "fast",
            "medium",
            "slow",
            "slower",
            "veryslow",
            "placebo",
        ),
        "tune": ("film", "animation", "grain", "stillimage", "psnr", "ssim", "fastdecode", "zerolatency"),
        "profile": ("baseline", "main", "high", "high10", "high422", "high444"),
    }
}
"""Valid values of options for which the library itself would print errors to stderr."""
_UNKNOWN_SETTING = ("Error parsing option", "Unknown option", "Invalid value for")

_LISTS = {"h264": "x264-params", "hevc": "x265-params", "av1": "svtav1-params"}
"""The option that passes settings to the encoder library, by codec."""

MADE_TICKS = 1000
"""Ticks per frame, at an integer frame rate, if timestamps do not come from a source;
players prefer a time base finer than a frame."""


@dataclass(frozen=True, kw_only=True)
class EncodeSpec:
    """Everything that determines the packets; equal specs and frames give equal packets."""

    codec: str
    """A name of ``codecs.CODECS``."""
    crf: int | None
    pix_fmt: str
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

        known = CODECS[self.codec]
        if self.pix_fmt not in known.all_fmts:
            raise UsageError(
                f"--pix-fmt {self.pix_fmt}: not possible with {self.codec}; use one of {', '.join(known.all_fmts)}"
            )
        if self.crf is not None and known.crf is None:
            found = "is always written at its best quality" if known.is_jfif else "has no quality setting"
            raise UsageError(f"--crf: {self.codec} {found}; remove it")
        if self.crf is not None and not 0 <= self.crf <= known.max_crf:
            raise UsageError(f"--crf must be between 0 and {known.max_crf} for {self.codec}, got {self.crf}")

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
        return not CODECS[self.codec].has_turn and (self.rotation_deg != 0 or self.mirrored)

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
    def summary(self) -> dict[str, object]:
        """Summary for reports."""
        return {"codec": self.codec, "crf": self.crf, "pix_fmt": self.pix_fmt, "preset": self.preset}

    @property
    def encoder(self) -> str:
        """FFmpeg's name of the encoder."""
        return CODECS[self.codec].encoder

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
) -> EncodeSpec:
    """Choose settings for a clip like ``info`` at a new size (coded orientation).
    ``auto`` is h264 for 8 bits and hevc above, or a codec that keeps transparency and
    fits into the container that the user named with ``suffix``. Chroma subsampling is
    that of the source if the codec supports it, or 4:4:4 if a side is odd. ``threads``
    is the number of cores that the encoder may use. ``time_base`` and ``rate`` differ
    from the clip's if the frame rate is changed. ``losses`` lists what is not kept.
    Raises ``UsageError`` for incompatible settings.
    """
    container = suffix
    if container is None and info.has_alpha:
        # QuickTime stores transparency in ProRes, the other containers that support it
        # in VP9.
        container = ".mov" if own_suffix(info) == ".mov" else None

    name = choose_codec(codec, info.bit_depth, has_alpha=info.has_alpha, suffix=container)
    known = CODECS[name]
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
        crf=known.crf if crf is None else crf,
        pix_fmt=chosen,
        preset=choose_preset(name, width_px * height_px, threads),
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
) -> EncodeSpec:
    """Choose settings for an 8-bit clip without a source, at ``rate`` frames per
    second, timed by ``made_times``. ``auto`` is h264 and yuv420p, or the closest
    alternative if the codec, an odd side or the container ``suffix`` requires one.
    Colours are limited-range bt709. Raises ``UsageError`` for incompatible settings.
    """
    name = choose_codec(codec, 8, suffix=suffix)
    known = CODECS[name]
    chosen = choose_pix_fmt("yuv420p", 8, known, width_px, height_px) if pix_fmt == "auto" else pix_fmt
    return EncodeSpec(
        codec=name,
        crf=known.crf if crf is None else crf,
        pix_fmt=chosen,
        preset=choose_preset(name, width_px * height_px, threads),
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
    if (info.mastering_display or info.content_light) and not CODECS[spec.codec].hdr:
        found.append(f"HDR metadata (mastering display, light levels) is not kept; {spec.codec} cannot store it")
    return tuple(found)


def check_encoder(spec: EncodeSpec) -> None:
    """Open the encoder once and close it; raises ``UsageError`` if it rejects or ignores a setting."""
    known = _CHOICES.get(spec.encoder, {})
    for key, value in spec.options:
        for word in re.split(r"[,+]", value) if key in known else ():
            if word not in known[key]:
                raise UsageError(f"--enc-opt {key}={value}: {spec.encoder} accepts {', '.join(known[key])}")

    context = av.CodecContext.create(spec.encoder, "w")
    assert isinstance(context, av.VideoCodecContext), "a video encoder"
    context.options = encoder_options(spec)
    context.width, context.height = spec.coded_size_px
    context.time_base = spec.track_time_base
    context.framerate = spec.rate
    prepare_encoder(context, spec)
    level, skips_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)

    # The same complaint as the last one, perhaps about another clip, counts too.
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as said:
            open_encoder(context, spec)
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips_repeated)

    for _, _, text in said:
        # Encoders only warn about unknown settings and continue without them.
        if any(words in text for words in _UNKNOWN_SETTING):
            raise UsageError(f"--enc-opt: {spec.encoder}: {text.strip().rstrip('.')}")


def prepare_encoder(context: av.VideoCodecContext, spec: EncodeSpec) -> None:
    """Set everything except options; call before ``open_encoder``."""
    context.pix_fmt = spec.pix_fmt
    context.thread_count = spec.threads
    context.thread_type = "AUTO"  # PyAV's default would make x264 cut frames into slices
    context.sample_aspect_ratio = spec.coded_aspect
    context.colorspace = spec.color.matrix
    context.color_primaries = spec.color.primaries
    context.color_trc = spec.color.transfer
    context.color_range = spec.color.range


def open_encoder(context: av.VideoCodecContext, spec: EncodeSpec) -> None:
    """Open the encoder; raises ``UsageError`` if it rejects the size or an option."""
    try:
        with keep_scheduling():
            context.open()
    except (OSError, FFmpegError, ValueError) as error:
        raise UsageError(
            f"the encoder {spec.encoder} rejects {spec.width_px}x{spec.height_px} {spec.pix_fmt} with "
            f"{dict(spec.options) or 'its default options'}; check --codec, --pix-fmt and --enc-opt"
        ) from error
    unknown = set(context.options) & {key for key, _ in spec.options}
    if unknown:
        raise UsageError(f"--enc-opt {', '.join(sorted(unknown))}: unknown option of {spec.encoder}")


def encoder_options(spec: EncodeSpec) -> dict[str, str]:
    """Return all options by FFmpeg's names: from the codec, the clip and the user."""
    options = dict(CODECS[spec.codec].options)
    if spec.crf is not None:
        options["crf"] = str(spec.crf)
    if spec.preset:
        options["cpu-used" if spec.codec == "vp9" else "preset"] = spec.preset
    if spec.codec == "vp9" and spec.alpha:
        options["auto-alt-ref"] = "0"  # otherwise the two pictures of a packet belong to different frames
    if spec.codec == "prores":
        options["profile"] = "4" if "444" in spec.pix_fmt else "3"
    own = _LISTS.get(spec.codec)
    if own is not None:
        options[own] = ":".join((*_list_settings(spec), *(value for key, value in spec.options if key == own)))
    return options | {key: value for key, value in spec.options if key != own}


def _list_settings(spec: EncodeSpec) -> tuple[str, ...]:
    screen, light = spec.mastering_display, spec.content_light
    levels = f"{light.max_cll},{light.max_fall}" if light else ""
    if spec.codec == "h264":
        # Otherwise x264's AVX-512 code for the macroblock tree reads uninitialised
        # memory: packets differ between runs for the same frames.
        settings = ["cpu-independent=1"]
        settings += [f"mastering-display={screen.x265}"] if screen else []
        settings += [f"cll={levels}"] if light else []
    elif spec.codec == "hevc":
        settings = ["log-level=none"]
        settings += [f"master-display={screen.x265}"] if screen else []
        settings += [f"max-cll={levels}"] if light else []
    else:
        settings = [f"lp={min(spec.threads, 6)}"]
        settings += [f"mastering-display={screen.svtav1}"] if screen else []
        settings += [f"content-light={levels}"] if light else []
    return tuple(settings)


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
