"""Decoded frames with repaired, strictly increasing timestamps."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.cadence import CadenceClock
from ultraflash_cli.video.clock import Clock, settled
from ultraflash_cli.video.color import UNSPECIFIED, ColorInfo, Picture
from ultraflash_cli.video.convert import FrameConverter, Look, look_of
from ultraflash_cli.video.deinterlacing import about_fields, filter_mode, frames_of, times_of
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.probe import ClipInfo
from ultraflash_cli.video.repairs import Repairs
from ultraflash_cli.video.sequence import ImageSequence, wrong_size
from ultraflash_cli.video.sidedata import side_data
from ultraflash_cli.video.source import Tally, decoded_frames, decoder_of, late_streams, open_input
from ultraflash_cli.video.timeline import timed_packets
from ultraflash_cli.video.truncation import is_cut_off, missing_bytes
from ultraflash_cli.video.watching import FieldWatch

__all__ = ["ReadReport", "read_captions", "read_frames"]

_JUMP_S = 10
_UNTIMED_CONTAINERS = {"avi", "h264", "hevc", "m4v", "mjpeg", "mpeg", "mpegvideo", "vc1"}
"""Containers without timestamps by design; filling them in is not a repair."""
_FEW = 3
"""Number of duplicate timestamps in such a container that cause no warning."""
_CAPTIONS = "A53_CC"
_LEFT_BEHIND = {
    _CAPTIONS: "closed captions are not kept",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata is not kept",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata is not kept",
    "DOVI_METADATA": "Dolby Vision metadata is not kept",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata is not kept",
    "STEREO3D": "the 3D flag (two views per picture) is not kept",
    "SPHERICAL": "the flag for spherical video is not kept",
    "S12M_TIMECODE": "timecodes inside frames are not kept",
}
"""Messages about metadata inside frames that no encoder can keep."""


@dataclass
class ReadReport:
    """Problems found while reading a clip; complete after its last frame."""

    frames: int = 0
    failures: int = 0
    """Number of packets that could not be read or decoded."""
    lost_s: Fraction = Fraction(0)
    """Seconds lost at the end, if the file states its length."""
    missing_bytes: int = 0
    """Bytes missing at the end, if the file states its length."""
    cut_off: tuple[Path, ...] = ()
    """Pictures whose end is missing; decoders make up the rest."""
    repaired_times: int = 0
    """Timestamps that were missing, repeated, went backwards, or were outliers."""
    restarts: int = 0
    """Number of restarts of the file's clock."""

    @property
    def damaged(self) -> bool:
        """Whether frames were lost."""
        return self.failures > 0 or self.missing_bytes > 0 or self.lost_s > _LOSS_S or bool(self.cut_off)

    def about_cut_off(self, source: object) -> str:
        """Return which pictures of ``source`` are truncated."""
        first, others = self.cut_off[0].name, len(self.cut_off) - 1
        end = "its end" if first == getattr(source, "name", "") else f"the end of {first}"
        more = f", and that of {others} more," if others else ""
        return f"truncated: {end}{more} is missing"


_LOSS_S = Fraction(1, 2)


class _Said:
    """Forwards each kind of message once."""

    def __init__(self, name: str, warn: Callable[[str], None]) -> None:
        self._name = name
        self._warn = warn
        self._kinds: set[str] = set()

    def __call__(self, kind: str, text: str) -> None:
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._warn(f"{self._name}: {text}.")


@dataclass
class _Progress:
    tally: Tally
    frames: int = 0
    end_pts: int = 0


def read_frames(
    info: ClipInfo,
    *,
    deinterlace: bool | None = None,
    alpha: bool = False,
    warn: Callable[[str], None],
    threads: int = 1,
    report: ReadReport | None = None,
    captions: bool = False,
) -> Iterator[Frame]:
    """Decode the clip's main video from the first frame to the last. ``deinterlace``
    None follows ``info.scan``, True treats every frame as interlaced. Frames are uint8,
    or full-range uint16 if the source has more than 8 bits; with ``alpha`` they include
    transparency, if the clip has any. Frames of a different size are scaled to that of
    the clip, with bars if their shape differs. A damaged clip yields the frames that
    can be decoded and calls ``warn``; ``report`` is filled in. ``captions`` means that
    closed captions are kept (``read_captions``). Raises ``InputError`` if nothing can
    be decoded, or if the images of a sequence differ in size.
    """
    said = _Said(info.path.name, warn)
    mode = filter_mode(info) if deinterlace is None else ("all" if deinterlace else None)
    for kind, warning in _foreseen(info, mode, alpha=alpha):
        said(kind, warning)
    alpha = alpha and info.has_alpha
    converter = FrameConverter(info, deinterlace=mode, alpha=alpha, threads=threads)
    tally = Tally()
    progress = _Progress(tally)
    times = times_of(info)

    def timed(ready: list[tuple[Picture, Picture | None]]) -> Iterator[Frame]:
        for (rgb_hwc, alpha_hw), (pts, duration) in zip(ready, times.take(len(ready)), strict=True):
            progress.frames += 1
            progress.end_pts = pts + duration
            yield Frame(pts, duration, rgb_hwc, alpha_hw)

    single = frames_of(info)
    clock = _clock(single)
    with open_input(info.source, last=True) as container, _told_repairs(info, clock, said) as repairs:
        stream = container.streams[info.video_index]
        assert isinstance(stream, VideoStream), "probe chose a video stream"
        decoder = decoder_of(stream, alpha=alpha)
        decoder.thread_count = threads
        packets = timed_packets(container, {stream.index}, repairs)
        decoded = decoded_frames(container, stream, decoder, tally, packets=packets)
        looks: deque[Look] = deque()
        frames = _with_looks(decoded, decoder, info, looks, said)
        watch = FieldWatch() if info.watched else None
        for frame, pts, duration in _with_durations(frames, single, clock, repairs, lambda: _is_whole(stream, tally)):
            if watch is not None and (combed_pts := watch.push(frame, pts)) is not None:
                said("fields", _about_missed_fields(combed_pts, single))
            _look_at(frame, pts, single, progress.frames + times.frames, mode, said)
            for kind in sorted((_LEFT_BEHIND.keys() - ({_CAPTIONS} if captions else ())) & side_data(frame).keys()):
                said(_LEFT_BEHIND[kind], _LEFT_BEHIND[kind])
            look = looks.popleft()
            if converter.begins_anew(look):
                yield from timed(converter.flush())
            times.push(pts, duration)
            yield from timed(converter.push(frame, look))
        yield from timed(converter.flush())
        for late in late_streams(container):
            said(late, f"left out: {late}, which starts too late to be found beforehand")
    if not progress.frames:
        raise InputError(f"{info.path}: no video frame can be decoded; the file is damaged or truncated")
    found = _losses(info, progress, clock, repairs)
    _tell_losses(info, found, said)
    if report is not None:
        vars(report).update(vars(found))


def reading_warnings(info: ClipInfo, *, alpha: bool) -> list[str]:
    """Return the warnings of ``decode_frames`` that are certain before a frame is decoded."""
    return [warning for _, warning in _foreseen(info, filter_mode(info), alpha=alpha)]


def _foreseen(info: ClipInfo, mode: str | None, *, alpha: bool) -> Iterator[tuple[str, str]]:
    if about := about_fields(info, mode):
        yield "fields", about
    if info.has_alpha and not alpha:
        yield "alpha", "transparency is not kept; transparent areas show their stored colours"


def _look_at(frame: av.VideoFrame, pts: int, info: ClipInfo, number: int, mode: str | None, said: _Said) -> None:
    """Report anything new in this frame: metadata that cannot be kept, or a change."""
    if mode == "interlaced" and frame.interlaced_frame:
        said("fields", "interlaced; deinterlaced with bwdif, one frame out per frame in")
    if (frame.width, frame.height) != info.stored_wh:
        if isinstance(info.source, ImageSequence):
            raise wrong_size(info.source.picture(number), (frame.width, frame.height), info.stored_wh)
        size = "{}x{}".format(*info.stored_wh)
        found = f"{frame.width}x{frame.height} {_place(pts, info)}"
        said(
            "size",
            f"the frame size changes ({found}); everything is scaled to {size}, with bars where the shape differs",
        )
    tags = (
        ("primaries", info.color.primaries, frame.color_primaries),
        ("transfer", info.color.transfer, frame.color_trc),
    )
    for name, usual, found in tags:
        if UNSPECIFIED not in (usual, found) and usual != found:
            said(
                name, f"the {name} of the colours change {_place(pts, info)}; all frames are written with the first one"
            )


def _about_missed_fields(pts: int, info: ClipInfo) -> str:
    return (
        f"interlaced or telecined from about {_place(pts, info).removeprefix('at ')} on, which was not detected "
        "before the run; these frames are left unchanged, --deinterlace frame deinterlaces all"
    )


def read_captions(info: ClipInfo) -> Iterator[tuple[int, bytes]]:
    """Decode the clip again and yield the timestamp of each frame, as in
    ``read_frames``, with its closed captions. Raises ``InputError`` if the input cannot
    be read again.
    """
    tally, repairs = Tally(), Repairs()
    with open_input(info.source) as container:
        stream = container.streams[info.video_index]
        assert isinstance(stream, VideoStream), "probe chose a video stream"
        decoder = decoder_of(stream, alpha=False)
        decoder.thread_count = 1
        packets = timed_packets(container, {stream.index}, repairs)
        decoded = decoded_frames(container, stream, decoder, tally, packets=packets)
        for frame, pts, _ in _with_durations(decoded, info, _clock(info), repairs, lambda: False):
            yield pts, side_data(frame).get(_CAPTIONS, b"")


def _place(pts: int, info: ClipInfo) -> str:
    return f"at {float((pts - (info.start_pts or 0)) * info.time_base):.2f} s"


def _with_looks(
    frames: Iterator[av.VideoFrame], decoder: VideoCodecContext, info: ClipInfo, looks: deque[Look], said: _Said
) -> Iterator[av.VideoFrame]:
    """Pass frames on, record how to read each in ``looks``, and warn if that
    changes."""
    first: Fraction | None = None
    tags: ColorInfo | None = None
    before: Look | None = None
    for frame in frames:
        aspect = decoder.sample_aspect_ratio
        first = first or aspect
        if aspect and first and aspect != first:
            said("aspect", f"the pixel aspect ratio changes from {first} to {aspect}; all frames are written with one")
        tags = tags or ColorInfo(matrix=frame.colorspace, range=frame.color_range)
        look = look_of(frame, aspect, info, tags)
        if before is not None and before.color != look.color:
            said("color", "the colour matrix or range changes within the clip; each frame is read with its own")
        before = look
        looks.append(look)
        yield frame


def _clock(info: ClipInfo) -> Clock | CadenceClock:
    if info.repeated_field is not None:
        return CadenceClock(field=info.repeated_field, start=info.start_pts or 0)
    return Clock(step=_step(info), jump=max(1, int(_JUMP_S / info.time_base)), start=info.start_pts or 0)


def _step(info: ClipInfo) -> int:
    return max(1, round(1 / (info.average_rate * info.time_base)))


def _is_whole(stream: VideoStream, tally: Tally) -> bool:
    """Return whether every packet in the file's index was present and decodable; False
    if there is no index."""
    return 0 < stream.frames <= tally.packets and not tally.failures


def _with_durations(
    frames: Iterator[av.VideoFrame],
    info: ClipInfo,
    clock: Clock | CadenceClock,
    repairs: Repairs,
    is_whole: Callable[[], bool],
) -> Iterator[tuple[av.VideoFrame, int, int]]:
    """Pair frames with their repaired timestamp and their duration, the distance to the
    next frame. The last frame lasts to the end stated in the file, if it has a
    timestamp and the file is complete or that end is near.
    """
    step = _step(info)
    held: av.VideoFrame | None = None
    held_pts = 0
    stamped = settled(frames, repairs) if isinstance(clock, Clock) else ((frame, frame.pts) for frame in frames)
    for frame, stamp in stamped:
        pts = clock.next(stamp, hint=frame.dts, lasts=frame.duration)
        if held is not None:
            yield held, held_pts, pts - held_pts
        held, held_pts = frame, pts
    if held is not None:
        duration = held.duration if held.duration > 0 else step
        left = info.end_pts - held_pts if info.end_pts is not None and isinstance(clock, Clock) else 0
        if left > 0 and not clock.made_up and (is_whole() or left <= 2 * max(duration, step)):
            duration = left
        yield held, held_pts, duration


def _losses(info: ClipInfo, progress: _Progress, clock: Clock | CadenceClock, repairs: Repairs) -> ReadReport:
    lost_s = Fraction(0)
    missing = missing_bytes(info.source) if isinstance(info.source, Path) else 0
    if info.end_pts is not None:
        lost_s = Fraction(info.end_pts - progress.end_pts) * info.time_base
    elif missing and info.duration_s is not None:
        got_s = (progress.end_pts - (info.start_pts or 0)) * info.time_base
        lost_s = Fraction(info.duration_s).limit_denominator(1_000_000) - got_s
    return ReadReport(
        frames=progress.frames,
        failures=progress.tally.failures,
        lost_s=max(Fraction(0), lost_s),
        missing_bytes=missing,
        cut_off=tuple(path for path in _files(info) if is_cut_off(path)),
        repaired_times=_repaired_times(info, clock, repairs) + repairs.outliers,
        restarts=repairs.restarts,
    )


def _files(info: ClipInfo) -> tuple[Path, ...]:
    """Return the files of a clip; none for a pipe."""
    if isinstance(info.source, ImageSequence):
        return info.source.pictures()
    return (info.source,) if isinstance(info.source, Path) else ()


@contextmanager
def _told_repairs(info: ClipInfo, clock: Clock | CadenceClock, said: _Said) -> Generator[Repairs]:
    """Report problems with timestamps when reading stops, even before the end of the
    clip."""
    repairs = Repairs()
    try:
        yield repairs
    finally:
        for kind, text in repairs.describe(info.start_s):
            said(kind, text)
        if repaired := _repaired_times(info, clock, repairs):
            count = "one timestamp was" if repaired == 1 else f"{repaired} timestamps were"
            said("times", f"{count} missing, repeated or went backwards; corrected")


def _repaired_times(info: ClipInfo, clock: Clock | CadenceClock, repairs: Repairs) -> int:
    if info.container in _UNTIMED_CONTAINERS:
        return clock.squeezed if clock.squeezed > _FEW else 0
    return max(0, clock.repaired - repairs.untimed)


def _tell_losses(info: ClipInfo, found: ReadReport, said: _Said) -> None:
    if found.lost_s > _LOSS_S:
        said(
            "loss",
            f"damaged or truncated: {found.frames} frames could be read; the last {float(found.lost_s):.2f} s are lost",
        )
    elif found.missing_bytes:
        said(
            "loss",
            f"truncated: the last {found.missing_bytes:,} bytes are lost; {found.frames} frames could be read",
        )
    elif found.cut_off:
        lost = found.about_cut_off(info.source)
        is_clip = isinstance(info.source, Path) and found.frames > 1
        rest = f"; {found.frames} frames could be read" if is_clip else ", and the decoder filled in the rest"
        said("loss", f"{lost}{rest}; copy it again from its source")
    elif found.failures:
        said("loss", f"damaged: {found.failures} packets could not be decoded, {found.frames} frames could")
