"""Decoded frames with repaired, strictly increasing time stamps."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.color import RGB, Picture, as_picture, resolve_color, rgb_filter, widened
from ultraflash_cli.video.probe import ClipInfo, open_input

__all__ = ["Clock", "DecodedFrame", "read_frames"]

_JUMP_S = 10
_SITED_CODECS = {"h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video"}
"""Codecs whose decoders say where the chroma lies."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedFrame:
    """One frame in coded orientation; ``pts`` and ``duration`` count ticks of the clip's ``time_base``."""

    pts: int
    duration: int
    rgb_hwc: Picture


class Clock:
    """Repairs the time stamps of frames in the order they are shown: missing ones, repeated ones, jumps back.

    ``step`` is the usual distance of two frames and ``jump`` the smallest step back taken for a new clock, in ticks.
    """

    def __init__(self, *, step: int, jump: int) -> None:
        self._step = max(1, step)
        self._jump = jump
        self._offset = 0
        self._last: int | None = None
        self._stamps = _Stamps()
        self._hints = _Stamps()

    def next(self, pts: int | None, *, hint: int | None = None) -> int:
        """Give the time stamp to use for a frame that carries ``pts`` and was decoded at ``hint``.

        Containers without presentation times (AVI) give none or wrong ones: whichever of the two has stepped back less
        often so far is believed.
        """
        self._stamps.see(pts)
        self._hints.see(hint)
        believed = pts is not None and (hint is None or self._stamps.faults <= self._hints.faults)
        given = pts if believed else hint
        if self._last is None:
            self._last = given if given is not None else 0
            return self._last
        if given is None:
            self._last += self._step
            return self._last
        given += self._offset
        if self._last - given >= self._jump:
            self._offset += self._last + self._step - given
            given = self._last + self._step
        self._last = max(given, self._last + 1)
        return self._last


class _Stamps:
    def __init__(self) -> None:
        self._last: int | None = None
        self.faults = 0

    def see(self, stamp: int | None) -> None:
        if stamp is not None:
            self.faults += self._last is not None and stamp <= self._last
            self._last = stamp


@dataclass
class _Report:
    frames: int = 0
    packets: int = 0
    failures: int = 0
    end_pts: int = 0


def read_frames(
    info: ClipInfo, *, deinterlace: bool | None = None, warn: Callable[[str], None], threads: int = 1
) -> Iterator[DecodedFrame]:
    """Decode the clip's main video from its first frame to its last.

    ``deinterlace`` None follows the flags of the stream, True treats every frame as interlaced. Frames are
    uint8, or uint16 over the whole range where the source has more than 8 bits. A damaged tail gives what
    decodes and one call of ``warn``; raises ``InputError`` where nothing decodes.
    """
    name = info.path.name
    mode = ("interlaced" if info.interlaced else None) if deinterlace is None else ("all" if deinterlace else None)
    if mode is not None:
        warn(f"{name}: interlaced; deinterlaced with bwdif, one frame out for each frame in.")
    if info.has_alpha:
        warn(f"{name}: its transparency is not kept; transparent parts are shown as they are stored.")
    color = resolve_color(
        info.color,
        width_px=info.width_px,
        height_px=info.height_px,
        rgb=info.is_rgb,
        full=info.pix_fmt.startswith("yuvj"),
    )
    convert = rgb_filter(
        color,
        width_px=info.width_px,
        height_px=info.height_px,
        deep=info.bit_depth > 8,
        deinterlace=mode,
        chroma_left=info.codec not in _SITED_CODECS,
        threads=threads,
    )
    report = _Report()
    waiting: deque[tuple[int, int]] = deque()

    def timed(ready: list[av.VideoFrame]) -> Iterator[DecodedFrame]:
        for rgb in ready:
            pts, duration = waiting.popleft()
            report.frames += 1
            report.end_pts = pts + duration
            rgb_hwc = as_picture(rgb.to_ndarray())
            yield DecodedFrame(pts, duration, rgb_hwc if color.matrix == RGB else widened(rgb_hwc))

    with open_input(info.path) as container:
        stream = container.streams[info.video_index]
        assert isinstance(stream, VideoStream), "probe chose a video stream"
        stream.codec_context.thread_count = threads
        for frame, pts, duration in _with_durations(
            _decode(container, stream, report), info, lambda: _is_whole(stream, report)
        ):
            waiting.append((pts, duration))
            frame.colorspace = color.matrix
            frame.color_range = color.range
            yield from timed(convert.push(frame))
        yield from timed(convert.flush())
    if not report.frames:
        raise InputError(f"{info.path}: not one frame of its video can be decoded; the file is damaged or cut.")
    _warn_of_losses(info, report, warn)


def _decode(container: InputContainer, stream: VideoStream, report: _Report) -> Iterator[av.VideoFrame]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (OSError, FFmpegError):
            report.failures += 1
            break
        report.packets += packet.size > 0
        try:
            frames = packet.decode()
        except FFmpegError:
            report.failures += 1
            continue
        yield from frames
    try:
        yield from stream.codec_context.decode(None)
    except FFmpegError:
        return


def _is_whole(stream: VideoStream, report: _Report) -> bool:
    """Whether every packet in the file's index was there and could be decoded; False where there is no index."""
    return 0 < stream.frames <= report.packets and not report.failures


def _with_durations(
    frames: Iterator[av.VideoFrame], info: ClipInfo, is_whole: Callable[[], bool]
) -> Iterator[tuple[av.VideoFrame, int, int]]:
    """Pair frames with their repaired time stamp and their duration, which is the way to the next frame.

    The last frame lasts to the end that the file declares, if the file is whole or the end is near.
    """
    step = max(1, round(1 / (info.average_rate * info.time_base)))
    clock = Clock(step=step, jump=max(1, int(_JUMP_S / info.time_base)))
    held: av.VideoFrame | None = None
    held_pts = 0
    for frame in frames:
        pts = clock.next(frame.pts, hint=frame.dts)
        if held is not None:
            yield held, held_pts, pts - held_pts
        held, held_pts = frame, pts
    if held is not None:
        duration = held.duration if held.duration > 0 else step
        left = info.end_pts - held_pts if info.end_pts is not None else 0
        if left > 0 and (is_whole() or left <= 2 * max(duration, step)):
            duration = left
        yield held, held_pts, duration


def _warn_of_losses(info: ClipInfo, report: _Report, warn: Callable[[str], None]) -> None:
    got_s = Fraction(report.end_pts - (info.start_pts or 0)) * info.time_base
    lost_s = Fraction(info.end_pts - report.end_pts) * info.time_base if info.end_pts is not None else Fraction(0)
    if lost_s > Fraction(1, 2):
        warn(
            f"{info.path.name}: damaged or cut: {report.frames} frames could be read, {float(got_s):.2f} s; "
            f"the last {float(lost_s):.2f} s are lost."
        )
    elif report.failures:
        warn(
            f"{info.path.name}: damaged: {report.failures} packets could not be decoded, {report.frames} frames could."
        )
