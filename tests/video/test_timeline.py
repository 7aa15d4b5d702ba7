"""Streams of a file share one clock, even if it was cut, joined or damaged: packet by
packet."""

import hashlib
import io
from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.video.broadcasts import PICTURE, SOUND, TICKS, recording, restamped
from ultraflash_cli.video.repairs import Repairs
from ultraflash_cli.video.timeline import timed_packets

PACKET = 188
Times = dict[tuple[int, bytes], int]


def times_of(content: bytes, repairs: Repairs | None = None) -> Times:
    """Return the time of each packet on the repaired clock, by stream and content,
    except packets without a time."""
    found: Times = {}
    with av.open(io.BytesIO(content), "r", format="mpegts") as container:
        for packet in timed_packets(container, {0, 1}, repairs):
            if packet.size and packet.pts is not None:
                found[packet.stream_index, hashlib.md5(bytes(packet)).digest()] = packet.pts
    return found


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return recording(folder / "a.ts", frames=90), recording(folder / "b.ts", frames=90, first=100)


@settings(max_examples=25)
@given(
    end=st.fractions(Fraction(1, 4), 1),
    start=st.fractions(0, Fraction(3, 4)),
    shift_s=st.one_of(st.integers(-3, 3), st.integers(-300, 100), st.integers(0, 80_000)),
)
def test_sound_and_picture_of_each_part_stay_as_far_apart_as_they_were(
    parts: tuple[Path, Path], end: Fraction, start: Fraction, shift_s: int
) -> None:
    before, behind = (part.read_bytes() for part in parts)
    moved = behind
    for stream in (PICTURE, SOUND):
        moved = restamped(moved, stream, lambda _, pts, dts: (pts + shift_s * TICKS, dts + shift_s * TICKS))
    cut, begin = (round(place * len(content) / PACKET) * PACKET for place, content in ((end, before), (start, behind)))
    found = times_of(before[:cut] + moved[begin:])

    ends: dict[int, int] = {}
    starts: dict[int, int] = {}
    for number, own in enumerate((times_of(before), times_of(behind))):
        shared = found.keys() & own.keys()
        offsets = {found[key] - own[key] for key in shared}
        assert max(offsets) - min(offsets) <= 2, "one shift for all streams of a part"
        for stream, content in shared:
            place = found[stream, content]
            if number:
                starts[stream] = min(place, starts.get(stream, place))
            else:
                ends[stream] = max(place, ends.get(stream, place))
    for stream in ends.keys() & starts.keys():
        assert starts[stream] - ends[stream] > -TICKS // 10, "no part lies over the one before"


@settings(max_examples=25)
@given(place=st.integers(0, 139), bit=st.integers(13, 32))
def test_a_flipped_bit_in_the_time_of_a_sound_changes_nothing(parts: tuple[Path, Path], place: int, bit: int) -> None:
    def flipped(number: int, pts: int, dts: int) -> tuple[int, int]:
        return (pts ^ 1 << bit, dts ^ 1 << bit) if number == place else (pts, dts)

    whole, repairs = parts[0].read_bytes(), Repairs()
    assert times_of(restamped(whole, SOUND, flipped), repairs) == times_of(whole)
    assert repairs.count == repairs.outliers == 1
