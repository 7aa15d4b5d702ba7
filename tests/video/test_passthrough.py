"""The finished file compared with its source by an independent FFmpeg: frames, times,
streams, tags."""

from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import pytest
from av.stream import AttachmentStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.video.clips import (
    SUBTITLES,
    ClipPlan,
    Result,
    copied_hashes,
    enlarge,
    ffmpeg,
    make_clip,
    mean_error,
    packet_times,
    picture,
    repeated,
    shown_times,
    write_segments,
)
from ultraflash_cli.errors import OutputCheckError, OutputError, UsageError
from ultraflash_cli.video.check import check_output
from ultraflash_cli.video.containers import StreamPlan, plan_streams
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.encode import choose_spec
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.join import join
from ultraflash_cli.video.probe import ClipInfo, StreamInfo, probe

TAGS = {"title": "A clip", "artist": "Somebody", "comment": "ünï", "date": "2024"}


def rich(path: Path, **changes: object) -> Path:
    plan = ClipPlan(
        audio=("aac", "aac"),
        subtitles=SUBTITLES,
        attachment=path.suffix == ".mkv",
        chapters=2,
        tags=TAGS,
        aspect=Fraction(4, 3),
        rotation=90,
        options={"preset": "medium", "crf": "4"},
    )
    return make_clip(path, replace(plan, **changes))


def chapter_starts(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [chapter["start"] * (chapter["time_base"] or Fraction(1)) for chapter in container.chapters()]


def checked(result: Result) -> Result:
    ends = result.frames[-1].pts + result.frames[-1].duration - result.frames[0].pts
    check_output(
        result.path,
        plan=result.plan,
        frames=len(result.frames),
        spec=result.spec,
        duration_s=ends * result.info.time_base,
        joined=result.joined,
    )
    return result


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_everything_except_the_picture_is_copied_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    source = rich(tmp_path / f"a{suffix}")
    result = checked(enlarge(source, tmp_path))
    assert result.path.suffix == suffix and not result.plan.dropped and not result.plan.reason
    assert copied_hashes(result.path) == copied_hashes(source) != []
    for kind in ("audio", "subtitle"):
        assert packet_times(result.path, kind) == packet_times(source, kind)
    assert shown_times(result.path) == shown_times(source)
    before, after = probe(source), probe(result.path)
    assert (after.width_px, after.height_px) == (128, 96)
    assert after.rotation_deg == before.rotation_deg == 270
    assert after.sample_aspect_ratio == before.sample_aspect_ratio == Fraction(4, 3)
    assert [(s.kind, s.codec, s.language) for s in after.streams if s.kind != "data"] == [
        (s.kind, s.codec, s.language) for s in before.streams if s.kind != "data"
    ]
    with av.open(str(source)) as a, av.open(str(result.path)) as b:
        assert {key: b.metadata[key] for key in b.metadata if key.lower() in TAGS} == {
            key: a.metadata[key] for key in a.metadata if key.lower() in TAGS
        }
        assert [c["metadata"]["title"] for c in b.chapters()] == ["Part 1", "Part 2"]
        assert chapter_starts(result.path) == chapter_starts(source) == [0, Fraction(1, 5)]
        assert [int(s.disposition) for s in b.streams] == [int(s.disposition) for s in a.streams]
        fonts = [s.data for s in b.streams if isinstance(s, AttachmentStream)]
        assert fonts == ([bytes(range(200))] if suffix == ".mkv" else [])


def test_frames_keep_their_order_and_content(tmp_path: Path) -> None:
    result = checked(enlarge(rich(tmp_path / "a.mp4"), tmp_path, crf=4))
    frames = [frame.rgb_hwc for frame in read_frames(probe(result.path), warn=print)]
    assert len(frames) == 12
    for number, frame in enumerate(frames):
        nearest = min(range(12), key=lambda other: mean_error(frame, repeated(picture(other), 2)))
        assert nearest == number


def test_tags_that_mp4_has_no_place_for_are_kept_as_well(tmp_path: Path) -> None:
    tags = {"com.apple.quicktime.make": "Phone", "com.apple.quicktime.location.ISO6709": "+52.5+013.4/", "title": "T"}
    plan = ClipPlan(tags=tags, container_options={"movflags": "use_metadata_tags"})
    result = checked(enlarge(make_clip(tmp_path / "a.mov", plan), tmp_path))
    with av.open(str(result.path)) as container:
        assert {key: container.metadata.get(key) for key in tags} == tags


IRREGULAR = (3, 7, 8, 31, 40, 90, 91, 92, 150, 170, 171, 300)


@pytest.mark.parametrize(
    ("suffix", "time_base", "output"),
    [
        pytest.param(".mp4", Fraction(1, 90000), None, id="mp4 90000"),
        pytest.param(".mp4", Fraction(1, 12345), None, id="mp4 odd unit"),
        pytest.param(".mov", Fraction(1, 600), None, id="mov 600"),
        pytest.param(".mkv", Fraction(1, 1000), None, id="mkv"),
        pytest.param(".mkv", Fraction(1, 1000), ".mp4", id="mkv to mp4"),
        pytest.param(".mp4", Fraction(1, 1000), ".mkv", id="mp4 to mkv"),
        pytest.param(".mp4", Fraction(1, 500), ".mov", id="mp4 to mov"),
    ],
)
@pytest.mark.parametrize("start", [0, 2000], ids=["from 0", "late"])
def test_irregular_times_are_kept_to_the_tick_over_segments_with_b_frames(
    tmp_path: Path, suffix: str, time_base: Fraction, output: str | None, start: int
) -> None:
    stamps = tuple(start + pts for pts in IRREGULAR)
    plan = ClipPlan(pts=stamps, last_duration=25, time_base=time_base, audio=("aac",))
    source = make_clip(tmp_path / f"a{suffix}", plan)
    result = checked(enlarge(source, tmp_path, suffix=output))
    assert shown_times(source) == [pts * time_base for pts in stamps]
    # An AAC stream starts before 0 with its priming; Matroska has no times before 0 and moves all by the same.
    moved = packet_times(result.path, "audio")[0][0] - packet_times(source, "audio")[0][0]
    shown = shown_times(result.path)
    assert abs(shown[0] - stamps[0] * time_base - moved) <= (Fraction(1, 1000) if output == ".mkv" else 0)
    assert [time - shown[0] for time in shown] == [(pts - stamps[0]) * time_base for pts in stamps]
    with av.open(str(result.path)) as container:
        decoding = [packet.dts for packet in container.demux(container.streams.video[0]) if packet.dts is not None]
    assert all(b > a for a, b in pairwise(decoding))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.integers(1, 5000), min_size=1, max_size=24),
    per_segment=st.integers(1, 9),
    last=st.integers(1, 5000),
    start=st.integers(0, 10_000),
    codec=st.sampled_from(["h264", "hevc"]),
)
def test_any_times_survive_the_join(
    tmp_path: Path, clip: ClipInfo, steps: list[int], per_segment: int, last: int, start: int, codec: str
) -> None:
    stamps = [start]
    for step in steps:
        stamps.append(stamps[-1] + step)
    gaps = [*steps, last]
    frames = [Frame(pts, gap, picture(n)) for n, (pts, gap) in enumerate(zip(stamps, gaps, strict=True))]
    spec = replace(
        choose_spec(clip, width_px=64, height_px=48, codec=codec, threads=1, time_base=Fraction(1, 12800)),
        preset="medium",
    )
    plan = plan_streams(clip, ".mp4", codec=codec)
    segments = write_segments(tmp_path, spec, frames, per_segment=per_segment)
    target = tmp_path / "joined.mp4"
    join(segments, clip, plan, spec, target)
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert sorted(packet.pts or 0 for packet in packets) == stamps
        assert stream.time_base == Fraction(1, 12800)
        assert stream.duration == stamps[-1] + last - stamps[0]
    duration_s = (stamps[-1] + last - stamps[0]) * Fraction(1, 12800)
    check_output(target, plan=plan, frames=len(frames), spec=spec, duration_s=duration_s)
    decoded = list(read_frames(probe(target), warn=print))
    assert [frame.pts for frame in decoded] == stamps
    assert decoded[-1].duration == last


def test_sound_and_picture_that_start_apart_stay_apart(tmp_path: Path) -> None:
    source = make_clip(
        tmp_path / "plain.mp4", ClipPlan(audio=("aac",), time_base=Fraction(1, 600), pts=range(0, 288, 24))
    )
    late = tmp_path / "a.mp4"
    ffmpeg(
        "-i",
        str(source),
        "-itsoffset",
        "0.35",
        "-i",
        str(source),
        "-map",
        "1:v",
        "-map",
        "0:a",
        "-c",
        "copy",
        str(late),
    )
    result = checked(enlarge(late, tmp_path))
    assert shown_times(result.path) == shown_times(late)
    assert packet_times(result.path, "audio") == packet_times(late, "audio")


@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".avi", ".gif", ".webm"])
def test_containers_that_are_not_written_become_mp4_or_mkv_with_the_same_times(tmp_path: Path, suffix: str) -> None:
    plain = make_clip(tmp_path / "plain.mp4", ClipPlan(audio=() if suffix == ".gif" else ("aac",)))
    codecs = {
        ".ts": ["-c:v", "mpeg2video", "-c:a", "mp2"],
        ".mpg": ["-c:v", "mpeg2video", "-c:a", "mp2"],
        ".avi": ["-c:v", "mpeg4", "-c:a", "mp3"],
        ".webm": ["-c:v", "libvpx-vp9", "-c:a", "libopus"],
        ".gif": [],
    }[suffix]
    source = tmp_path / f"a{suffix}"
    ffmpeg("-i", str(plain), *codecs, str(source))
    result = checked(enlarge(source, tmp_path))
    assert result.path.suffix == (".mkv" if suffix == ".webm" else ".mp4")
    assert result.plan.reason and "\n" not in result.plan.reason
    assert shown_times(result.path) == shown_times(source)
    assert copied_hashes(result.path) == copied_hashes(source)
    sound_in, sound_out = packet_times(source, "audio"), packet_times(result.path, "audio")
    for before, after in zip(sound_in, sound_out, strict=True):
        assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < Fraction(1, 20000)


def test_a_broadcast_clock_is_moved_to_zero_with_everything(tmp_path: Path) -> None:
    plain = make_clip(tmp_path / "plain.mp4", ClipPlan(audio=("mp2",), codec="mpeg2video", options={}))
    source = tmp_path / "a.ts"
    ffmpeg("-i", str(plain), "-c", "copy", "-output_ts_offset", "5000", str(source))
    result = checked(enlarge(source, tmp_path))
    before, after = shown_times(source), shown_times(result.path)
    assert after[0] == 0 and [t - after[0] for t in after] == [t - before[0] for t in before]
    sound_before, sound_after = packet_times(source, "audio")[0], packet_times(result.path, "audio")[0]
    assert abs((sound_after[0] - after[0]) - (sound_before[0] - before[0])) < Fraction(1, 20000)
    assert any("the input starts at 500" in note and "the output starts at 0" in note for note in result.plan.notes)


def test_a_sound_that_begins_before_zero_moves_everything_in_matroska_and_is_named(tmp_path: Path) -> None:
    # AAC in MP4 begins with silence that is hidden before time 0.
    source = make_clip(tmp_path / "a.mp4", ClipPlan(audio=("aac",)))
    assert packet_times(source, "audio")[0][0] == Fraction(-1024, 48000)
    result = checked(enlarge(source, tmp_path, suffix=".mkv"))
    (note,) = result.warnings
    assert "21 ms later" in note and ".mkv" in note
    assert abs(shown_times(result.path)[0] - Fraction(1024, 48000)) <= Fraction(1, 1000)
    assert enlarge(source, tmp_path).warnings == []
    assert enlarge(make_clip(tmp_path / "b.mp4"), tmp_path, suffix=".mkv").warnings == []


def test_a_window_brings_the_packets_inside_and_starts_at_zero(tmp_path: Path) -> None:
    plan = ClipPlan(
        pts=tuple(range(0, 1200, 24)), last_duration=24, time_base=Fraction(1, 600), audio=("aac",), chapters=8
    )
    source = make_clip(tmp_path / "a.mp4", plan)
    window = (Fraction(1, 2), Fraction(3, 2))
    result = checked(enlarge(source, tmp_path, window=window))
    assert shown_times(result.path)[0] == 0
    assert len(shown_times(result.path)) == 25
    first = result.frames[0].pts * result.info.time_base
    inside = [t for t in packet_times(source, "audio")[0] if window[0] <= t + Fraction(512, 48000) < window[1]]
    times = packet_times(result.path, "audio")[0]
    assert len(times) == len(inside)
    assert max(abs(b - (a - first)) for a, b in zip(inside, times, strict=True)) < Fraction(1, 20000)
    starts = chapter_starts(result.path)
    assert starts[0] == 0 and len(starts) == 6


def test_what_a_chosen_container_cannot_hold_is_dropped_and_named(tmp_path: Path) -> None:
    source = rich(tmp_path / "a.mkv")
    result = checked(enlarge(source, tmp_path, suffix=".mp4"))
    dropped = [str(each) for each in result.plan.dropped]
    assert dropped == ["stream 4 attachment font.ttf: .mp4 cannot hold it; .mkv can"]
    assert [str(each) for each in result.plan.converted] == ["stream 3 subtitle subrip ger: converted to mov_text"]
    assert copied_hashes(result.path, "a") == copied_hashes(source, "a")


def stream(index: int, kind: str, codec: str, **more: object) -> StreamInfo:
    rate = 48000 if kind == "audio" else 0
    base = StreamInfo(
        index=index, kind=kind, codec=codec, language=None, title=None, is_picture=False, sample_rate=rate
    )
    return replace(base, **more)


@pytest.mark.parametrize(
    ("name", "container", "codec", "streams", "suffix", "says"),
    [
        ("a.mp4", "mov,mp4,m4a", "h264", [("audio", "aac")], ".mp4", ""),
        ("a.MOV", "mov,mp4,m4a", "h264", [("audio", "pcm_s16le")], ".mov", ""),
        ("a.mov", "mov,mp4,m4a", "prores", [], ".mov", ""),
        ("a.mp4", "mov,mp4,m4a", "ffv1", [], ".mkv", "ffv1 video"),
        ("a.mp4", "mov,mp4,m4a", "h264", [("audio", "truehd")], ".mkv", "truehd"),
        ("a.mp4", "mov,mp4,m4a", "h264", [("audio", "vorbis")], ".mp4", ""),
        ("a.ts", "mpegts", "h264", [("audio", "vorbis")], ".mkv", "vorbis"),
        ("a.mp4", "mov,mp4,m4a", "prores", [("audio", "aac")], ".mov", "prores video"),
        ("a.mkv", "matroska,webm", "hevc", [("subtitle", "ass"), ("attachment", "font.ttf")], ".mkv", ""),
        ("a.webm", "matroska,webm", "h264", [("audio", "opus")], ".mkv", "h264 video"),
        ("a.webm", "matroska,webm", "av1", [("audio", "opus")], ".webm", ""),
        ("a.ts", "mpegts", "h264", [("audio", "ac3")], ".mp4", "not a supported output"),
        ("a.ts", "mpegts", "h264", [("subtitle", "dvb_subtitle")], ".mkv", "dvb_subtitle"),
        ("a.avi", "avi", "h264", [("audio", "pcm_s16le")], ".mkv", "pcm_s16le"),
        ("a.gif", "gif", "h264", [], ".mp4", "not a supported output"),
        ("a.mp4", "mov,mp4,m4a", "h264", [("data", "tmcd")], ".mp4", ""),
    ],
)
def test_the_container_is_chosen_so_that_nothing_is_lost(
    clip: ClipInfo, name: str, container: str, codec: str, streams: list[tuple[str, str]], suffix: str, says: str
) -> None:
    listed = (stream(0, "video", "h264"), *(stream(n + 1, *each) for n, each in enumerate(streams)))
    plan = plan_streams(replace(clip, path=Path(name), container=container, streams=listed), None, codec=codec)
    assert plan.suffix == suffix
    assert says in plan.reason and bool(plan.reason) == bool(says)
    assert [each.stream.kind for each in plan.dropped] == [kind for kind, _ in streams if kind == "data"]


def test_streams_that_are_not_wanted_are_left_out_without_a_word(clip: ClipInfo) -> None:
    listed = (stream(0, "video", "h264"), stream(1, "audio", "aac"), stream(2, "subtitle", "mov_text"))
    plan = plan_streams(replace(clip, streams=listed), None, audio="none", subs="none", codec="h264")
    assert plan == StreamPlan(suffix=".mp4", reason="", copied=(), dropped=())


@pytest.mark.parametrize(("suffix", "codec"), [(".xyz", "h264"), ("", "h264"), (".mp4", "ffv1"), (".webm", "h264")])
def test_containers_that_cannot_hold_the_picture_are_refused(clip: ClipInfo, suffix: str, codec: str) -> None:
    with pytest.raises(UsageError):
        plan_streams(clip, suffix, codec=codec)


def test_hevc_in_mp4_is_tagged_so_that_players_take_it(tmp_path: Path, clip: ClipInfo) -> None:
    result = checked(enlarge(clip.path, tmp_path, codec="hevc", scale=1))
    with av.open(str(result.path)) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"


@pytest.mark.parametrize(("codec", "suffix"), [("av1", ".mp4"), ("ffv1", ".mkv"), ("prores", ".mov")])
def test_other_codecs_are_joined_as_well(tmp_path: Path, clip: ClipInfo, codec: str, suffix: str) -> None:
    result = checked(enlarge(clip.path, tmp_path, codec=codec, suffix=suffix, scale=2))
    assert shown_times(result.path) == shown_times(clip.path)
    assert probe(result.path).codec == codec


def test_a_repeated_segment_or_a_foreign_one_stops_the_join(tmp_path: Path, clip: ClipInfo) -> None:
    result = enlarge(clip.path, tmp_path)
    target = tmp_path / "again.mp4"
    foreign = replace(result.segments[-1], path=clip.path)
    for segments in ([*result.segments, foreign], [result.segments[0], result.segments[0]]):
        with pytest.raises(OutputError):
            join(segments, result.info, result.plan, result.spec, target)
    other = replace(result.spec, options=(("refs", "5"), ("profile", "high")), preset="slow")
    frames = [replace_times(frame, 1000) for frame in result.frames[:3]]
    (odd,) = write_segments(tmp_path, other, frames, per_segment=3, scale=2)
    with pytest.raises(OutputError, match="other encoder settings"):
        join([*result.segments[1:], odd], result.info, result.plan, result.spec, target)
    assert not target.exists() and not list(tmp_path.glob("*.part.*"))


def replace_times(frame: Frame, shift: int) -> Frame:
    return Frame(frame.pts + shift, frame.duration, frame.rgb_hwc)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_disk_that_fills_during_the_join_is_an_output_error(
    tmp_path: Path, clip: ClipInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = enlarge(clip.path, tmp_path)
    target = tmp_path / "full.mp4"
    part = tmp_path / "full.part.mp4"
    part.symlink_to("/dev/full")
    monkeypatch.setattr("ultraflash_cli.video.join.partial_file", lambda _: nullcontext(part))
    with pytest.raises(OutputError, match="full"):
        join(result.segments, result.info, result.plan, result.spec, target)
    assert not target.exists()


def test_the_check_sees_a_lost_frame_a_lost_stream_a_wrong_size_and_a_damaged_end(tmp_path: Path) -> None:
    result = checked(enlarge(rich(tmp_path / "a.mp4"), tmp_path))
    check = partial(check_output, plan=result.plan, frames=12)
    with pytest.raises(OutputCheckError, match="12 frames, expected 13"):
        check(result.path, frames=13)
    with pytest.raises(OutputCheckError, match="lasts"):
        check(result.path, duration_s=Fraction(1, 2))
    with pytest.raises(OutputCheckError, match="expected 130x96"):
        check(result.path, spec=replace(result.spec, width_px=130))
    silent = tmp_path / "silent.mp4"
    ffmpeg(
        "-noautorotate",
        "-i",
        str(result.path),
        "-map",
        "0",
        "-map",
        "-0:a:1",
        "-map",
        "-0:d",
        "-c",
        "copy",
        str(silent),
    )
    with pytest.raises(OutputCheckError, match="streams"):
        check(silent)
    broken = bytearray(result.path.read_bytes())
    at = broken.find(b"mdat")
    broken[at + 1000 :] = bytes(len(broken) - at - 1000)
    (tmp_path / "broken.mp4").write_bytes(broken)
    with pytest.raises(OutputCheckError):
        check(tmp_path / "broken.mp4")
    with pytest.raises(OutputCheckError, match="read back"):
        check(tmp_path / "absent.mp4")


def test_sound_that_says_not_how_long_it_lasts_keeps_its_last_packet(tmp_path: Path) -> None:
    source = tmp_path / "in.nut"
    picture = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=0.2"]
    sound = ["-f", "lavfi", "-i", "sine=sample_rate=48000:duration=0.2"]
    ffmpeg(*picture, *sound, "-c:v", "ffv1", "-c:a", "flac", str(source))
    result = enlarge(source, tmp_path, suffix=".mp4")
    assert result.joined.packets == (("video", 5), ("audio", 10))
    check_output(result.path, plan=result.plan, frames=5, spec=result.spec, joined=result.joined)
    with av.open(str(result.path)) as container:
        sound_stream = container.streams.audio[0]
        assert sound_stream.duration == 9600, "the input's end, to the sample"
