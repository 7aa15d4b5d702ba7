"""Streams that start late in a recording."""

from pathlib import Path

import av
import pytest

from tests.cli.tracks import PICTURE, X264, Runner, frames, make
from tests.video.clips import ffmpeg
from ultraflash_cli.video import source as source_module


def test_sound_that_begins_after_ten_seconds_is_kept(run: Runner, cases: Path) -> None:
    source = cases / "13-sound-begins-late.ts"
    done = run(source, "out.mkv")
    assert done.code == 0, done.error
    wide = ("-probesize", "50M", "-analyzeduration", "60M")
    there = ffmpeg(*wide, "-i", str(source), "-map", "0:a", "-c", "copy", "-f", "hash", "-hash", "md5", "-")
    assert there == ffmpeg("-i", str(done.output), "-map", "0:a", "-c", "copy", "-f", "hash", "-hash", "md5", "-")


@pytest.mark.parametrize("output", ["out.mkv", "out.mp4"])
def test_a_part_without_the_sound_that_begins_late_is_made(run: Runner, cases: Path, output: str) -> None:
    done = run(cases / "13-sound-begins-late.ts", output, "--end", "0.4")
    assert done.code == 0, done.error
    assert frames(done.output) == 2


def test_sound_of_which_nothing_is_there_is_left_out_and_named(run: Runner, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.ts", f"{PICTURE.format(0.4)} -f lavfi -i sine=d=0.4 {X264} -c:a mp2")
    content = whole.read_bytes()
    packets = [content[place : place + 188] for place in range(0, len(content), 188)]
    source = tmp_path / "a.ts"
    source.write_bytes(b"".join(each for each in packets if (each[1] & 0x1F) << 8 | each[2] != 0x101))
    for output in ("out.mkv", "out.mp4"):
        done = run(source, output)
        assert done.code == 0, done.error
        assert "left out: stream 1 audio" in done.warnings and "unknown" in done.warnings
        assert frames(done.output) == 10


SPOKEN = bytes([0, 100, *range(98)])


def late_on_disc(tmp_path: Path) -> Path:
    """Part of a DVD in which subtitles begin after 14 seconds."""
    source = make(tmp_path / "a.vob", "-f lavfi -i testsrc2=s=160x120:r=25:d=16 -c:v mpeg2video -q:v 1 -g 5")
    content = source.read_bytes()
    place = content.index(b"\0\0\1\xba", len(content) // 2)
    ticks = 14 * 90000
    stamp = bytes(
        [0x21 | ticks >> 29 & 14, ticks >> 22 & 255, ticks >> 14 & 254 | 1, ticks >> 7 & 255, ticks << 1 & 254 | 1]
    )
    private = b"\x81\x80\x05" + stamp + b"\x20" + SPOKEN
    packet = b"\0\0\1\xbd" + len(private).to_bytes(2, "big") + private
    source.write_bytes(content[:place] + packet + content[place:])
    return source


def test_subtitles_that_begin_late_on_a_disc_are_kept(run: Runner, tmp_path: Path) -> None:
    done = run(late_on_disc(tmp_path), "out.mkv", "--start", "13")
    assert done.code == 0, done.error
    with av.open(str(done.output)) as result:
        (kept,) = [bytes(packet) for packet in result.demux(result.streams.subtitles[0]) if packet.size]
    assert kept == SPOKEN


def test_subtitles_that_begin_too_late_to_be_found_are_named(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "_LOOK_AHEAD", {"probesize": "20000", "analyzeduration": "100000"})
    done = run(late_on_disc(tmp_path), "out.mkv", "--start", "13")
    assert done.code == 0, done.error
    assert "left out: stream 1 subtitle dvd_subtitle, which starts too late" in done.warnings
