"""Closed captions embedded in the video stream."""

from pathlib import Path

import av
import pytest

from tests.cli.tracks import PICTURE, Runner, make
from tests.video.clips import ffmpeg
from ultraflash_cli.video.sidedata import side_data

PAIRS = ("9425", "9425", "94ad", "94ad", "9470", "9470", "c849", *["8080"] * 13, "942c", "942c", "8080", "8080")
"""Byte pairs, one per frame, that show HI on a television and clear it again."""


def captioned(path: Path, picture: str) -> Path:
    """An MPEG-2 recording with captions, as broadcasts have them: user data of each picture."""
    plain = make(path.with_suffix(".plain.ts"), f"{PICTURE.format(0.96)} -c:v mpeg2video {picture}")
    with av.open(str(plain)) as given, av.open(str(path), "w") as out:
        video = out.add_stream_from_template(given.streams.video[0], opaque=True)
        packets = [packet for packet in given.demux(given.streams.video[0]) if packet.size]
        order = sorted(packet.pts or 0 for packet in packets)
        for packet in packets:
            coded = bytes(packet)
            pair = bytes.fromhex(PAIRS[order.index(packet.pts or 0)])
            place = coded.index(b"\0\0\1\1", coded.index(b"\0\0\1\0"))  # the first slice of the picture
            data = b"\0\0\1\xb2GA94\3" + bytes([0x41, 0xFF, 0xFC]) + pair + b"\xff"
            whole = av.Packet(coded[:place] + data + coded[place:])
            whole.pts, whole.dts, whole.duration = packet.pts, packet.dts, packet.duration
            whole.time_base, whole.stream, whole.is_keyframe = packet.time_base, video, packet.is_keyframe
            out.mux_one(whole)
    return path


def captions_in(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [side_data(frame).get("A53_CC", b"") for frame in container.decode(container.streams.video[0])]


@pytest.mark.parametrize(
    ("picture", "output", "more"),
    [
        ("-bf 0", "out.mp4", ()),
        ("-bf 2", "out.mkv", ()),
        ("-bf 2", "out.mov", ("--codec", "hevc")),
        ("-bf 2", "cut.mp4", ("--start", "0.12")),
    ],
)
def test_captions_come_along_frame_by_frame(
    run: Runner, tmp_path: Path, picture: str, output: str, more: tuple[str, ...]
) -> None:
    source = captioned(tmp_path / "a.ts", picture)
    done = run(source, output, *more)
    assert done.code == 0, done.error
    assert "captions" not in done.warnings
    before = captions_in(source)[3 if output == "cut.mp4" else 0 :]
    assert captions_in(done.output) == before and len(before[0]) == 3
    said = ffmpeg("-f", "lavfi", "-i", f"movie={done.output}[out+subcc]", "-map", "0:s", "-f", "srt", "-")
    assert output == "cut.mp4" or "HI" in said


def test_captions_that_the_output_has_no_place_for_are_named(run: Runner, tmp_path: Path) -> None:
    source = captioned(tmp_path / "a.ts", "-bf 0")
    for more in (("--codec", "ffv1"), ("--fps", "50")):
        done = run(source, "out.mkv", "-y", *more)
        assert done.code == 0, done.error
        assert "closed captions are not kept" in done.warnings
