"""Encoding: the choice of settings, segment files, still pictures."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import av.logging
import numpy as np
from av.error import FFmpegError
from av.video.stream import VideoStream

from ultraflash_cli.errors import OutputError, UsageError
from ultraflash_cli.video.color import (
    BT709,
    ColorInfo,
    Picture,
    as_frame,
    narrowed,
    output_color,
    resolve_color,
    yuv_filter,
)
from ultraflash_cli.video.partial import output_errors, partial_file, sync_file
from ultraflash_cli.video.probe import ClipInfo

__all__ = [
    "CODECS",
    "MADE_TICKS",
    "EncodeSpec",
    "SegmentRecord",
    "SegmentWriter",
    "check_encoder",
    "choose_spec",
    "made_spec",
    "read_record",
    "record_path",
    "write_png",
]


@dataclass(frozen=True, kw_only=True)
class _Codec:
    encoder: str
    segment_format: str
    crf: int | None
    """The default; None where the codec knows no such setting. Those are the intra codecs."""
    max_crf: int
    pix_fmts: tuple[str, ...]
    """What the encoder takes and players play, best known first."""


CODECS = {
    "h264": _Codec(
        encoder="libx264",
        segment_format="mp4",
        crf=18,
        max_crf=51,
        pix_fmts=("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"),
    ),
    "hevc": _Codec(
        encoder="libx265",
        segment_format="mp4",
        crf=20,
        max_crf=51,
        pix_fmts=("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"),
    ),
    "av1": _Codec(
        encoder="libsvtav1",
        segment_format="mp4",
        crf=26,
        max_crf=63,
        pix_fmts=("yuv420p", "yuv420p10le"),
    ),
    "ffv1": _Codec(
        encoder="ffv1",
        segment_format="nut",
        crf=None,
        max_crf=0,
        pix_fmts=(
            "yuv420p",
            "yuv422p",
            "yuv444p",
            "yuv420p10le",
            "yuv422p10le",
            "yuv444p10le",
            "yuv420p12le",
            "yuv422p12le",
            "yuv444p12le",
            "yuv420p16le",
            "yuv422p16le",
            "yuv444p16le",
        ),
    ),
    "prores": _Codec(
        encoder="prores_ks",
        segment_format="mov",
        crf=None,
        max_crf=0,
        pix_fmts=("yuv422p10le", "yuv444p10le"),
    ),
}

_PRESETS: dict[str, tuple[tuple[int, tuple[tuple[int, str], ...]], ...]] = {
    "h264": (
        (1_100_000, ((16, "slow"), (4, "medium"), (0, "fast"))),
        (2_300_000, ((16, "medium"), (8, "fast"), (0, "veryfast"))),
        (4_500_000, ((32, "medium"), (16, "fast"), (8, "faster"), (0, "veryfast"))),
        (1 << 62, ((32, "fast"), (16, "veryfast"), (0, "superfast"))),
    ),
    "hevc": (
        (1_100_000, ((16, "medium"), (4, "fast"), (0, "veryfast"))),
        (2_300_000, ((16, "medium"), (8, "fast"), (0, "veryfast"))),
        (1 << 62, ((32, "fast"), (16, "veryfast"), (0, "superfast"))),
    ),
    "av1": (
        (1_100_000, ((16, "6"), (4, "8"), (0, "9"))),
        (1 << 62, ((32, "7"), (16, "8"), (0, "9"))),
    ),
}
"""By codec: up to so many pixels, with at least so many cores, this preset. A table and never a timing: the
preset is part of the result."""

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
"""Values that the library itself would complain of on stderr, in words of its own."""
_UNKNOWN_SETTING = ("Error parsing option", "Unknown option", "Invalid value for")

MADE_TICKS = 1000
"""Ticks that a frame of a clip without a source lasts; players like units finer than a frame."""

_DECODING_LEAD = 1_000_000
"""Ticks by which a segment's packets are decoded before its first frame is shown; more than it has frames."""


@dataclass(frozen=True, kw_only=True)
class EncodeSpec:
    """All that decides how frames become packets; equal specs and frames give equal packets."""

    codec: str
    """h264, hevc, av1, ffv1 or prores."""
    crf: int | None
    pix_fmt: str
    preset: str
    threads: int
    options: tuple[tuple[str, str], ...]
    """Options of the encoder, applied over our own."""
    width_px: int
    height_px: int
    time_base: Fraction
    """Unit of the time stamps of the frames."""
    rate: Fraction
    """Average frames a second, for rate control and headers."""
    color: ColorInfo
    sample_aspect_ratio: Fraction
    rotation_deg: int
    """Clockwise turn of the coded picture when shown."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise UsageError(f"--codec {self.codec}: not known; use one of {', '.join(CODECS)}.")
        known = CODECS[self.codec]
        if self.pix_fmt not in known.pix_fmts:
            raise UsageError(
                f"--pix-fmt {self.pix_fmt}: not possible with {self.codec}; use one of {', '.join(known.pix_fmts)}."
            )
        if self.crf is not None and known.crf is None:
            raise UsageError(f"--crf: {self.codec} has no such setting.")
        if self.crf is not None and not 0 <= self.crf <= known.max_crf:
            raise UsageError(f"--crf {self.crf}: {self.codec} takes 0 to {known.max_crf}.")
        if self.width_px < 2 or self.height_px < 2:
            raise UsageError(f"an output of {self.width_px}x{self.height_px} pixels is too small; at least 2x2.")
        if ("420" in self.pix_fmt and self.height_px % 2) or ("444" not in self.pix_fmt and self.width_px % 2):
            raise UsageError(
                f"--pix-fmt {self.pix_fmt}: needs even sides, the output is {self.width_px}x{self.height_px}; "
                "use a yuv444p format or another --res."
            )

    @property
    def deep(self) -> bool:
        """Whether more than 8 bits a sample are encoded, so that frames should come as uint16."""
        return _bits(self.pix_fmt) > 8

    @property
    def summary(self) -> dict[str, object]:
        """What reports say of it."""
        return {"codec": self.codec, "crf": self.crf, "pix_fmt": self.pix_fmt, "preset": self.preset}

    @property
    def encoder(self) -> str:
        """FFmpeg's name of the encoder."""
        return CODECS[self.codec].encoder

    @property
    def track_time_base(self) -> Fraction:
        """Unit of the time stamps inside segment files and MP4: one over a whole number."""
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
) -> EncodeSpec:
    """Settings for a clip like ``info`` at a new size (coded orientation).

    ``auto`` is h264 for 8 bits and hevc of 10 bits above, with the chroma sampling of the source where the
    codec has it, 4:4:4 where a side is odd. ``threads`` stands for the cores that the encoder may use.
    ``time_base`` and ``rate`` differ from the clip's where the frame rate is changed. Raises ``UsageError`` for
    settings that do not go together.
    """
    name, known = _choose_codec(codec, info.bit_depth)
    color = resolve_color(
        info.color,
        width_px=info.width_px,
        height_px=info.height_px,
        rgb=info.is_rgb,
        full=info.pix_fmt.startswith("yuvj"),
    )
    return EncodeSpec(
        codec=name,
        crf=known.crf if crf is None else crf,
        pix_fmt=_choose_pix_fmt(info.pix_fmt, info.bit_depth, known, width_px, height_px)
        if pix_fmt == "auto"
        else pix_fmt,
        preset=_choose_preset(name, width_px * height_px, threads),
        threads=threads,
        options=tuple(enc_options),
        width_px=width_px,
        height_px=height_px,
        time_base=time_base or info.time_base,
        rate=(rate or info.average_rate).limit_denominator(1_000_000),
        color=output_color(color),
        sample_aspect_ratio=info.sample_aspect_ratio,
        rotation_deg=info.rotation_deg,
    )


def made_spec(
    *,
    width_px: int,
    height_px: int,
    rate: int,
    codec: str = "auto",
    crf: int | None = None,
    pix_fmt: str = "auto",
    enc_options: Sequence[tuple[str, str]] = (),
    threads: int,
) -> EncodeSpec:
    """Settings for a clip of 8 bits that has no source: ``rate`` frames a second, each ``MADE_TICKS`` ticks long.

    ``auto`` is h264 and yuv420p, or what comes next to it where the codec or an odd side asks for it. Colours are bt709
    of limited range. Raises ``UsageError`` for settings that do not go together.
    """
    name, known = _choose_codec(codec, 8)
    return EncodeSpec(
        codec=name,
        crf=known.crf if crf is None else crf,
        pix_fmt=_choose_pix_fmt("yuv420p", 8, known, width_px, height_px) if pix_fmt == "auto" else pix_fmt,
        preset=_choose_preset(name, width_px * height_px, threads),
        threads=threads,
        options=tuple(enc_options),
        width_px=width_px,
        height_px=height_px,
        time_base=Fraction(1, MADE_TICKS * rate),
        rate=Fraction(rate),
        color=BT709,
        sample_aspect_ratio=Fraction(1),
        rotation_deg=0,
    )


@dataclass(frozen=True, kw_only=True)
class SegmentRecord:
    """What is known of a finished segment file; times in ticks of the spec's ``time_base``."""

    size_bytes: int
    """Of the segment file; one of another size is not the one that was finished."""
    frames: int
    first_pts: int
    last_pts: int
    last_duration: int


def check_encoder(spec: EncodeSpec) -> None:
    """Open the encoder once and let it go; raises ``UsageError`` where it refuses or ignores a setting."""
    known = _CHOICES.get(spec.encoder, {})
    for key, value in spec.options:
        for word in re.split(r"[,+]", value) if key in known else ():
            if word not in known[key]:
                raise UsageError(f"--enc-opt {key}={value}: {spec.encoder} takes {', '.join(known[key])}.")
    context = av.CodecContext.create(spec.encoder, "w")
    assert isinstance(context, av.VideoCodecContext), "a video encoder"
    context.options = _encoder_options(spec)
    context.width, context.height = spec.width_px, spec.height_px
    context.time_base = spec.track_time_base
    context.framerate = spec.rate
    _prepare(context, spec)
    level, skips_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)
    # A complaint that was the last one before, of another clip perhaps, counts all the same.
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as said:
            _open(context, spec)
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips_repeated)
    for _, _, text in said:
        # The encoders only warn of what they do not know and go on without it.
        if any(words in text for words in _UNKNOWN_SETTING):
            raise UsageError(f"--enc-opt: {spec.encoder} says: {text.strip().rstrip('.')}.")


class SegmentWriter:
    """Writes one segment with a freshly opened encoder.

    The file holds time stamps relative to its first frame; a record beside it gives the rest. The record appears
    when the file is complete and on the disk: a file without one does not count (``read_record``). Use as a context
    manager: leaving it by an exception leaves an unfinished file.
    """

    def __init__(self, path: Path, spec: EncodeSpec) -> None:
        self.path = path
        self.spec = spec
        self._convert = yuv_filter(spec.color, pix_fmt=spec.pix_fmt)
        self._first: int | None = None
        self._last: int | None = None
        self._last_duration = 0
        self._frames = 0
        self._packets = 0
        self._closed = False
        self._record: SegmentRecord | None = None
        timescale = str(spec.track_time_base.denominator)
        with output_errors(path):
            record_path(path).unlink(missing_ok=True)
            self._container = av.open(
                f"file:{path}",
                "w",
                format=CODECS[spec.codec].segment_format,
                container_options={"video_track_timescale": timescale, "movie_timescale": timescale},
            )
            self._stream = self._add_stream()
        _open(self._stream.codec_context, spec)
        with output_errors(path):
            self._container.start_encoding()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def write(self, rgb_hwc: Picture, pts: int, duration: int) -> None:
        """Encode one frame ``[height, width, 3]``, uint8 or uint16; ``pts`` must grow, in the spec's time base."""
        assert not self._closed, "a segment that is still open"
        assert self._last is None or pts > self._last, f"time stamps grow: {pts} after {self._last}"
        assert rgb_hwc.shape == (self.spec.height_px, self.spec.width_px, 3), f"a frame of the spec: {rgb_hwc.shape}"
        if self._first is None:
            self._first = pts
        self._last, self._last_duration = pts, duration
        self._frames += 1
        deep = rgb_hwc.dtype == np.uint16
        frame = as_frame(narrowed(rgb_hwc), "rgb48le" if deep else "rgb24")
        with output_errors(self.path):
            (yuv,) = self._convert.push(frame)
            # ProRes writes the tags of its frames, not those of the stream.
            yuv.color_primaries, yuv.color_trc = self.spec.color.primaries, self.spec.color.transfer
            ticks = self.spec.time_base.numerator
            yuv.time_base = self.spec.track_time_base
            yuv.pts = (pts - self._first) * ticks
            yuv.duration = duration * ticks
            self._mux(self._stream.encode(yuv))

    def close(self) -> SegmentRecord:
        """Finish the file, wait until it is on the disk, then write its record."""
        if self._record is not None:
            return self._record
        assert not self._closed, "a segment that was not abandoned"
        assert self._first is not None and self._last is not None, "a segment holds at least one frame"
        self._closed = True
        with output_errors(self.path):
            self._mux(self._stream.encode(None))
            self._container.close()
            sync_file(self.path)
            size_bytes = self.path.stat().st_size
        record = SegmentRecord(
            size_bytes=size_bytes,
            frames=self._frames,
            first_pts=self._first,
            last_pts=self._last,
            last_duration=self._last_duration,
        )
        with partial_file(record_path(self.path)) as part:
            part.write_text(json.dumps(vars(record)), encoding="utf-8")
        self._record = record
        return record

    def abandon(self) -> None:
        """Let go of the file without finishing it."""
        if not self._closed:
            self._closed = True
            try:
                self._container.close()
            except (OSError, FFmpegError):
                return

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            # The encoders' own decoding times are missing or meaningless at times; join builds them anew.
            in_order = CODECS[self.spec.codec].crf is None
            packet.dts = packet.pts if in_order else self._packets - _DECODING_LEAD
            packet.duration = 1
            self._packets += 1
            self._container.mux_one(packet)

    def _add_stream(self) -> VideoStream:
        spec = self.spec
        stream = self._container.add_stream(
            spec.encoder,
            rate=spec.rate,
            options=_encoder_options(spec),
            width=spec.width_px,
            height=spec.height_px,
            time_base=spec.track_time_base,
        )
        assert isinstance(stream, VideoStream), "a video encoder makes a video stream"
        _prepare(stream.codec_context, spec)
        return stream


def _prepare(context: av.VideoCodecContext, spec: EncodeSpec) -> None:
    context.pix_fmt = spec.pix_fmt
    context.thread_count = spec.threads
    context.thread_type = "AUTO"  # PyAV's default would make x264 cut frames into slices
    context.sample_aspect_ratio = spec.sample_aspect_ratio
    context.colorspace = spec.color.matrix
    context.color_primaries = spec.color.primaries
    context.color_trc = spec.color.transfer
    context.color_range = spec.color.range


def _open(context: av.VideoCodecContext, spec: EncodeSpec) -> None:
    try:
        context.open()
    except (OSError, FFmpegError, ValueError) as error:
        raise UsageError(
            f"the encoder {spec.encoder} refuses {spec.width_px}x{spec.height_px} {spec.pix_fmt} with "
            f"{dict(spec.options) or 'its default options'}; check --codec, --pix-fmt and --enc-opt."
        ) from error
    unknown = set(context.options) & {key for key, _ in spec.options}
    if unknown:
        raise UsageError(f"--enc-opt {', '.join(sorted(unknown))}: {spec.encoder} knows no such option.")


def record_path(segment: Path) -> Path:
    """Where the record of a segment lies."""
    return segment.with_name(f"{segment.name}.json")


def read_record(path: Path) -> SegmentRecord:
    """Read the record of a finished segment; raises ``OutputError`` for an unfinished or damaged one."""
    try:
        record = SegmentRecord(**json.loads(record_path(path).read_text(encoding="utf-8")))
        if path.stat().st_size != record.size_bytes:
            raise ValueError(f"{path.stat().st_size} bytes, expected {record.size_bytes}")
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{path}: this segment was not finished; --resume off makes it anew.") from error
    return record


def write_png(path: Path, rgb_hwc: Picture) -> None:
    """Write a picture ``[height, width, 3]``, uint8 or uint16, as PNG; the file appears whole."""
    deep = rgb_hwc.dtype == np.uint16
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext), "png is a video encoder"
    encoder.height, encoder.width = rgb_hwc.shape[:2]
    encoder.pix_fmt = "rgb48be" if deep else "rgb24"
    encoder.time_base = Fraction(1, 25)
    frame = as_frame(rgb_hwc, "rgb48le" if deep else "rgb24")
    data = b"".join(bytes(packet) for packet in encoder.encode(frame) + encoder.encode(None))
    with partial_file(path) as part, output_errors(path):
        part.write_bytes(data)


def _choose_codec(codec: str, bit_depth: int) -> tuple[str, _Codec]:
    name = ("hevc" if bit_depth > 8 else "h264") if codec == "auto" else codec
    if name not in CODECS:
        raise UsageError(f"--codec {codec}: not known; use auto or one of {', '.join(CODECS)}.")
    return name, CODECS[name]


def _choose_pix_fmt(source_pix_fmt: str, bit_depth: int, codec: _Codec, width_px: int, height_px: int) -> str:
    source = av.VideoFormat(source_pix_fmt)
    if source.is_rgb:
        sampling = "444" if codec.crf is None else "420"
    else:
        chroma = [component for component in source.components if not (component.is_luma or component.is_alpha)]
        narrow = bool(chroma) and chroma[0].width < 1 << 30 and source.chroma_width(64) < 64
        low = bool(chroma) and source.chroma_height(64) < 64
        sampling = "420" if low or not chroma else "422" if narrow else "444"
    if width_px % 2 or (height_px % 2 and sampling == "420"):
        sampling = "444"
    depth = min((bits for bits in (8, 10, 12, 16) if bits >= bit_depth), default=16)
    samplings = {"420": ("420", "422", "444"), "422": ("422", "444", "420"), "444": ("444", "422", "420")}[sampling]
    deep = [bits for bits in (depth, 16, 12, 10, 8) if bits <= depth or codec.crf is None]
    if "yuv420p" not in codec.pix_fmts:
        deep = [10]
    for bits in deep:
        for each in samplings:
            name = f"yuv{each}p" + (f"{bits}le" if bits > 8 else "")
            if name in codec.pix_fmts:
                return name
    return codec.pix_fmts[0]


def _choose_preset(codec: str, pixels: int, cores: int) -> str:
    for most_pixels, rows in _PRESETS.get(codec, ()):
        if pixels <= most_pixels:
            return next(preset for least_cores, preset in rows if cores >= least_cores)
    return ""


def _encoder_options(spec: EncodeSpec) -> dict[str, str]:
    options: dict[str, str] = {}
    if spec.crf is not None:
        options["crf"] = str(spec.crf)
    if spec.preset:
        options["preset"] = spec.preset
    if spec.codec == "h264":
        # Without it x264 takes an AVX-512 path in its macroblock tree that reads memory it never wrote: the same
        # frames give other packets from run to run.
        options["x264-params"] = "cpu-independent=1"
    if spec.codec == "hevc":
        options["x265-params"] = "log-level=none"
    if spec.codec == "av1":
        options["svtav1-params"] = f"lp={min(spec.threads, 6)}"
    if spec.codec == "ffv1":
        options |= {"level": "3", "slicecrc": "1", "g": "1", "slices": "4"}
    if spec.codec == "prores":
        options |= {"profile": "4" if "444" in spec.pix_fmt else "3", "vendor": "apl0"}
    for key, value in spec.options:
        joined = key in ("x264-params", "x265-params", "svtav1-params") and key in options
        options[key] = f"{options[key]}:{value}" if joined else value
    return options


def _bits(pix_fmt: str) -> int:
    return max(component.bits for component in av.VideoFormat(pix_fmt).components)
