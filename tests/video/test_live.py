"""A stream compared with the file made from the same segments, and the timing of its
bytes."""

import io
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from av.stream import AttachmentStream

from tests.video.clips import SUBTITLES, ClipPlan, Result, enlarge, make_clip, picture, write_segments
from ultraflash_cli.errors import OutputCheckError, OutputError
from ultraflash_cli.video.containers import plan_alone, plan_streams
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.encode import choose_spec, made_spec
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.join import join_alone
from ultraflash_cli.video.live import Streamed, stream_clip
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.probe import probe
from ultraflash_cli.video.segment_file import SegmentFile

Packets = list[list[tuple[int | None, bytes]]]


class Sink(io.RawIOBase):
    """A byte sink that is not seekable."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        self.taken += content
        return len(content)


def packets_of(content: bytes | Path) -> tuple[Packets, list[Any]]:
    """Return the packets of every stream with their times, and the file's other
    metadata."""
    with av.open(io.BytesIO(content) if isinstance(content, bytes) else str(content), "r") as container:
        packets: Packets = [[] for _ in container.streams]
        streams = [stream for stream in container.streams if not isinstance(stream, AttachmentStream)]
        for packet in container.demux(*streams):
            if packet.size:
                packets[packet.stream_index].append((packet.pts, bytes(packet)))
        tags = {name: text for name, text in container.metadata.items() if name != "ENCODER"}
        attached = [s.data for s in container.streams if isinstance(s, AttachmentStream)]
        said = [tags, [s.language for s in container.streams], container.chapters(), attached]
    return packets, said


def streamed(result: Result, *, window: tuple[Fraction, Fraction] | None = None) -> tuple[Sink, Streamed]:
    sink = Sink()
    return sink, stream_clip(result.segments, result.plan, result.spec, sink, info=result.info, window=window)


@pytest.mark.parametrize(
    ("codec", "plan"),
    [
        pytest.param(
            "h264", ClipPlan(audio=("aac",), subtitles=SUBTITLES, chapters=2, attachment=True), id="everything"
        ),
        pytest.param("hevc", ClipPlan(pts=tuple(range(175, 195)), audio=("aac", "aac")), id="starts late"),
        pytest.param("vp9", ClipPlan(), id="picture alone"),
        pytest.param("ffv1", ClipPlan(aspect=Fraction(4, 3)), id="wide pixels"),
    ],
)
def test_a_stream_holds_what_the_file_holds(tmp_path: Path, codec: str, plan: ClipPlan) -> None:
    result = enlarge(make_clip(tmp_path / "a.mkv", plan), tmp_path, suffix=".mkv", codec=codec)
    sink, done = streamed(result)
    assert packets_of(bytes(sink.taken)) == packets_of(result.path)
    assert done.frames == len(result.frames)
    assert done.notes == result.joined.notes
    assert streamed(result)[0].taken == sink.taken


def test_a_part_of_a_clip_begins_at_0_in_a_stream_too(tmp_path: Path) -> None:
    window = (Fraction(2, 25), Fraction(14, 25))
    source = make_clip(tmp_path / "a.mkv", ClipPlan(pts=tuple(range(20)), audio=("aac",)))
    result = enlarge(source, tmp_path, suffix=".mkv", window=window)
    sink, done = streamed(result, window=window)
    assert packets_of(bytes(sink.taken)) == packets_of(result.path)
    assert done.frames == 12


def test_a_clip_without_a_source_is_streamed_with_its_tags(tmp_path: Path) -> None:
    spec = made_spec(
        width_px=64,
        height_px=48,
        rate=Fraction(16),
        codec="h264",
        crf=10,
        pix_fmt="auto",
        enc_options=(),
        threads=1,
        suffix=".mkv",
    )
    frames = [Frame(1000 * n, 1000, picture(n)) for n in range(9)]
    segments = write_segments(tmp_path, spec, frames, per_segment=4)
    plan = plan_alone(".mkv", codec="h264", frame_s=Fraction(1, 16))
    tags = {"title": "a red car", "comment": "Generated"}
    join_alone(segments, plan, spec, tmp_path / "out.mkv", tags=tags)
    sink = Sink()
    assert stream_clip(segments, plan, spec, sink, tags=tags).frames == 9
    assert packets_of(bytes(sink.taken)) == packets_of(tmp_path / "out.mkv")


def test_a_sound_that_begins_before_zero_is_named(tmp_path: Path) -> None:
    result = enlarge(make_clip(tmp_path / "a.mp4", ClipPlan(audio=("aac",))), tmp_path, suffix=".mkv")
    sink, done = streamed(result)
    assert packets_of(bytes(sink.taken)) == packets_of(result.path)
    assert done.notes == result.joined.notes != ()


@pytest.mark.parametrize("suffix", [".mkv", ".y4m"])
def test_the_pictures_of_a_segment_are_out_before_the_next_segment_is_asked_for(tmp_path: Path, suffix: str) -> None:
    info = probe(make_clip(tmp_path / "a.mkv", ClipPlan(pts=tuple(range(60)), audio=("aac",))))
    codec = "y4m" if suffix == ".y4m" else "h264"
    spec = choose_spec(info, width_px=64, height_px=48, codec=codec, threads=1, suffix=suffix)
    made = write_segments(tmp_path, spec, list(read_frames(info, warn=print)), per_segment=24)
    sink, seen = Sink(), list[int]()

    def segments() -> Iterator[SegmentFile]:
        for segment in made:
            yield segment
            with av.open(io.BytesIO(bytes(sink.taken)), "r") as container:
                seen.append(sum(1 for _ in container.decode(video=0)))

    stream_clip(segments(), plan_streams(info, suffix, codec=spec.codec), spec, sink, info=info)
    # In Matroska the current cluster, a quarter of a second, waits for the next one.
    behind = 0 if suffix == ".y4m" else 8
    assert all(end - behind <= count <= end for count, end in zip(seen, (24, 48, 60), strict=True)), seen


def test_a_pipe_is_followed_while_it_is_read(tmp_path: Path) -> None:
    """Audio comes from a second reader that follows the first, and nothing waits for
    the end of the pipe."""
    source = make_clip(tmp_path / "a.mkv", ClipPlan(pts=tuple(range(40)), audio=("aac",)))
    whole = source.read_bytes()
    result = enlarge(source, tmp_path, suffix=".mkv")

    class Slow(io.RawIOBase):
        """A pipe that returns 1,000 bytes at a time."""

        def __init__(self) -> None:
            self.given = 0

        def read(self, size: int = -1, /) -> bytes:
            piece = whole[self.given : self.given + min(size, 1000)]
            self.given += len(piece)
            return piece

    stdin = Slow()
    pipe = Pipe(stdin)
    info = probe(pipe)
    pipe.spool_to(tmp_path / "spool")
    sink, ahead = Sink(), list[bool]()
    spec = choose_spec(info, width_px=128, height_px=96, codec="h264", threads=1, suffix=".mkv")

    def segments() -> Iterator[SegmentFile]:
        frames = list[Frame]()
        for number, frame in enumerate(read_frames(info, warn=print)):
            frames.append(frame)
            if len(frames) == 10:
                (segment,) = write_segments(tmp_path / f"{number}", spec, frames, per_segment=10, scale=2)
                frames.clear()
                yield segment
                ahead.append(len(sink.taken) > 0 and stdin.given < len(whole))
        pipe.read_to_end()

    for number in (9, 19, 29, 39):
        (tmp_path / f"{number}").mkdir()
    stream_clip(segments(), result.plan, spec, sink, info=info)
    packets, _ = packets_of(bytes(sink.taken))
    assert packets[1] == packets_of(source)[0][1]
    assert ahead[0], "the first pictures are out while the pipe still gives some"


def test_a_segment_that_does_not_hold_what_was_written_ends_the_stream(tmp_path: Path) -> None:
    result = enlarge(make_clip(tmp_path / "a.mkv", ClipPlan()), tmp_path, suffix=".mkv")
    with pytest.raises(OutputError, match="overlap"):
        streamed(replace(result, segments=[result.segments[1], result.segments[0]]))
    first = replace(result.segments[0], frames=4)
    with pytest.raises(OutputCheckError, match="has 5 frames, expected 4"):
        streamed(replace(result, segments=[first, *result.segments[1:]]))
