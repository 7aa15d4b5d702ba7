"""What lies beside the picture, through the command: compared with its source by another program."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.error import ArgumentError

from tests.jobs.doubler import builder
from tests.video.clips import copied_hashes, ffmpeg
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main
from ultraflash_cli.video import join
from ultraflash_cli.video import source as source_module
from ultraflash_cli.video.sidedata import side_data

PICTURE = "-f lavfi -i testsrc2=size=64x48:rate=25:duration={}"
QUICK = ("--model", "lite", "--device", "cpu", "--threads", "1")
X264 = "-c:v libx264 -preset ultrafast"


@dataclass(frozen=True)
class Ran:
    """How one command went."""

    code: int
    output: Path
    warnings: str
    error: str


class Runner:
    """Runs `ultraflash upscale` in this process, with a model that doubles pixels."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys

    def __call__(self, source: Path, output: str = "", *more: str) -> Ran:
        """Upscale ``source`` into a name, or into a folder where that is empty."""
        target = self._folder / (output or "out")
        target.mkdir(exist_ok=True) if not output else None
        command = ["upscale", source, "-o", target, "--res", "2x", *QUICK, "--json", "-q", *more]
        code = main([str(word) for word in command])
        said = self._capsys.readouterr()
        report: dict[str, Any] = json.loads(said.out) if said.out else {}
        return Ran(code, Path(report.get("output") or ""), " | ".join(report.get("warnings", ())), said.err)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))
    return Runner(tmp_path, capsys)


@pytest.fixture(scope="session")
def cases(repository: Path) -> Path:
    folder = repository.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("the shared cases are not on this machine")
    return folder


def make(path: Path, arguments: str) -> Path:
    ffmpeg(*arguments.split(), str(path))
    return path


def samples(path: Path, number: int = 0) -> str:
    """A hash of all samples of a sound track, decoded by the independent reader."""
    return ffmpeg("-i", str(path), "-map", f"0:a:{number}", "-c:a", "pcm_s32le", "-f", "hash", "-hash", "md5", "-")


def sizes(path: Path) -> list[tuple[int, int]]:
    """Width and height of every video, as the independent reader decodes it."""
    with av.open(str(path)) as container:
        count = len(container.streams.video)
    found: list[tuple[int, int]] = []
    for number in range(count):
        header = ffmpeg("-i", str(path), "-map", f"0:v:{number}", "-frames:v", "1", "-f", "framemd5", "-")
        line = next(line for line in header.splitlines() if line.startswith("#dimensions"))
        width, height = line.split(":")[1].strip().split("x")
        found.append((int(width), int(height)))
    return found


def frames(path: Path, number: int = 0) -> int:
    listed = ffmpeg("-i", str(path), "-map", f"0:v:{number}", "-fps_mode", "passthrough", "-f", "framemd5", "-")
    return sum(not line.startswith("#") for line in listed.splitlines())


# Packets that the muxer groups in another way


@pytest.mark.parametrize(
    ("case", "output"),
    [("06-pgs.m2ts", "out.mkv"), ("09-camera-pcm-u8.mov", "out.mov"), ("11-mulaw.avi", "out.mov")],
)
def test_a_track_that_the_container_cuts_otherwise_is_kept(run: Runner, cases: Path, case: str, output: str) -> None:
    done = run(cases / case, output)
    assert done.code == 0, done.error
    assert copied_hashes(done.output) == copied_hashes(cases / case) != []
    assert "were written" not in done.warnings


@pytest.mark.parametrize(
    ("name", "sound", "output"),
    [
        ("a.avi", "-ar 8000 -c:a pcm_alaw", "out.mov"),
        ("a.mkv", "-ar 22050 -c:a pcm_s24le", "out.mov"),
        ("a.nut", "-ar 44100 -c:a pcm_s8", "out.mov"),
    ],
)
def test_plain_sound_is_kept_to_the_sample(run: Runner, tmp_path: Path, name: str, sound: str, output: str) -> None:
    source = make(tmp_path / name, f"{PICTURE.format(0.4)} -f lavfi -i sine=d=0.4 {X264} {sound}")
    done = run(source, output)
    assert done.code == 0, done.error
    assert samples(done.output) == samples(source)


# Which of several videos is the film


@pytest.mark.parametrize(
    ("case", "output", "expected", "frame_count"),
    [
        ("07-second-video-is-default.mkv", "out.mkv", [(96, 64), (128, 96)], 5),
        ("25-first-video-empty.ts", "out.mp4", [(128, 96)], 10),
        ("27-still-first.mp4", "out.mp4", [(320, 240), (128, 96)], 10),
    ],
)
def test_the_film_among_several_videos_is_enlarged(
    run: Runner, cases: Path, case: str, output: str, expected: list[tuple[int, int]], frame_count: int
) -> None:
    done = run(cases / case, output)
    assert done.code == 0, done.error
    assert sizes(done.output) == expected
    assert frames(done.output, len(expected) - 1) == frame_count
    assert "several videos: stream 1 video h264 is upscaled" in done.warnings


def test_a_still_without_a_mark_beside_a_film_is_copied(run: Runner, tmp_path: Path) -> None:
    make(tmp_path / "still.jpg", "-f lavfi -i testsrc=s=96x96 -frames:v 1")
    source = make(
        tmp_path / "a.mkv",
        f"-i {tmp_path}/still.jpg {PICTURE.format(0.2)} -map 0 -map 1 -c:v:0 copy -c:v:1 libx264 "
        "-disposition:v:0 default -disposition:v:1 0",
    )
    done = run(source, "out.mkv")
    assert done.code == 0, done.error
    assert sizes(done.output) == [(96, 96), (128, 96)]
    assert (frames(done.output), frames(done.output, 1)) == (1, 5)


def test_the_larger_of_two_programs_is_the_film(run: Runner, tmp_path: Path) -> None:
    source = make(
        tmp_path / "a.ts",
        f"{PICTURE.format(0.2).replace('64x48', '32x32')} {PICTURE.format(0.2)} -map 0 -map 1 {X264} "
        "-program st=0 -program st=1",
    )
    done = run(source, "out.mkv")
    assert done.code == 0, done.error
    assert sizes(done.output) == [(32, 32), (128, 96)]


def test_when_the_film_gives_no_frame_the_next_video_is_taken(run: Runner, tmp_path: Path) -> None:
    good = make(tmp_path / "good.mp4", f"{PICTURE.format(0.2)} {X264}")
    source = tmp_path / "a.mkv"
    with av.open(str(good)) as given, av.open(str(source), "w") as out:
        picture = given.streams.video[0]
        broken, whole = (out.add_stream_from_template(picture, opaque=True) for _ in range(2))
        for packet in given.demux(picture):
            if packet.size:
                twin = av.Packet(bytes([0, 0, 0, 2, 0x1F, 0xFF]))
                twin.pts, twin.dts, twin.time_base, twin.stream = packet.pts, packet.dts, packet.time_base, broken
                packet.stream = whole
                out.mux([twin, packet])
    done = run(source, "out.mkv")
    assert done.code == 0, done.error
    assert "stream 1 video h264 is upscaled" in done.warnings
    with av.open(str(done.output)) as result:
        assert [(each.width, each.height) for each in result.streams.video] == [(64, 48), (128, 96)]


# Streams that begin late


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
    """A part of a DVD in which subtitles begin after 14 seconds."""
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
    assert "left out: stream 1 subtitle dvd_subtitle, which begins too late" in done.warnings


# Sound that containers hold in their own way


STUDIO = "-f lavfi -i anoisesrc=d=0.4:r=48000:a=0.3 -ac 2 -strict -2"


@pytest.mark.parametrize(
    ("name", "sound", "output", "codec"),
    [
        ("a.ts", f"{STUDIO} -c:v mpeg2video -c:a s302m", "", "flac"),
        ("a.ts", f"{STUDIO} -c:v mpeg2video -c:a s302m", "out.mkv", "pcm_s24le"),
        ("a.m2ts", f"{STUDIO} {X264} -c:a pcm_bluray", "out.mov", "pcm_s24le"),
        ("a.vob", f"{STUDIO} -c:v mpeg2video -c:a pcm_dvd", "out.mp4", "flac"),
        ("a.avi", f"{STUDIO} {X264} -ar 8000 -c:a pcm_mulaw", "", "pcm_mulaw"),
        ("a.avi", f"{STUDIO} {X264} -ar 8000 -c:a pcm_alaw", "out.mkv", "pcm_s16le"),
        ("a.avi", f"{STUDIO} {X264} -c:a pcm_u8", "out.mp4", "flac"),
        ("a.mov", f"{STUDIO} {X264} -c:a pcm_f32be", "out.mkv", "pcm_f32le"),
        ("a.mkv", f"{STUDIO} {X264} -sample_fmt s16 -c:a tta", "out.mov", "pcm_s16le"),
    ],
)
def test_sound_that_cannot_be_copied_keeps_every_sample(
    run: Runner, tmp_path: Path, name: str, sound: str, output: str, codec: str
) -> None:
    source = make(tmp_path / name, f"{PICTURE.format(0.4)} {sound}")
    done = run(source, output)
    assert done.code == 0, done.error
    assert samples(done.output) == samples(source)
    assert "left out" not in done.warnings
    with av.open(str(source)) as before, av.open(str(done.output)) as after:
        assert after.streams.audio[0].codec_context.codec.canonical_name == codec
        starts = [
            (sound.start_time or 0) * (sound.time_base or 0) - (picture.start_time or 0) * (picture.time_base or 0)
            for sound, picture in ((each.streams.audio[0], each.streams.video[0]) for each in (before, after))
        ]
    assert abs(starts[0] - starts[1]) <= 0.001


def test_the_container_that_keeps_the_sound_is_chosen_and_named(run: Runner, cases: Path) -> None:
    for case in ("11-mulaw.avi", "18-amr.3gp"):
        done = run(cases / case)
        assert done.code == 0, done.error
        assert done.output.suffix == ".mov" and "written as .mov, because .mp4 cannot hold" in done.warnings
        assert copied_hashes(done.output) == copied_hashes(cases / case) != []
    named = run(cases / "18-amr.3gp", "out.mp4")
    assert "left out: stream 1 audio amr_nb: .mp4 cannot hold it; .mov can, --audio aac converts it" in named.warnings


def loudness(path: Path, rate: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The first sound track on the clock of the first picture, as another program plays it."""
    raw = path.with_suffix(".f32")
    ffmpeg("-i", str(path), "-map", "0:a:0", "-ac", "1", "-ar", str(rate), "-c:a", "pcm_f32le", "-f", "f32le", str(raw))
    return np.fromfile(raw, np.float32)


@pytest.mark.parametrize("output", ["out.mp4", "out.mkv", "out.mov"])
def test_converted_sound_lies_where_it_lay_and_lasts_as_long(run: Runner, cases: Path, output: str) -> None:
    source = cases / "18-amr.3gp"
    done = run(source, output, "--audio", "aac")
    assert done.code == 0, done.error
    with av.open(str(done.output)) as result:
        assert result.streams.audio[0].codec_context.codec.canonical_name == (
            "amr_nb" if output == "out.mov" else "aac"
        )
    shutil.copy(source, done.output.with_name("source.3gp"))
    before, after = loudness(done.output.with_name("source.3gp"), 8000), loudness(done.output, 8000)
    assert abs(len(before) - len(after)) <= 1
    count = min(len(before), len(after)) - 256
    errors = [float(np.abs(before[128:count] - after[128 + lag : count + lag]).mean()) for lag in range(-128, 129)]
    assert errors.index(min(errors)) == 128, "no sample earlier or later"


@pytest.mark.parametrize(("kind", "output"), [("aac", "out.mkv"), ("flac", "out.mp4")])
def test_broadcast_sound_that_no_container_holds_is_converted_where_asked(
    run: Runner, cases: Path, kind: str, output: str
) -> None:
    source = cases / "38-latm.ts"
    silent = run(source, output)
    assert "left out: stream 1 audio aac_latm" in silent.warnings and "--audio aac converts it" in silent.warnings
    done = run(source, output, "--audio", kind, "-y")
    assert done.code == 0, done.error
    assert "left out" not in done.warnings
    with av.open(str(source)) as before, av.open(str(done.output)) as after:
        sound, was = after.streams.audio[0], before.streams.audio[0]
        assert sound.codec_context.codec.canonical_name == kind
        assert (
            abs((sound.start_time or 0) * (sound.time_base or 0) - (was.start_time or 0) * (was.time_base or 0)) < 0.001
        )
        assert sum(frame.samples for frame in after.decode(sound)) == sum(frame.samples for frame in before.decode(was))


def test_a_gap_in_converted_sound_stays_a_gap(run: Runner, tmp_path: Path) -> None:
    source = make(
        tmp_path / "a.avi",
        f"{PICTURE.format(1)} -f lavfi -i sine=r=8000:d=1 {X264} -ar 8000 -c:a pcm_mulaw",
    )
    holed = tmp_path / "a.mkv"
    ffmpeg(
        "-i", str(source), "-c", "copy", "-bsf:a", "noise=drop='between(pts*tb,0.3,0.6)'", "-f", "matroska", str(holed)
    )
    for output in ("out.mkv", "out.mp4"):
        done = run(holed, output)
        assert done.code == 0, done.error
        heard, was = heard_in(done.output), heard_in(holed)
        assert len(heard) == len(was) and heard.index(False) > 20 and heard[-1]
        assert sum(a != b for a, b in zip(heard, was, strict=True)) <= 2


def heard_in(path: Path) -> list[bool]:
    """For each hundredth of a second whether anything is heard."""
    heard = np.zeros(8000, np.float32)
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.audio[0]):
            start = round((frame.pts or 0) * (frame.time_base or 0) * 8000)
            piece = frame.to_ndarray().reshape(-1)[: len(heard) - start]
            heard[start : start + len(piece)] = np.abs(piece.astype(np.float32))
    return [bool(each) for each in heard.reshape(100, 80).max(axis=1) > 100]


# Subtitles of discs, whose pictures come in segments


def segments(number: int) -> list[bytes]:
    """What shows a small picture on a Blu-ray: composition, window, palette, picture, end."""
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


# A track that fails at the end


def test_a_track_that_fails_at_the_end_costs_a_warning_and_never_the_file(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(
        tmp_path / "a.mkv",
        f"{PICTURE.format(0.4)} -f lavfi -i sine=d=0.4 -f lavfi -i sine=d=0.4 -map 0 -map 1 -map 2 {X264} -c:a:0 mp2 "
        "-c:a:1 flac",
    )

    def fails(container: Any, pictures: Any, copied: Iterator[av.Packet], written: Any) -> None:
        def refused() -> Iterator[av.Packet]:
            for packet in copied:
                if packet.stream.codec_context.codec.canonical_name == "flac" and (packet.pts or 0) > 200:
                    raise ArgumentError(22, "Invalid argument")
                yield packet

        interleave(container, pictures, refused(), written)

    interleave = join._interleave
    monkeypatch.setattr(join, "_interleave", fails)
    assert run(source, "out.mkv", "--strict").code == 7
    done = run(source, "out.mkv")
    assert done.code == 0, done.error
    assert "left out: stream 2 audio flac: the file cannot be made with it" in done.warnings
    assert frames(done.output) == 10
    with av.open(str(done.output)) as result:
        assert [each.codec_context.codec.canonical_name for each in result.streams.audio] == ["mp2"]


# Captions inside the picture


PAIRS = ("9425", "9425", "94ad", "94ad", "9470", "9470", "c849", *["8080"] * 13, "942c", "942c", "8080", "8080")
"""What shows HI on a television, a pair of bytes a frame, and clears it."""


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


# What is written in letters


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_tags_of_programs_that_do_not_write_utf8_keep_their_letters(run: Runner, tmp_path: Path, suffix: str) -> None:
    source = make(tmp_path / f"a{suffix}", f"{PICTURE.format(0.2)} {X264} -metadata title=XX_caf_XX -metadata artist=é")
    source.write_bytes(source.read_bytes().replace(b"XX_caf_XX", b"A caf\xe9, \x80"))
    done = run(source, "out.mp4")
    assert done.code == 0, done.error
    tags = ffmpeg("-i", str(done.output), "-f", "ffmetadata", "-").splitlines()
    assert {"title=A café, €", "artist=é"} <= set(tags)


def test_a_track_whose_codec_is_not_known_is_named_as_such(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:00,300\nHello\n")
    source = make(tmp_path / "a.mp4", f"{PICTURE.format(0.4)} -i {tmp_path / 'a.srt'} {X264} -c:s ttml")
    done = run(source, "out.mp4")
    assert done.code == 0, done.error
    assert "left out: stream 1 subtitle of an unknown codec" in done.warnings
