"""Blu-ray subtitles, whose pictures come in segments."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.cli.tracks import PICTURE, X264, Runner, frames, make


def segments(number: int) -> list[bytes]:
    """Return the segments that show a small picture on a Blu-ray: composition, window,
    palette, picture, end."""
    size, place = bytes([0, 8, 0, 4]), bytes([0, 2, 0, 2])
    composition = bytes([0, 64, 0, 48, 16, 0, number, 128, 0, 0, 1, 0, 0, 0, 0]) + place
    lines = b"".join(bytes([0, 0x88, 1, 0, 0]) for _ in range(4))
    picture = bytes([0, 0, 0, 0xC0]) + (len(lines) + 4).to_bytes(3, "big") + size + lines
    content = {0x16: composition, 0x17: bytes([1, 0]) + place + size, 0x14: bytes([0, 0, 1, 200, 128, 128, 255])}
    content |= {0x15: picture, 0x80: b""}
    return [bytes([kind]) + len(data).to_bytes(2, "big") + data for kind, data in content.items()]


def disc(path: Path, shown: Sequence[tuple[float, Sequence[bytes]]]) -> Path:
    """A recording with Blu-ray subtitles, each segment a packet."""
    picture = make(path.with_suffix(".mp4"), f"{PICTURE.format(1)} {X264}")
    with (
        av.open(str(picture)) as given,
        av.open(str(path), "w", format="mpegts", options={"mpegts_m2ts_mode": "1"}) as out,
    ):
        video = out.add_stream_from_template(given.streams.video[0], opaque=True)
        subtitles = out.add_mux_stream("hdmv_pgs_subtitle")
        waiting = [(round(start * 90000) + place, each) for start, parts in shown for place, each in enumerate(parts)]
        for packet in given.demux(given.streams.video[0]):
            while waiting and packet.dts is not None and waiting[0][0] <= packet.dts * packet.time_base * 90000:
                pts, content = waiting.pop(0)
                segment = av.Packet(content)
                segment.pts = segment.dts = pts
                segment.time_base, segment.stream = Fraction(1, 90000), subtitles
                out.mux_one(segment)
            if packet.size:
                packet.stream = video
                out.mux_one(packet)
    return path


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [(None, 3), ((1, 4), 3), ((2, 4), 3), ((0, 0), 2), ((1, 0), 2)],
    ids=["whole", "an end", "the last end", "the first beginning", "a beginning"],
)
def test_pictures_of_a_disc_come_whole_whatever_is_missing(
    run: Runner, tmp_path: Path, lacks: tuple[int, int] | None, expected: int
) -> None:
    shown: list[tuple[float, Sequence[bytes]]] = []
    for number in range(3):
        parts = [each for place, each in enumerate(segments(number)) if (number, place) != lacks]
        shown.append((0.2 + 0.2 * number, parts))
    done = run(disc(tmp_path / "a.m2ts", shown), "out.mkv")
    assert done.code == 0, done.error
    assert frames(done.output) == 25
    with av.open(str(done.output)) as result:
        kept = [bytes(packet) for packet in result.demux(result.streams.subtitles[0]) if packet.size]
    whole = [b"".join(segments(number)) for number in range(3)]
    assert kept == [each for number, each in enumerate(whole) if lacks != (number, 0)] and len(kept) == expected
