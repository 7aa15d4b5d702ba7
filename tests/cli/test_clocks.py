"""Files with timestamps that step, jump, are wrong or missing, through the command:
audio and video stay in sync."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest

from tests.cli.clocks import doubled, upscale
from tests.cli.independent import Seen, look
from tests.jobs.doubler import job
from tests.jobs.doubler import upscale as run
from tests.video.broadcasts import PICTURE, SOUND, TICKS, recording, restamped, telecined, unstamped
from tests.video.clips import ClipPlan, ffmpeg, make_clip
from ultraflash_cli.errors import Interrupted

__all__ = ["doubled"]

FRAME = Fraction(1, 25)
MSEC = Fraction(1, 1000)
BIT = 1 << 31


def steps(times: tuple[Fraction, ...]) -> list[Fraction]:
    ordered = sorted(times)
    return [after - before for before, after in pairwise(ordered)]


def seen(source: Path, folder: Path, *options: str, suffix: str = ".mp4") -> Seen:
    output = folder / f"out{suffix}"
    assert upscale(source, output, *options) == 0
    return look(output, folder)


def moved(part: bytes, ticks: int) -> bytes:
    """Return the same recording with its clock shifted."""
    for stream in (PICTURE, SOUND):
        part = restamped(part, stream, lambda _, pts, dts: (pts + ticks, dts + ticks))
    return part


def from_on(first: int, ticks: int) -> Callable[[int, int, int], tuple[int, int]]:
    return lambda number, pts, dts: (pts + ticks, dts + ticks) if number >= first else (pts, dts)


def only(place: int, pts_ticks: int, dts_ticks: int) -> Callable[[int, int, int], tuple[int, int]]:
    return lambda number, pts, dts: (pts + pts_ticks, dts + dts_ticks) if number == place else (pts, dts)


@dataclass(frozen=True)
class Joined:
    """Recordings concatenated into one file."""

    make: Callable[[bytes], bytes]
    """Makes the file from a recording of one second."""
    parts: int
    says: str
    pause_s: int = 0
    """Length of the pause between two recordings."""


JOINED = {
    "one second back": Joined(lambda part: part + part, 2, "restart once at 1.00 s"),
    "back three times": Joined(lambda part: part * 4, 4, "restart 3 times, first at 1.00 s"),
    "a little back": Joined(lambda part: part + moved(part, TICKS * 3 // 4), 2, "restart once"),
    "back by hours": Joined(lambda part: moved(part, 20_000 * TICKS) + part, 2, "restart once"),
    "ahead by ten minutes": Joined(lambda part: part + moved(part, 600 * TICKS), 2, "restart once"),
    "ahead by a pause": Joined(lambda part: part + moved(part, 30 * TICKS), 2, "", pause_s=29),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_recordings_keep_sound_in_sync_with_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    case = JOINED[name]
    source = tmp_path / "in.ts"
    source.write_bytes(case.make(recording(tmp_path / "part.ts").read_bytes()))
    after = seen(source, tmp_path)
    said = capsys.readouterr().err
    assert case.says in said and ("timestamps restart" in said) == bool(case.says)

    (sound,) = after.tracks
    shown, heard = sorted(after.times), sorted(sound.times)
    per_part = len(heard) // case.parts
    assert len(shown) == 25 * case.parts and per_part * case.parts == len(heard)
    apart = {shown[25 * n] - heard[per_part * n] for n in range(case.parts)}
    assert max(apart) - min(apart) <= MSEC, "sound and picture of all parts lie alike"
    for before, behind in pairwise(shown):
        expected = FRAME + (case.pause_s if behind - before > 1 else 0)
        assert -MSEC <= behind - before - expected <= FRAME
    assert min(steps(sound.times)) >= Fraction(23, 1000), "no sound lies over another"
    end = shown[-1] + FRAME
    assert abs(end - sound.end) <= FRAME
    assert abs(end - shown[0] - case.parts - case.pause_s) <= FRAME


@pytest.mark.parametrize("joined", [False, True], ids=["alone", "joined"])
def test_a_counter_that_wraps_is_no_step(tmp_path: Path, capsys: pytest.CaptureFixture[str], joined: bool) -> None:
    part = recording(tmp_path / "whole.ts", frames=50).read_bytes()
    whole, source = tmp_path / "whole.ts", tmp_path / "in.ts"
    whole.write_bytes(part + (part if joined else b""))
    source.write_bytes(moved(part, (1 << 33) - TICKS) + (part if joined else b""))
    right, after = seen(whole, tmp_path), seen(source, tmp_path)
    assert capsys.readouterr().err.count("timestamps restart") == (2 if joined else 0)
    assert steps(after.times) == steps(right.times)
    assert steps(after.tracks[0].times) == steps(right.tracks[0].times)
    assert after.times[0] - after.tracks[0].times[0] == right.times[0] - right.tracks[0].times[0]


WRONG: dict[str, tuple[int, Callable[[int, int, int], tuple[int, int]]]] = {
    "a picture's": (PICTURE, only(12, BIT, BIT)),
    "a picture's time of decoding": (PICTURE, only(12, 0, BIT)),
    "a picture's time of decoding, half a second early": (PICTURE, only(12, 0, -TICKS // 2)),
    "a picture's time of showing": (PICTURE, only(12, 1 << 28, 0)),
    "the first picture's": (PICTURE, only(0, BIT, BIT)),
    "the last picture's": (PICTURE, only(24, BIT, BIT)),
    "a sound's": (SOUND, only(9, 1 << 30, 1 << 30)),
    "a sound's, half a second early": (SOUND, only(20, -TICKS // 2, -TICKS // 2)),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_timestamp_among_good_ones_is_put_between_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    whole = recording(tmp_path / "whole.ts")
    source = tmp_path / "in.ts"
    source.write_bytes(restamped(whole.read_bytes(), *WRONG[name]))
    right, after = seen(whole, tmp_path), seen(source, tmp_path)
    assert capsys.readouterr().err.count("one timestamp is far from the neighbouring ones") == 1
    assert after.times == right.times and after.end == right.end
    assert after.tracks == right.tracks


@pytest.mark.parametrize(
    ("kind", "place", "bit"),
    [("video", 20, 0x4000), ("video", 20, 0x100), ("video", 0, 0x4000), ("audio", 30, 0x4000)],
    ids=["a picture, 16 s late", "a picture, a little late", "the first picture", "sound"],
)
def test_one_wrong_timestamp_in_matroska_is_put_between_good_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, place: int, bit: int
) -> None:
    whole, source = tmp_path / "whole.mkv", tmp_path / "in.mkv"
    ffmpeg("-i", str(recording(tmp_path / "a.ts", frames=50)), "-c", "copy", str(whole))
    content = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        packet = [packet for packet in container.demux(stream) if packet.size][place]
        assert packet.pos is not None
        content[packet.pos + 1] ^= bit >> 8  # its time since the start of its cluster follows the number of its track
    source.write_bytes(content)
    right, after = seen(whole, tmp_path), seen(source, tmp_path)
    assert capsys.readouterr().err.count("one timestamp is far from the neighbouring ones") == 1
    assert after.times == right.times and after.tracks == right.tracks


SPARSE = (0, 40, 1000, 3500, 3540, 3580, 9000, 21000, 21040, 30000, 30040, 47000, 47040, 47080, 60000, 60040, 60080)


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".flv", ".mp4"])
def test_frames_that_are_far_apart_keep_their_times_whatever_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    options = {"preset": "medium", "bf": "3", "g": "8", "crf": "20"}
    plan = ClipPlan(pts=SPARSE, last_duration=40, time_base=MSEC, size=(32, 24), options=options, audio=("mp2",))
    source = make_clip(tmp_path / f"in{suffix}", plan) if suffix != ".flv" else tmp_path / "in.flv"
    if suffix == ".flv":
        ffmpeg("-i", str(make_clip(tmp_path / "a.mp4", plan)), "-c:v", "copy", "-c:a", "aac", str(source))
    after = seen(source, tmp_path)
    said = capsys.readouterr().err
    assert "timestamp" not in said and "anew" not in said
    shown = sorted(after.times)
    assert [time - shown[0] for time in shown] == [ms * MSEC for ms in SPARSE]
    assert max(steps(after.tracks[0].times)) < Fraction(1, 10)


@pytest.mark.parametrize("jump_s", [-2, 1, 5])
def test_sound_whose_timestamps_jump_alone_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], jump_s: int
) -> None:
    whole = recording(tmp_path / "whole.ts", frames=125)
    source = tmp_path / "in.ts"
    source.write_bytes(restamped(whole.read_bytes(), SOUND, from_on(90, jump_s * TICKS)))
    right, after = seen(whole, tmp_path), seen(source, tmp_path)
    assert f"its audio timestamps jump {'back' if jump_s < 0 else 'ahead'} once" in capsys.readouterr().err
    assert after.times == right.times and after.tracks == right.tracks


def test_a_pause_of_the_sound_alone_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = recording(tmp_path / "whole.ts", frames=125)
    source = tmp_path / "in.mkv"
    ffmpeg("-i", str(whole), "-c", "copy", "-bsf:a", "noise=drop='between(n,60,140)'", str(source))
    after = seen(source, tmp_path)
    assert "jump" not in capsys.readouterr().err
    assert max(steps(after.tracks[0].times)) > 1.9
    assert abs(after.end - after.tracks[0].end) <= FRAME


@pytest.mark.parametrize("suffix", [".mkv", ".flv", ".vob"])
def test_other_containers_restart_with_all_their_streams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    part, lines = recording(tmp_path / "part.ts", frames=50), tmp_path / "a.srt"
    lines.write_text("1\n00:00:00,200 --> 00:00:00,800\nFirst line\n\n2\n00:00:00,900 --> 00:00:01,400\nSecond\n")
    made = {
        ".mkv": ["-i", str(lines), "-map", "0", "-map", "1", "-c", "copy", "-c:s", "srt", "-live", "1"],
        ".flv": ["-c:v", "copy", "-c:a", "aac", "-flvflags", "no_duration_filesize"],
        ".vob": ["-c:v", "mpeg2video", "-bf", "2", "-c:a", "copy"],
    }[suffix]
    ffmpeg("-i", str(part), *made, str(tmp_path / f"one{suffix}"))
    content = (tmp_path / f"one{suffix}").read_bytes()
    begins = {".mkv": content.find(b"\x1f\x43\xb6\x75"), ".flv": 13, ".vob": 0}[suffix]
    source = tmp_path / f"in{suffix}"
    source.write_bytes(content + content[begins:])
    after = seen(source, tmp_path, suffix=".mkv" if suffix == ".mkv" else ".mp4")
    assert "restart once" in capsys.readouterr().err

    sound = next(track for track in after.tracks if track.kind == "Audio")
    shown, heard = sorted(after.times), sorted(sound.times)
    assert len(shown) == 100 and all(FRAME - MSEC <= step <= 2 * FRAME for step in steps(after.times))
    assert abs((shown[50] - shown[0]) - (heard[len(heard) // 2] - heard[0])) <= 2 * MSEC
    assert abs(after.end - sound.end) <= FRAME
    assert len(seen(source, tmp_path, "--start", "3").times) in (25, 26)
    for track in after.tracks:
        if track.kind == "Subtitle":
            first = [time - shown[0] for time in track.times[:2]]
            second = [time - shown[50] for time in track.times[2:]]
            assert max(abs(a - b) for a, b in zip(first, second, strict=True)) <= 2 * MSEC


@pytest.mark.parametrize(
    ("suffix", "rate", "bframes"),
    [(".vob", "25", "0"), (".vob", "30000/1001", "2"), (".ts", "25", "2")],
    ids=["disc", "disc with b-frames", "broadcast"],
)
def test_a_picture_without_timestamps_begins_with_the_sound_and_keeps_its_pace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, rate: str, bframes: str
) -> None:
    whole, source = tmp_path / f"whole{suffix}", tmp_path / f"in{suffix}"
    given = ["-r", rate, "-i", str(recording(tmp_path / "a.ts", frames=50)), "-c:v", "mpeg2video", "-bf", bframes]
    ffmpeg(*given, "-c:a", "mp2", str(whole))
    source.write_bytes(unstamped(whole.read_bytes()))
    after = seen(source, tmp_path)
    assert "lost" not in capsys.readouterr().err
    step = 1 / Fraction(rate)
    (sound,) = after.tracks
    assert len(after.times) == 50 and max(abs(each - step) for each in steps(after.times)) <= Fraction(1, TICKS)
    assert abs(after.times[0] - sound.times[0]) <= MSEC
    assert abs(after.end - after.times[0] - 50 * step) <= MSEC


@pytest.mark.parametrize("stamped", [False, True], ids=["without timestamps", "with them"])
def test_film_on_a_disc_keeps_the_length_of_its_repeated_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stamped: bool
) -> None:
    plain = recording(tmp_path / "a.ts", frames=24, sound=False)
    rates = ["-r", "30000/1001", "-i", str(plain), "-c:v", "mpeg2video", "-bf", "0"]
    ffmpeg(*rates, "-f", "mpeg2video", str(tmp_path / "a.m2v"))
    (tmp_path / "b.m2v").write_bytes(telecined((tmp_path / "a.m2v").read_bytes()))
    source = tmp_path / "in.vob"
    ffmpeg("-i", str(tmp_path / "b.m2v"), "-c", "copy", str(source))
    if not stamped:
        source.write_bytes(unstamped(source.read_bytes()))
    after = seen(source, tmp_path, "--deinterlace", "off", "--codec", "ffv1", suffix=".mkv")
    assert "lost" not in capsys.readouterr().err
    field = Fraction(1001, 60000)
    for number, step in enumerate(steps(after.times)):
        assert abs(step - (2 if number % 2 else 3) * field) <= MSEC
    assert abs(after.end - after.times[0] - 60 * field) <= 2 * MSEC


def test_a_part_is_chosen_on_the_repaired_clock(tmp_path: Path) -> None:
    source = tmp_path / "in.ts"
    source.write_bytes(recording(tmp_path / "part.ts").read_bytes() * 3)
    after = seen(source, tmp_path, "--start", "1.5", "--end", "2.5")
    # What is shown is that of the second and of the third part.
    assert len(after.times) == 25
    (sound,) = after.tracks
    assert abs(after.end - sound.end) <= FRAME
    assert upscale(source, tmp_path / "b.mp4", "--start", "3.1") == 2
    assert len(seen(source, tmp_path, "--preview", "0.5s@90%").times) in (7, 8)


def test_a_pipe_gives_the_times_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in.ts"
    source.write_bytes(recording(tmp_path / "part.ts").read_bytes() * 2)
    of_file = seen(source, tmp_path)
    with source.open("rb") as stream:
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": stream, "isatty": lambda _: False})())
        assert upscale(Path("-"), tmp_path / "piped.mp4", "--temp-dir", str(tmp_path / "temp")) == 0
    piped = look(tmp_path / "piped.mp4", tmp_path)
    assert piped.times == of_file.times and piped.tracks == of_file.tracks


def test_an_interrupted_run_over_a_step_of_the_clock_produces_the_same_file(tmp_path: Path) -> None:
    source = tmp_path / "in.ts"
    source.write_bytes(recording(tmp_path / "part.ts").read_bytes() * 2)
    run(job(source, tmp_path / "whole.mp4"))
    for stop_at in (20, 30):
        with pytest.raises(Interrupted):
            run(job(source, tmp_path / "broken.mp4"), stop_at=stop_at)
    run(job(source, tmp_path / "broken.mp4"))
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "broken.mp4").read_bytes()


@pytest.mark.parametrize(
    ("name", "frames", "length_s", "says"),
    [
        ("01-clock-back-2s.ts", 100, 4, "restart once at 2.00 s"),
        ("03-clock-back-12s.ts", 75, 15, "restart once"),
        ("05-one-wrong-stamp-bit.ts", 20, Fraction(4, 5), "one timestamp is"),
        ("40-no-stamps.vob", 24, Fraction(1001, 1000), "soft telecine"),
    ],
)
def test_recordings_that_were_reported_keep_length_and_sound(
    tmp_path: Path,
    cases: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    frames: int,
    length_s: Fraction,
    says: str,
) -> None:
    after = seen(cases / name, tmp_path)
    said = capsys.readouterr().err
    assert says in said and said.count("warning:") == 1
    (sound,) = after.tracks
    assert len(after.times) == frames
    assert abs(after.end - min(after.times) - length_s) <= Fraction(27, 1000)
    assert abs(after.end - sound.end) <= FRAME
    assert min(steps(after.times)) > Fraction(3, 100) and min(steps(sound.times)) > Fraction(2, 100)


def test_the_second_of_two_joined_recordings_can_be_chosen(tmp_path: Path, cases: Path) -> None:
    after = seen(cases / "01-clock-back-2s.ts", tmp_path, "--start", "2.2")
    assert len(after.times) == 45
