"""Joins: truncated, killed, and checked."""

import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.video.clips import (
    enlarge,
    ffmpeg,
    packet_times,
    shown_times,
)
from tests.video.comparing import checked, facts
from tests.video.rows import LONG, ROWS, SINE, TEST, X264
from ultraflash_cli.errors import OutputCheckError
from ultraflash_cli.video.check import check_output
from ultraflash_cli.video.join import join
from ultraflash_cli.video.probe import probe
from ultraflash_cli.video.timecode import moved_timecode


@pytest.mark.parametrize(
    ("text", "by_s", "source_rate", "rate", "expected"),
    [
        ("01:02:03:04", Fraction(0), 25, 25, "01:02:03:04"),
        ("01:02:03:04", Fraction(1), 25, 25, "01:02:04:04"),
        ("23:59:59:24", Fraction(1, 25), 25, 25, "00:00:00:00"),
        ("00:00:00:12", Fraction(0), 24, 48, "00:00:00:24"),
        ("00:00:59;29", Fraction(1001, 30000), Fraction(30000, 1001), Fraction(30000, 1001), "00:01:00;02"),
        ("00:09:59;29", Fraction(1001, 30000), Fraction(30000, 1001), Fraction(30000, 1001), "00:10:00;00"),
        ("00:01:00;04", Fraction(0), Fraction(60000, 1001), Fraction(60000, 1001), "00:01:00;04"),
        ("00:00:00:40", Fraction(0), 25, 25, None),
        ("00:00:10;00", Fraction(0), Fraction(30000, 1001), 25, None),
        ("noon", Fraction(0), 25, 25, None),
    ],
)
def test_time_codes_move_with_the_picture(
    text: str, by_s: Fraction, source_rate: Fraction, rate: Fraction, expected: str | None
) -> None:
    found = moved_timecode(text, by_s=by_s, source_rate=Fraction(source_rate), rate=Fraction(rate))
    assert found == expected


def test_a_cut_takes_everything_in_step(tmp_path: Path, made: Path) -> None:
    source = tmp_path / "a.mp4"
    ffmpeg(
        *f"{LONG} {SINE.format(1.2)} -i {made}/c.jpg -i {made}/long.mp4 -i {made}/a.srt -map 0 -map 1 -map 3:v -map 4 "
        f"-map 2 -c:v:0 libx264 -c:v:1 copy -c:v:2 copy -disposition:v:0 default -disposition:v:1 0 "
        f"-disposition:v:2 attached_pic -c:a aac -c:s mov_text -timecode 01:02:03:04".split(),
        str(source),
    )
    window = (Fraction(1, 5), Fraction(4, 5))
    result = checked(enlarge(source, tmp_path, window=window))
    assert shown_times(result.path) == [Fraction(n, 25) for n in range(15)]
    assert facts(result.path)["TIMECODE"] == "01:02:03:09"
    videos = [s for s in probe(result.path).streams if s.kind == "video"]
    assert sorted(s.is_picture for s in videos) == [False, False, True]
    inside = [t for t in packet_times(source, "audio")[0] if window[0] <= t + Fraction(512, 48000) < window[1]]
    heard = packet_times(result.path, "audio")[0]
    assert max(abs(b - (a - window[0])) for a, b in zip(inside, heard, strict=True)) < Fraction(1, 20000)
    shown = ffmpeg("-i", str(result.path), "-map", "0:s", "-f", "srt", "-")
    assert "Second line" in shown and "First line" not in shown


def test_a_stream_of_which_nothing_lies_in_the_cut_does_not_fail_the_check(tmp_path: Path, made: Path) -> None:
    source = tmp_path / "a.mp4"
    ffmpeg(*ROWS["subtitles of mp4"].made.replace("{dir}", str(made)).split(), str(source))
    result = checked(enlarge(source, tmp_path, window=(Fraction(0), Fraction(1, 25))))
    assert ("subtitle", 0) in result.joined.packets


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_cover_and_tags_that_mp4_cannot_hold_together_are_named(tmp_path: Path, made: Path, name: str) -> None:
    source = tmp_path / "a.mkv"
    ffmpeg(
        *f"{TEST} {X264} -attach {made}/c.jpg -metadata:s:t:0 mimetype=image/jpeg -metadata camera=C".split(),
        str(source),
    )
    result = checked(enlarge(source, tmp_path, suffix=Path(name).suffix))
    assert bool(result.warnings) == (name == "a.mp4")
    assert any("CAMERA" in warning for warning in result.warnings) == (name == "a.mp4")
    assert any(stream.is_picture for stream in probe(result.path).streams)


KILLED = """
import os, pickle, signal, sys
from av.container.output import OutputContainer
from ultraflash_cli.video import join as module
arguments, limit = pickle.load(sys.stdin.buffer)
plain, left = module._interleave, [limit]
def dying(packets):
    for packet in packets:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        yield packet
module._interleave = lambda container, pictures, copied, written: plain(
    container, dying(pictures), dying(copied), written
)
module.join(*arguments)
"""


def test_a_join_that_is_killed_leaves_nothing_and_the_next_one_produces_the_same_bytes(
    tmp_path: Path, made: Path
) -> None:
    result = enlarge(made / "long.mp4", tmp_path, suffix=".mkv")
    whole = result.path.read_bytes()
    target = tmp_path / "again.mkv"
    arguments = (result.segments, result.info, result.plan, result.spec, target)
    for limit in (2, 40):
        command = [sys.executable, "-c", KILLED]
        done = subprocess.run(command, input=pickle.dumps((arguments, limit)), check=False, cwd=Path.cwd())
        assert done.returncode == -signal.SIGKILL and not target.exists()
        join(*arguments)
        assert target.read_bytes() == whole
        target.unlink()
        assert not list(tmp_path.glob("*.part.*"))


def test_the_check_misses_no_packet_and_no_damage(tmp_path: Path, made: Path) -> None:
    result = checked(enlarge(made / "long.mp4", tmp_path))
    picture, sound = result.joined.contents
    regrouped = replace(result.joined, contents=(picture, replace(sound, packets=3)))
    assert check_output(result.path, plan=result.plan, frames=30, joined=regrouped) == ()
    short = replace(result.joined, contents=(picture, replace(sound, packets=3, size_bytes=sound.size_bytes // 2)))
    (note,) = check_output(result.path, plan=result.plan, frames=30, joined=short)
    assert note.startswith("stream 1 audio aac: 3 packets")
    with av.open(str(result.path)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size and p.pos is not None]
    content = bytearray(result.path.read_bytes())
    damaged = max(packets[-8:], key=lambda packet: 0 if packet.is_keyframe else packet.size)
    place = damaged.pos or 0
    content[place + 8 : place + damaged.size] = bytes(damaged.size - 8)
    (tmp_path / "broken.mp4").write_bytes(content)
    with pytest.raises(OutputCheckError):
        check_output(tmp_path / "broken.mp4", plan=result.plan, frames=30)
