"""The check of a finished file before it is put in place."""

from array import array
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from ultraflash_cli.errors import OutputCheckError
from ultraflash_cli.video.containers import StreamPlan
from ultraflash_cli.video.contents import Content, counted_bytes, is_moving, main_picture
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.join import Joined
from ultraflash_cli.video.probe import stream_extent

__all__ = ["check_output"]

_DURATION_SLACK_S = Fraction(2, 1000)
_BESIDE = ("audio", "subtitle")
_KINDS = ("video", *_BESIDE)


def check_output(
    path: Path,
    *,
    plan: StreamPlan,
    frames: int,
    spec: EncodeSpec | None = None,
    duration_s: Fraction | None = None,
    joined: Joined | None = None,
) -> tuple[str, ...]:
    """Reopen a finished file and compare it with the expected contents. Counts the
    video frames, compares the streams with the plan and decodes the first and the last
    group of pictures. If given, also compares the picture's size, its duration (from
    the start of the first frame to the end of the last) and the joined content of every
    stream. Returns a sentence for each copied stream that differs. Raises
    ``OutputCheckError`` for any other difference.
    """
    contents = joined.contents if joined is not None else ()

    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            _check_streams(path, container, plan, joined)
            stream = main_picture(container, contents, number=joined.picture if joined is not None else 0)
            if spec is not None and (stream.width, stream.height) != spec.coded_size_px:
                expected = "{}x{}".format(*spec.coded_size_px)
                raise OutputCheckError(f"{path}: the picture is {stream.width}x{stream.height}, expected {expected}")
            found = _Found(container, stream)
            if len(found.shown) != frames:
                raise OutputCheckError(f"{path}: has {len(found.shown)} frames, expected {frames}")
            if len(set(found.shown)) != frames:
                raise OutputCheckError(f"{path}: two frames have the same timestamp")
            lasts_s = _duration_s(stream, min(found.shown))
            if duration_s is not None and lasts_s is not None and abs(lasts_s - duration_s) > _DURATION_SLACK_S:
                raise OutputCheckError(
                    f"{path}: the picture lasts {float(lasts_s):.3f} s, expected {float(duration_s):.3f} s"
                )
            stream.codec_context.options = {"err_detect": "explode"}
            _decode_group(path, container, stream, found.first_group)
            _decode_group(path, container, stream, found.last_group)
            return _differences(contents, found.contents)
    except (OSError, FFmpegError, ValueError) as error:
        raise OutputCheckError(f"{path}: the finished file cannot be read back ({error})") from error


class _Found:
    """Contents of a file, packet by packet."""

    def __init__(self, container: InputContainer, main: VideoStream) -> None:
        streams = [s for s in container.streams if is_moving(s) or s.type in _BESIDE]
        contents = {stream.index: Content(kind=stream.type) for stream in streams}
        self.shown = array("q")
        groups: list[int] = []  # index in ``shown`` of each group of pictures
        for packet in container.demux(*streams):
            index = packet.stream_index
            if not counted_bytes(packet, packet.stream):
                continue
            contents[index].add(packet)
            if index == main.index and packet.pts is not None:
                if packet.is_keyframe:
                    groups.append(len(self.shown))
                self.shown.append(packet.pts)
        self.contents = tuple(contents.values())
        self.first_group = self.shown[: groups[1] if len(groups) > 1 else None]
        last = self.shown[groups[-1] if groups else 0 :]
        # Pictures shown before the keyframe that precedes them in the stream cannot be
        # decoded from it.
        self.last_group = array("q", [pts for pts in last if pts >= last[0]])


def _check_streams(path: Path, container: InputContainer, plan: StreamPlan, joined: Joined | None) -> None:
    kept = [*plan.copied, *(each.stream for each in plan.converted)]
    expected = sorted([stream.kind for stream in kept if stream.kind in _KINDS and not stream.is_picture] + ["video"])
    found = sorted(s.type for s in container.streams if is_moving(s) or s.type in _BESIDE)
    missing, more = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    # If the written content is known, streams are compared one by one.
    if more or (missing and joined is None):
        raise OutputCheckError(f"{path}: has the streams {', '.join(found)}, expected {', '.join(expected)}")
    beside = sum(stream.is_picture or stream.kind == "attachment" for stream in kept)
    there = sum(s.type == "attachment" or bool(s.disposition & Disposition.attached_pic) for s in container.streams)
    if beside != there:
        raise OutputCheckError(f"{path}: has {there} cover pictures and attachments, expected {beside}")


def _differences(written: Sequence[Content], found: Sequence[Content]) -> tuple[str, ...]:
    """Return a sentence for each copied stream that is incomplete in the file."""
    notes: list[str] = []
    for kind in _KINDS:
        # A stream without packets in the requested part may be missing.
        left = [content for content in found if content.kind == kind and content.packets]
        expected = [content for content in written if content.kind == kind and content.packets]
        for number, content in enumerate(expected):
            if len(left) >= len(expected) - number:
                there = left.pop(0)
            else:
                there = next((each for each in left if content.is_in(each)), None)
                left = left if there is None else left[left.index(there) + 1 :]
            if there is None:
                notes.append(f"{content.name}: {content} were written, the file has none")
            elif content.name and not content.is_in(there):
                notes.append(f"{content.name}: {content} were written, the file has {there}")
    return tuple(notes)


def _duration_s(stream: VideoStream, first: int) -> Fraction | None:
    """Return the duration of the video from tick ``first`` on."""
    _, end = stream_extent(stream)
    return None if end is None or stream.time_base is None else (end - first) * stream.time_base


def _decode_group(path: Path, container: InputContainer, stream: VideoStream, group: Sequence[int]) -> None:
    missing = set(group)
    container.seek(group[0], stream=stream)
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise OutputCheckError(f"{path}: the frame at tick {frame.pts} is damaged")
        missing.discard(frame.pts if frame.pts is not None else -1)
        if not missing:
            return
    raise OutputCheckError(f"{path}: the frame at tick {min(missing)} cannot be decoded")
