"""Choose the container, and the input streams it can hold."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

from ultraflash_cli.errors import InputError, UsageError
from ultraflash_cli.video.probe import ClipInfo, StreamInfo
from ultraflash_cli.video.sequence import PICTURE_SUFFIXES, WRITTEN_PICTURES
from ultraflash_cli.video.sound import lossless_codecs
from ultraflash_cli.video.source import open_input

__all__ = [
    "CONVERTIBLE",
    "FORMATS",
    "LONG_START_S",
    "ConvertedStream",
    "DroppedStream",
    "Refusals",
    "StreamPlan",
    "is_iso",
    "own_suffix",
    "plan_alone",
    "plan_streams",
    "tick_of",
]

CONVERTIBLE = ("aac", "flac", "opus")
"""Codecs to convert audio to, on request, if it cannot be copied."""
Refusals = Mapping[str, Mapping[int, str]]
"""Reason why a muxer rejects a stream, by container and stream."""
LONG_START_S = 60
"""A clock that starts later comes from a broadcast; the output's clock then starts at
0."""
_CHAPTER_TRACKS = ("", "bin_data", "text")
"""FFmpeg's name for the chapter track of MP4; chapters are copied as such."""


@dataclass(frozen=True, kw_only=True)
class _Container:
    video: frozenset[str]
    audio: frozenset[str] = frozenset()
    subtitle: frozenset[str] = frozenset()
    unusual: frozenset[str] = frozenset()
    """Codecs it can hold but few players expect there: only used if requested, or if the input has them."""
    attachments: bool = False
    pictures: frozenset[str] = frozenset()
    text: str | None = None
    """Format to which text subtitles are converted."""
    timed: bool = True
    """Whether it can store timestamps, chapters and tags at all."""
    tick_s: Fraction | None = None
    """Fixed time base of the container, if any."""


_ISO_VIDEO = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg"})
_MP4_AUDIO = frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "dts", "alac", "opus", "flac"})
_ISO_PICTURES = frozenset({"mjpeg", "png", "bmp"})
_PCM_LE = frozenset({"pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_u8"})
_PCM_BE = frozenset({"pcm_s16be", "pcm_s24be", "pcm_s32be"})
_CONTAINERS = {
    ".mp4": _Container(
        video=_ISO_VIDEO,
        audio=_MP4_AUDIO,
        subtitle=frozenset({"mov_text"}),
        unusual=frozenset({"vorbis", "pcm_s16be", "pcm_s24be", "dvd_subtitle"}),
        pictures=_ISO_PICTURES,
        text="mov_text",
    ),
    ".m4v": _Container(
        video=frozenset({"h264", "hevc", "mpeg4"}),
        audio=frozenset({"aac", "ac3", "eac3", "alac"}),
        subtitle=frozenset({"mov_text"}),
        unusual=_ISO_VIDEO | _MP4_AUDIO,
        pictures=_ISO_PICTURES,
        text="mov_text",
    ),
    ".mov": _Container(
        video=(_ISO_VIDEO - {"av1", "vp9"})  # FFmpeg writes those in MP4 only
        | {"prores", "dnxhd", "cfhd", "qtrle", "png", "dvvideo", "rawvideo", "v210", "cinepak", "svq3"},
        audio=frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "alac", "adpcm_ima_qt", "dts", "amr_nb", "amr_wb"})
        | {"pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_f32be", "pcm_f64be"}
        | {"nellymoser", "qcelp", "qdm2", "qdmc", "gsm", "speex", "ilbc"}
        | _PCM_LE
        | _PCM_BE,
        subtitle=frozenset({"mov_text"}),
        unusual=frozenset({"eia_608"}),
        text="mov_text",
    ),
    ".mkv": _Container(
        video=_ISO_VIDEO | {"prores", "ffv1", "vp8", "theora", "msmpeg4v3", "rv30", "rv40", "rawvideo", "vvc"},
        audio=_MP4_AUDIO
        | {"vorbis", "truehd", "mlp", "tta", "wavpack", "mp1", "cook", "ra_144", "ra_288", "sipr", "atrac3"}
        | _PCM_LE
        | _PCM_BE,
        subtitle=frozenset({"subrip", "ass", "webvtt", "text", "dvd_subtitle", "hdmv_pgs_subtitle", "dvb_subtitle"}),
        attachments=True,
        pictures=frozenset({"mjpeg", "png", "gif", "bmp", "tiff", "webp"}),
        text="subrip",
        tick_s=Fraction(1, 1000),
    ),
    ".webm": _Container(
        video=frozenset({"vp8", "vp9", "av1"}),
        audio=frozenset({"vorbis", "opus"}),
        subtitle=frozenset({"webvtt"}),
        text="webvtt",
        tick_s=Fraction(1, 1000),
    ),
    **{suffix: _Container(video=frozenset({codec}), timed=False) for suffix, codec in WRITTEN_PICTURES.items()},
    ".y4m": _Container(video=frozenset({"y4m"}), timed=False),
}
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""FFmpeg's names of the containers written by ``join``; the others are written by
``stills`` and ``y4m``."""
_OWN_SUFFIX = {"png": ".png", "jpeg": ".jpg", "y4m": ".y4m"}
"""Suffix of the codecs that no container holds."""

_TEXT = frozenset({"subrip", "mov_text", "webvtt", "text"})
"""Text subtitle formats that can be converted to one another."""


@dataclass(frozen=True, kw_only=True)
class DroppedStream:
    """A stream of the input that is dropped, and why."""

    stream: StreamInfo
    reason: str

    def __str__(self) -> str:
        return f"{self.stream.describe()}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class ConvertedStream:
    """A stream of the input that is converted."""

    stream: StreamInfo
    codec: str

    def __str__(self) -> str:
        return f"{self.stream.describe()}: converted to {self.codec}"


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """Container, and the streams copied into it."""

    suffix: str
    """The container, as the suffix of the output: .mp4, .m4v, .mov, .mkv, .webm; .png, .jpg
    or .jpeg for pictures, or .y4m."""
    reason: str
    """Reason why the container differs from the input's; empty if it does not, or if the user chose it."""
    copied: tuple[StreamInfo, ...]
    dropped: tuple[DroppedStream, ...]
    """Streams dropped without a request by the user, each reported as a warning."""
    converted: tuple[ConvertedStream, ...] = ()
    """Converted streams, which are reported with the plan."""
    notes: tuple[str, ...] = ()
    """Other changes due to the container, one sentence each, which become warnings
    too."""
    remarks: tuple[str, ...] = ()
    """Changes that hardly matter, one sentence each."""

    @property
    def beside(self) -> tuple[StreamInfo, ...]:
        """All streams that are kept."""
        return (*self.copied, *(converted.stream for converted in self.converted))

    def without(self, streams: Collection[StreamInfo], reason: str) -> "StreamPlan":
        """Leave out streams."""
        gone = {stream.index for stream in streams}
        return replace(
            self,
            copied=tuple(stream for stream in self.copied if stream.index not in gone),
            converted=tuple(converted for converted in self.converted if converted.stream.index not in gone),
            dropped=(*self.dropped, *(DroppedStream(stream=stream, reason=reason) for stream in streams)),
        )


def plan_streams(
    info: ClipInfo,
    output_suffix: str | None,
    *,
    audio: str = "copy",
    subs: str = "copy",
    codec: str,
    fps: Fraction | None = None,
    refused: Refusals = MappingProxyType({}),
) -> StreamPlan:
    """Choose the container and the streams to copy next to video of ``codec`` (h264, ...).

    An ``output_suffix`` given by the user takes precedence, and streams that it cannot
    hold are converted losslessly or dropped. Otherwise the input's container is kept if
    it can hold everything, or replaced by MP4 if it is not a supported output, or by
    the container that keeps most. ``audio`` (aac, flac or opus) is the codec for audio that
    cannot be copied; ``fps`` is the new frame rate, if any; ``refused`` lists, by
    suffix, the streams that the muxer rejects, and why. Raises ``UsageError`` for a
    suffix that is unknown or cannot hold the video.
    """
    wanted = tuple(
        stream
        for stream in info.streams
        if stream.index != info.video_index
        and not (stream.kind == "audio" and audio == "none")
        and not (stream.kind == "subtitle" and subs == "none")
        and not (info.chapters and stream.kind == "data" and stream.codec in _CHAPTER_TRACKS)
    )
    timecodes = _timecodes(info, wanted)
    wanted = tuple(stream for stream in wanted if stream.index not in timecodes)
    choice = _Choice(codec=codec, audio=audio, refused=refused, fps=fps)
    if output_suffix is not None:
        return _split(info, _checked_suffix(output_suffix, codec), "", wanted, choice)
    if codec in _OWN_SUFFIX:
        return _split(info, _OWN_SUFFIX[codec], "", wanted, choice)

    own = own_suffix(info)
    first = own or ".mp4"
    if is_iso(first) and codec == "vp9" and info.has_alpha:
        other = ".mkv" if choice.misfits(".webm", wanted, False) else ".webm"
        reason = f"written as {other}, because {first} cannot hold transparent vp9 video"
        return _split(info, other, reason, wanted, choice)

    others = (".mov", ".mkv") if codec == "prores" else (".mkv", ".mov")  # QuickTime is where ProRes is expected
    fitting = [suffix for suffix in (first, *others) if codec in _CONTAINERS[suffix].video]
    best = min(fitting, key=lambda suffix: choice.cost(suffix, wanted, suffix == own))
    if best != first:
        misfit = f"{codec} video"
        if first in fitting:
            # A stream that the other container cannot hold either is not a reason.
            gained = [stream for stream in wanted if choice.way(best, stream, best == own) != ""]
            misfit = choice.misfits(first, gained, own is not None)[0]
        return _split(info, best, f"written as {best}, because {first} cannot hold {misfit}", wanted, choice)

    written = f"written as {first}, because {info.path.suffix or 'this container'} is not a supported output"
    return _split(info, first, "" if own else written, wanted, choice)


def plan_alone(output_suffix: str | None, *, codec: str, frame_s: Fraction) -> StreamPlan:
    """Choose the container of a clip without a source: the named one, else the most
    common one that holds ``codec``. ``frame_s`` is the duration of a frame. Raises
    ``UsageError`` for a suffix that is unknown or cannot hold the video.
    """
    if output_suffix is not None:
        suffix = _checked_suffix(output_suffix, codec)
    else:
        order = (_OWN_SUFFIX[codec],) if codec in _OWN_SUFFIX else (".mp4", ".mov", ".mkv")
        suffix = next(each for each in order if codec in _CONTAINERS[each].video)
    return StreamPlan(suffix=suffix, reason="", copied=(), dropped=(), remarks=_rounding(suffix, frame_s))


def is_iso(suffix: str) -> bool:
    """Return whether a container belongs to the MP4 and QuickTime family."""
    return FORMATS.get(suffix) in ("mp4", "mov")


def tick_of(suffix: str) -> Fraction | None:
    """Return the fixed time base of a container, in seconds; None if every stream has
    its own."""
    return _CONTAINERS[suffix].tick_s


def own_suffix(info: ClipInfo) -> str | None:
    """Return the output suffix for the input's container; None if it is not a supported
    output."""
    names = info.container.split(",")
    suffix = info.path.suffix.lower()
    if "mov" in names or "mp4" in names:
        return suffix if suffix in (".mp4", ".m4v", ".mov") else ".mp4"
    if "matroska" in names:
        return suffix if suffix in (".mkv", ".webm") else ".mkv"
    return None


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Decides how containers store streams next to video of a codec."""

    codec: str
    audio: str
    refused: Refusals
    fps: Fraction | None

    def way(self, suffix: str, stream: StreamInfo, expected: bool) -> str | None:
        """Return how the container stores ``stream``: None if copied, a codec if
        converted, or an empty string if dropped. ``expected`` means that the user named
        the container, or that the input's is of the same kind.
        """
        known = _CONTAINERS[suffix]
        if not stream.is_known:
            return ""
        codecs = {
            "audio": known.audio,
            "subtitle": known.subtitle,
            "video": known.pictures if stream.is_picture else known.video,
        }.get(stream.kind, frozenset[str]())
        fits = stream.codec in codecs or (expected and not stream.is_picture and stream.codec in known.unusual)
        if stream.index in self.refused.get(suffix, {}):
            fits = False
        elif fits or (stream.kind == "attachment" and known.attachments):
            return None
        if stream.kind == "subtitle" and stream.codec in _TEXT and known.text is not None and not fits:
            return known.text
        return self._converted(suffix, stream) if stream.kind == "audio" else ""

    def _converted(self, suffix: str, stream: StreamInfo) -> str:
        """Return the codec for audio that cannot be copied."""
        known = _CONTAINERS[suffix]
        codecs = known.audio | known.unusual if known.timed else frozenset[str]()
        wanted = [self.audio] if self.audio in CONVERTIBLE else []
        for codec in (*wanted, *lossless_codecs(stream.codec, stream.sample_bits)):
            if codec in codecs:
                return codec
        return ""

    def misfits(self, suffix: str, streams: Iterable[StreamInfo], expected: bool) -> list[str]:
        """Return the streams that the container cannot hold unchanged."""
        video = [] if self.codec in _CONTAINERS[suffix].video else [f"{self.codec} video"]
        return video + [stream.describe() for stream in streams if self.way(suffix, stream, expected) is not None]

    def cost(self, suffix: str, streams: Sequence[StreamInfo], expected: bool) -> tuple[int, int]:
        """Return how many streams a container loses, and how many it changes without a
        request by the user."""
        ways = [(stream, self.way(suffix, stream, expected)) for stream in streams]
        asked = self.audio in CONVERTIBLE
        changed = [stream for stream, way in ways if way and not (asked and stream.kind == "audio")]
        return sum(way == "" for _, way in ways), len(changed)

    def refusal(self, suffix: str, stream: StreamInfo) -> str:
        """Return the reason why a stream is dropped, and how to keep it."""
        if stream.kind in ("data", "unknown"):
            return "data streams cannot be kept"
        if not stream.is_known:
            what = "sample rate and channels are" if stream.kind == "audio" else "size is"
            return f"its {what} unknown; none of its packets were found in the part that was searched"
        keepers = [
            other
            for other in (".mkv", ".mov", ".mp4")
            if other != suffix
            and self.codec in _CONTAINERS[other].video | _CONTAINERS[other].unusual
            and self.way(other, stream, True) is None
        ]
        why = self.refused.get(suffix, {}).get(stream.index, f"{suffix} cannot hold it")
        ways = [f"{keepers[0]} can"] if keepers else []
        held = [codec for codec in ("aac", "opus") if codec in _CONTAINERS[suffix].audio]
        if stream.kind == "audio" and self.audio in ("copy", *CONVERTIBLE) and held and self.audio not in held:
            ways.append(f"--audio {held[0]} converts it")
        return "; ".join([why, ", ".join(ways)] if ways else [why])


def _timecodes(info: ClipInfo, streams: Sequence[StreamInfo]) -> set[int]:
    """Return the tracks that contain only the time code of the first frame, which is
    copied as a tag of the picture."""
    asked = {stream.index for stream in streams if stream.kind == "data" and not stream.codec}
    if not asked:
        return set()
    try:
        with open_input(info.source) as container:
            streams_in = container.streams
            return {s.index for s in streams_in if s.index in asked and s.type == "data" and "timecode" in s.metadata}
    except InputError:
        return set()


def _checked_suffix(output_suffix: str, codec: str) -> str:
    suffix = output_suffix.lower()
    if suffix not in _CONTAINERS:
        raise UsageError(f"{output_suffix or 'no extension'}: unknown container; use {', '.join(_CONTAINERS)}")
    known = _CONTAINERS[suffix]
    if codec not in known.video | known.unusual:
        other = {
            "png": ".png for a photo, .mov or folder/%05d.png for a clip,",
            "jpeg": ".jpg for a photo, folder/%05d.jpg for a clip,",
            "prores": ".mov or .mkv",
            "y4m": ".y4m or -",
        }.get(codec, ".mkv")
        raise UsageError(f"{suffix} cannot hold {codec} video; use {other} or another --codec")
    return suffix


def _rounding(suffix: str, *steps_s: Fraction) -> tuple[str, ...]:
    """Return a remark if the container cannot store multiples of any of the steps, in
    seconds."""
    tick = tick_of(suffix)
    if tick is None or any((step / tick).denominator == 1 for step in steps_s):
        return ()
    return (f"{suffix} rounds timestamps to 1 ms; the frame times are not whole milliseconds",)


def _split(info: ClipInfo, suffix: str, reason: str, wanted: Sequence[StreamInfo], choice: _Choice) -> StreamPlan:
    known = _CONTAINERS[suffix]
    expected = not reason or suffix == own_suffix(info)
    ways = [(stream, choice.way(suffix, stream, expected)) for stream in wanted]
    notes: list[str] = []
    is_named_so = info.path.suffix.lower() in PICTURE_SUFFIXES | {".gif"}
    is_still = info.frame_count_estimate == 1 and (is_named_so or info.container == "gif")
    from_pictures = is_still or info.container.startswith("image2") or info.container.endswith("_pipe")
    if suffix in WRITTEN_PICTURES and from_pictures:
        pass  # pictures have no timestamps to lose
    elif not known.timed:
        kept = ", chapters or tags" if info.chapters else " or tags"
        notes.append(
            f"{suffix} cannot store timestamps{kept}; it plays at {float(info.average_rate):.6g} frames per second"
        )
    elif info.start_s > LONG_START_S:
        notes.append(f"the input starts at {info.start_s:.0f} s; the output starts at 0")

    return StreamPlan(
        suffix=suffix,
        reason=reason,
        copied=tuple(stream for stream, way in ways if way is None),
        dropped=tuple(
            DroppedStream(stream=stream, reason=choice.refusal(suffix, stream)) for stream, way in ways if way == ""
        ),
        converted=tuple(ConvertedStream(stream=stream, codec=way) for stream, way in ways if way),
        notes=tuple(notes),
        remarks=_rounding(suffix, *((info.time_base, info.step_s) if choice.fps is None else (1 / choice.fps,))),
    )
