"""Parts removed by edit lists stay removed, and subtitles are shown at their times,
through the command."""

import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from struct import pack, unpack_from

import imageio_ffmpeg
import numpy as np
import pytest

from tests.cli.clocks import cases, doubled, upscale
from tests.cli.independent import look
from tests.video.clips import ClipPlan, ffmpeg, make_clip

__all__ = ["cases", "doubled"]

PARENTS = (b"moov", b"trak", b"edts")
Part = tuple[Fraction, Fraction]
"""Start and length of a part that is kept, in seconds."""


def edited(content: bytes, parts: Sequence[Part]) -> bytes:
    """Give every track of an MP4 whose index is at its end an edit list of these parts."""
    place = content.index(b"mvhd") + 16
    movie_unit = unpack_from(">I", content, place)[0]

    def boxes(inside: bytes, media_unit: int = 0) -> bytes:
        made, at = b"", 0
        while at < len(inside):
            size, kind = unpack_from(">I4s", inside, at)
            body = inside[at + 8 : at + size]
            if kind == b"trak":
                media_unit = unpack_from(">I", body, body.index(b"mdhd") + 16)[0]
            if kind == b"elst":
                (delay,) = unpack_from(">i", body, 12)
                entries = [(length * movie_unit, start * media_unit + delay) for start, length in parts]
                body = pack(">II", 0, len(parts))
                body += b"".join(pack(">IiI", round(length), round(start), 1 << 16) for length, start in entries)
            elif kind in PARENTS:
                body = boxes(body, media_unit)
            made += pack(">I4s", len(body) + 8, kind) + body
            at += size
        return made

    index = content.index(b"moov") - 4
    return content[:index] + boxes(content[index:])


def samples(path: Path) -> bytes:
    """Return the audio as the other program decodes it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-map", "0:a", "-f", "s16le", "-"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def lines(path: Path, track: int = 0) -> list[tuple[str, str, str]]:
    """Return the start, end and text of every subtitle, as read by the other
    program."""
    found: list[tuple[str, str, str]] = []
    for block in ffmpeg("-i", str(path), "-map", f"0:s:{track}", "-f", "srt", "-").strip().split("\n\n"):
        if " --> " in block:
            _, times, *text = block.splitlines()
            start, _, end = times.replace(",", ".").partition(" --> ")
            found.append((start, end, " / ".join(text)))
    return found


def cut_clip(folder: Path, parts: Sequence[Part]) -> Path:
    plan = ClipPlan(pts=range(50), audio=("aac",), options={"preset": "ultrafast", "g": "5", "bf": "0", "crf": "1"})
    whole = make_clip(folder / "whole.mp4", plan)
    source = folder / "cut.mp4"
    source.write_bytes(edited(whole.read_bytes(), parts))
    return source


@pytest.mark.parametrize(
    "parts",
    [
        [(Fraction(0), Fraction(2, 5)), (Fraction(6, 5), Fraction(2, 5))],
        [(Fraction(0), Fraction(1, 5)), (Fraction(4, 5), Fraction(1, 5)), (Fraction(8, 5), Fraction(2, 5))],
        [(Fraction(4, 5), Fraction(4, 5))],
    ],
    ids=["the middle", "twice", "the beginning"],
)
def test_what_an_edit_list_cuts_out_does_not_come_back(tmp_path: Path, parts: Sequence[Part]) -> None:
    source = cut_clip(tmp_path, parts)
    before = look(source, tmp_path)
    for suffix in (".mp4", ".mov"):
        output = tmp_path / f"out{suffix}"
        assert upscale(source, output) == 0
        after = look(output, tmp_path)
        assert len(after.times) == len(before.times) == 20
        assert after.times == before.times and abs(after.end - before.end) <= Fraction(1, 1000)
        assert len(samples(output)) == len(samples(source))
        assert abs(after.tracks[0].end - after.end) <= Fraction(1024, 48000)


def test_sound_before_a_cut_beginning_does_not_come_back_in_matroska(tmp_path: Path) -> None:
    source = cut_clip(tmp_path, [(Fraction(4, 5), Fraction(4, 5))])
    output = tmp_path / "out.mkv"
    assert upscale(source, output) == 0
    extra = len(samples(output)) - len(samples(source))
    assert 0 <= extra <= Fraction(11, 100) * 48000 * 4, "no more than a decoder warms up with"
    after = look(output, tmp_path)
    assert after.times[0] <= Fraction(11, 100)


def test_a_reported_edit_list_of_two_parts_keeps_its_sound(tmp_path: Path, cases: Path) -> None:
    source, output = cases / "12-edit-list-two-parts.mp4", tmp_path / "out.mp4"
    assert upscale(source, output) == 0
    given, kept = (np.frombuffer(samples(path), np.int16).astype(int) for path in (source, output))
    assert len(kept) == len(given)
    # After the cut the decoder has different preceding audio, for the length of one
    # packet.
    cut, packet = 19 * 1024, 1024
    assert (kept[:cut] == given[:cut]).all()
    assert np.abs(kept[cut + packet :] - given[cut + packet :]).mean() < 0.02 * np.abs(given).mean()
    after = look(output, tmp_path)
    assert len(after.times) == 20 and after.end == after.tracks[0].end == Fraction(4, 5)


LINES = [("00.100", "00.900", "one"), ("00.300", "00.600", "two"), ("00.500", "01.200", "<i>three</i>")]
OVERLAPS = {
    "three at once": (
        LINES,
        [
            ("00.100", "00.300", "one"),
            ("00.300", "00.500", "one / two"),
            ("00.500", "00.600", "one / two / <i>three</i>"),
            ("00.600", "00.900", "one / <i>three</i>"),
            ("00.900", "01.200", "<i>three</i>"),
        ],
    ),
    "the same time": (
        [("00.200", "00.800", "<b>left</b>"), ("00.200", "00.800", "right")],
        [("00.200", "00.800", "<b>left</b> / right")],
    ),
    "one behind the other": (
        [("00.200", "00.800", "a"), ("00.800", "01.000", "b"), ("01.200", "01.600", "c")],
        [("00.200", "00.800", "a"), ("00.800", "01.000", "b"), ("01.200", "01.600", "c")],
    ),
}


def with_lines(folder: Path, given: Sequence[tuple[str, str, str]], *, audio: Sequence[str] = ("aac",)) -> Path:
    blocks = [f"{n}\n00:00:{a} --> 00:00:{b}\n{text}\n" for n, (a, b, text) in enumerate(given, 1)]
    plan = ClipPlan(pts=range(50), size=(32, 24), audio=audio, subtitles="\n".join(blocks).replace(".", ","))
    return make_clip(folder / "in.mkv", plan)


def full(given: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return [(f"00:00:{start}", f"00:00:{end}", text) for start, end, text in given]


@pytest.mark.parametrize("name", OVERLAPS)
@pytest.mark.parametrize("audio", [(), ("aac",)], ids=["silent", "with sound"])
def test_lines_that_overlap_are_shown_together_in_mp4(tmp_path: Path, name: str, audio: Sequence[str]) -> None:
    given, expected = OVERLAPS[name]
    source = with_lines(tmp_path, given, audio=audio)
    assert upscale(source, tmp_path / "out.mp4") == 0
    assert lines(tmp_path / "out.mp4") == full(expected)
    assert upscale(source, tmp_path / "out.mkv") == 0
    assert lines(tmp_path / "out.mkv") == full(given)


def test_lines_of_mp4_are_cut_to_the_part_that_is_kept(tmp_path: Path) -> None:
    given = [("00.000", "00.300", "before"), ("00.300", "01.900", "long")]
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    ffmpeg("-i", str(with_lines(tmp_path, given, audio=())), "-c", "copy", "-c:s", "mov_text", str(source))
    assert upscale(source, output, "--start", "0.4", "--end", "1.4") == 0
    assert lines(output) == [("00:00:00.000", "00:00:01.000", "long")]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_lines_are_cut_to_the_part_that_is_kept(tmp_path: Path, suffix: str) -> None:
    given = [("00.000", "01.900", "long"), ("00.100", "00.400", "before"), ("01.900", "01.980", "after")]
    source = with_lines(tmp_path, given, audio=())
    output = tmp_path / f"out{suffix}"
    assert upscale(source, output, "--start", "0.4", "--end", "1.4") == 0
    assert lines(output) == [("00:00:00.000", "00:00:01.000", "long")]
    assert upscale(source, output, "--start", "1.8") == 0
    assert lines(output) == [("00:00:00.000", "00:00:00.100", "long"), ("00:00:00.100", "00:00:00.180", "after")]


def test_reported_lines_are_shown_for_their_time(tmp_path: Path, cases: Path) -> None:
    overlapping, long = cases / "19-overlapping-lines.mkv", cases / "20-long-line.mkv"
    assert upscale(overlapping, tmp_path / "a.mp4") == 0
    stays, short = "Long line that stays", "Short line"
    shown = [("00.000", "00.800", stays), ("00.800", "01.400", f"{stays} / {short}"), ("01.400", "03.000", stays)]
    assert lines(tmp_path / "a.mp4")[:3] == full(shown)
    for suffix in (".mkv", ".mp4"):
        assert upscale(long, tmp_path / f"b{suffix}", "--start", "0", "--end", "1") == 0
        assert lines(tmp_path / f"b{suffix}") == full([("00.000", "01.000", "Stays for nearly all")])
