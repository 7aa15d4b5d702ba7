"""A table of clips as people have them, written in every container, against what an independent FFmpeg reads."""

import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import AttachmentStream

from tests.video.clips import (
    ClipPlan,
    Result,
    enlarge,
    ffmpeg,
    make_clip,
    packet_times,
    picture,
    shown_times,
    write_segments,
)
from tests.video.rows import LONG, ROWS, SINE, TEST, X264, Row
from ultraflash_cli.errors import OutputCheckError, OutputError, UsageError
from ultraflash_cli.video.check import check_output
from ultraflash_cli.video.codecs import choose_codec
from ultraflash_cli.video.color import ColorInfo, ContentLight, MasteringDisplay
from ultraflash_cli.video.containers import plan_streams
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.encode import EncodeSpec, check_encoder, choose_spec, losses
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.join import join
from ultraflash_cli.video.probe import ClipInfo, probe
from ultraflash_cli.video.segment import SegmentWriter
from ultraflash_cli.video.stills import check_pictures, move_pictures, numbered, write_pictures
from ultraflash_cli.video.timecode import moved_timecode
from ultraflash_cli.video.y4m import write_y4m


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_nothing_that_the_container_holds_is_lost(tmp_path: Path, made: Path, row: Row) -> None:
    source = tmp_path / row.source
    ffmpeg(*row.made.replace("{dir}", str(made)).split(), *["-metadata", "title=T", "-metadata:s:v:0", "language=jpn"],
           str(source))  # fmt: skip
    result = checked(enlarge(source, tmp_path, suffix=row.suffix, codec=row.codec))
    assert result.path.suffix == row.becomes
    assert [each.stream.codec for each in result.plan.dropped] == list(row.dropped)
    assert [each.codec for each in result.plan.converted] == list(row.converted)
    assert row.says in result.plan.reason and bool(row.says) == bool(result.plan.reason)
    compare(source, result)


def checked(result: Result) -> Result:
    first, last = result.frames[0], result.frames[-1]
    check_output(
        result.path,
        plan=result.plan,
        frames=len(result.frames),
        spec=result.spec,
        duration_s=(last.pts + last.duration - first.pts) * result.info.time_base,
        joined=result.joined,
    )
    return result


def compare(source: Path, result: Result) -> None:
    """Frames, times, copied packets, text, tags and chapters, all as another program reads them."""
    exact = result.path.suffix not in (".mkv", ".webm") or source.suffix in (".mkv", ".webm")
    slack = Fraction(0) if exact else Fraction(1, 1000)
    before, after = shown_times(source), shown_times(result.path)
    moved = after[0] - before[0]
    assert moved <= (Fraction(1, 10) if result.warnings else slack)
    assert max(abs(b - a - moved) for a, b in zip(before, after, strict=True)) <= slack
    # A converted subtitle is compared by what it says.
    gone = {each.stream.index for each in (*result.plan.dropped, *result.plan.converted)} | {result.info.video_index}
    kept = [each for each in result.plan.copied if each.kind in ("audio", "video", "subtitle")]
    assert {each.index for each in kept}.isdisjoint(gone)
    if source.suffix == ".ts" and any(each.codec == "aac" for each in kept):
        # What a broadcast puts before each packet of AAC has its place elsewhere in MP4.
        (heard,), (plain,) = ([ffmpeg("-i", str(path), "-vn", "-f", "hash", "-hash", "md5", "-")]
                              for path in (source, result.path))  # fmt: skip
        assert heard == plain
        return
    hashes = [stream_hash(source, each.index) for each in kept]
    written = [s.index for s in probe(result.path).streams if s.kind in ("audio", "video", "subtitle")]
    found = {index: stream_hash(result.path, index) for index in written}
    assert [each for each in hashes if each not in found.values()] == []
    for each in kept:
        if not each.is_picture:
            twin = next(index for index in written if found[index] == stream_hash(source, each.index))
            a, b = stream_times(source, each.index), stream_times(result.path, twin)
            assert max(abs(y - x - moved) for x, y in zip(a, b, strict=True)) <= max(slack, Fraction(1, 20000))
    for converted in result.plan.converted:
        (index,) = (s.index for s in probe(result.path).streams if s.codec == converted.codec)
        form = ("-c:a", "pcm_s32le", "-f", "hash") if converted.stream.kind == "audio" else ("-f", "srt")
        texts = [ffmpeg("-i", str(path), "-map", f"0:{place}", *form, "-")
                 for path, place in ((source, converted.stream.index), (result.path, index))]  # fmt: skip
        assert texts[0] == texts[1] != ""
    assert facts(result.path).get("title") == facts(source).get("title")
    if "TIMECODE" in facts(source):
        assert facts(result.path)["TIMECODE"] == facts(source)["TIMECODE"] == "01:02:03:04"


def stream_hash(path: Path, index: int) -> str:
    line = ffmpeg("-i", str(path), "-map", f"0:{index}", "-c", "copy", "-f", "streamhash", "-hash", "md5", "-")
    return line.split("=")[-1].strip()


def stream_times(path: Path, index: int) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams[index]
        return [p.pts * p.time_base for p in container.demux(stream) if p.size and p.pts is not None]


def facts(path: Path) -> dict[str, str]:
    """The tags of the file, and its time code wherever it lies."""
    with av.open(str(path), metadata_errors="replace") as container:
        tags = dict(container.metadata)
        for stream in container.streams:
            tags |= {key: value for key, value in stream.metadata.items() if key.lower() == "timecode"}
    return {("TIMECODE" if key.lower() == "timecode" else key): value for key, value in tags.items()}


def test_what_lies_beside_the_streams_comes_along(tmp_path: Path, made: Path) -> None:
    source = tmp_path / "a.mkv"
    row = ROWS["attachments of many kinds"]
    ffmpeg(*row.made.replace("{dir}", str(made)).split(), str(source))
    result = checked(enlarge(source, tmp_path))
    with av.open(str(source)) as a, av.open(str(result.path)) as b:
        files = [[(s.metadata["filename"], s.metadata["mimetype"], s.data)
                  for s in c.streams if isinstance(s, AttachmentStream)]
                 for c in (a, b)]  # fmt: skip
    assert files[0] == files[1] and len(files[0]) == 3


SCREEN = MasteringDisplay(
    red=(Fraction(34000, 50000), Fraction(16000, 50000)),
    green=(Fraction(13250, 50000), Fraction(34500, 50000)),
    blue=(Fraction(7500, 50000), Fraction(3000, 50000)),
    white=(Fraction(15635, 50000), Fraction(16450, 50000)),
    darkest_nits=Fraction(1, 200),
    brightest_nits=Fraction(1000),
)
LIGHT = ContentLight(max_cll=990, max_fall=120)


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
@pytest.mark.parametrize(("codec", "suffix"), [("hevc", ".mp4"), ("hevc", ".mkv"), ("av1", ".mp4"), ("h264", ".mp4")])
def test_hdr_is_written_with_its_tags_and_metadata(tmp_path: Path, codec: str, suffix: str, transfer: int) -> None:
    color = ColorInfo(matrix=9, primaries=9, transfer=transfer, range=1)
    plan = ClipPlan(pts=range(4), size=(64, 64), codec="ffv1", pix_fmt="yuv420p10le", options={}, color=color)
    info = replace(probe(make_clip(tmp_path / "a.mkv", plan)), mastering_display=SCREEN, content_light=LIGHT)
    spec = choose_spec(info, width_px=64, height_px=64, codec=codec, threads=1)
    check_encoder(spec)
    streams = plan_streams(info, suffix, codec=codec)
    segments = write_segments(tmp_path, spec, list(read_frames(info, warn=print)), per_segment=2)
    target = tmp_path / f"out{suffix}"
    join(segments, info, streams, spec, target)
    again = probe(target)
    assert (again.bit_depth, again.color) == (10, color)
    assert again.content_light == LIGHT and losses(info, spec) == ()
    found = again.mastering_display
    assert found is not None and abs(found.brightest_nits - 1000) < 1
    for ours, theirs in ((SCREEN.red, found.red), (SCREEN.white, found.white)):
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < Fraction(1, 10_000)
    other = choose_spec(info, width_px=64, height_px=64, codec="ffv1", threads=1)
    assert any("HDR" in loss for loss in losses(info, other))


def transparent(number: int, *, deep: bool) -> Frame:
    steps = np.linspace(0, 65535 if deep else 255, 64)[None].repeat(48, 0)
    rgb_hwc = picture(number)
    if deep:
        return Frame(number, 1, rgb_hwc.astype(np.uint16) * 257, steps.astype(np.uint16))
    return Frame(number, 1, rgb_hwc, steps.astype(np.uint8))


@pytest.mark.parametrize(
    ("pix_fmt", "bits", "codec", "suffix", "expected"),
    [
        ("yuva420p", 8, "auto", None, ("vp9", "yuva420p", ".webm")),
        ("yuva420p", 8, "auto", ".mkv", ("vp9", "yuva420p", ".mkv")),
        ("bgra", 8, "auto", ".mov", ("prores", "yuva444p10le", ".mov")),
        ("yuva444p12le", 12, "auto", None, ("prores", "yuva444p10le", ".mov")),
        ("yuva444p12le", 12, "auto", ".mkv", ("ffv1", "yuva444p12le", ".mkv")),
        ("bgra", 8, "ffv1", ".mkv", ("ffv1", "bgra", ".mkv")),
        ("gbrap12le", 12, "ffv1", ".mkv", ("ffv1", "gbrap12le", ".mkv")),
        ("bgra", 8, "png", ".mov", ("png", "rgba", ".mov")),
        ("bgra", 8, "auto", ".mp4", ("h264", "yuv420p", ".mp4")),
        ("bgra", 8, "vp9", ".mp4", ("vp9", "yuv420p", ".mp4")),
    ],
)
def test_transparency_is_written_where_codec_and_container_can(
    tmp_path: Path, clip: ClipInfo, pix_fmt: str, bits: int, codec: str, suffix: str | None, expected: tuple[str, ...]
) -> None:
    container = {".webm": "matroska,webm", ".mov": "mov,mp4"}.get(expected[2], "matroska,webm")
    info = replace(
        clip, pix_fmt=pix_fmt, bit_depth=bits, has_alpha=True, container=container, path=Path(f"a{expected[2]}")
    )
    spec = choose_spec(info, width_px=64, height_px=48, codec=codec, threads=1, suffix=suffix)
    streams = plan_streams(info, suffix, codec=spec.codec)
    assert (spec.codec, spec.pix_fmt, streams.suffix) == expected
    assert spec.alpha == (suffix != ".mp4")
    check_encoder(spec)
    frames = [transparent(number, deep=bits > 8) for number in range(4)]
    segments = write_segments(tmp_path, spec, frames, per_segment=2)
    target = tmp_path / f"out{streams.suffix}"
    joined = join(segments, clip, streams, spec, target)
    check_output(target, plan=streams, frames=4, spec=spec, joined=joined)
    again = probe(target)
    assert again.has_alpha == spec.alpha
    decoder = ["-c:v", "libvpx-vp9"] if spec.codec == "vp9" else []
    ffmpeg(*decoder, "-i", str(target), "-pix_fmt", "rgba64le", "-f", "rawvideo", str(tmp_path / "raw"))
    rgba = np.fromfile(tmp_path / "raw", np.uint16).reshape(4, 48, 64, 4) / 257
    steps = np.linspace(0, 255, 64)
    assert np.abs(rgba[..., 3] - (steps if spec.alpha else 255)).max() < (6 if spec.codec == "vp9" else 2)
    # What cannot be seen may be coded badly.
    assert np.abs(rgba[:, :, 40:, :3] - np.stack([picture(n)[:, 40:] for n in range(4)])).mean() < 4


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipInfo:
    return probe(make_clip(tmp_path_factory.mktemp("clip") / "a.mp4"))


@pytest.mark.parametrize(
    ("suffix", "bits", "alpha", "codec"),
    [(".webm", 8, False, "vp9"), (".webm", 10, False, "av1"), (".png", 8, True, "png"), (".y4m", 8, False, "y4m")]
    + [(".mp4", 10, True, "hevc"), (None, 8, False, "h264"), (".mov", 8, False, "h264")],
)
def test_the_codec_fits_the_container_that_was_named(suffix: str | None, bits: int, alpha: bool, codec: str) -> None:
    assert choose_codec("auto", bits, has_alpha=alpha, suffix=suffix) == codec


@pytest.mark.parametrize(
    ("name", "container", "expected"),
    [
        ("a.gif", "gif", ("vp9", ".webm", "transparent vp9")),
        ("a.mov", "mov,mp4", ("prores", ".mov", "")),
        ("a.mp4", "mov,mp4", ("vp9", ".webm", "transparent vp9")),
        ("a.webm", "matroska,webm", ("vp9", ".webm", "")),
        ("a.mkv", "matroska,webm", ("vp9", ".mkv", "")),
    ],
)
@pytest.mark.parametrize("with_sound", [False, True], ids=["silent", "with sound"])
def test_the_container_is_one_that_keeps_transparency(
    clip: ClipInfo, name: str, container: str, expected: tuple[str, str, str], with_sound: bool
) -> None:
    video = clip.streams[clip.video_index]
    sound = (replace(video, index=9, kind="audio", codec="aac", sample_rate=48000),) if with_sound else ()
    info = replace(clip, path=Path(name), container=container, pix_fmt="bgra", has_alpha=True, streams=(video, *sound))
    codec, suffix, says = expected
    spec = choose_spec(info, width_px=64, height_px=48, threads=1)
    streams = plan_streams(info, None, codec=spec.codec)
    assert (spec.codec, spec.alpha) == (codec, True)
    assert streams.suffix == (".mkv" if suffix == ".webm" and with_sound else suffix) and says in streams.reason
    assert not streams.dropped


@pytest.mark.parametrize("codec", ["vp9", "hevc", "ffv1", "png"])
def test_equal_frames_give_equal_packets(tmp_path: Path, clip: ClipInfo, codec: str) -> None:
    spec = choose_spec(clip, width_px=320, height_px=96, codec=codec, threads=3)
    found: set[bytes] = set()
    for name in range(3):
        with SegmentWriter(tmp_path / f"{name}", spec) as writer:
            for number in range(6):
                writer.write(Frame(number, 1, picture(number, width=320, height=96)))
        with av.open(str(tmp_path / f"{name}")) as container:
            found.add(b"".join(bytes(packet) for packet in container.demux(video=0)))
    assert len(found) == 1


def test_eight_bits_out_of_sixteen_are_dithered_and_always_the_same(tmp_path: Path, clip: ClipInfo) -> None:
    # A slope of a hundredth of a level a pixel would be bands of a hundred pixels.
    slope = np.linspace(30_000, 30_600, 256)[None, :, None].repeat(64, 0).repeat(3, 2).astype(np.uint16)
    spec = choose_spec(clip, width_px=256, height_px=64, codec="ffv1", pix_fmt="yuv420p", threads=1)
    planes: list[np.ndarray] = []
    for name in "ab":
        with SegmentWriter(tmp_path / name, spec) as writer:
            writer.write(Frame(0, 1, slope))
        with av.open(str(tmp_path / name)) as container:
            planes.append(next(container.decode(video=0)).to_ndarray()[:64])
    assert (planes[0] == planes[1]).all()
    wanted = 16 + 219 * (slope[:, :, 0] / 65535)
    blocks = [each.reshape(8, 8, 32, 8).mean(axis=(1, 3)) for each in (planes[0].astype(float), wanted)]
    assert np.abs(blocks[0] - blocks[1]).max() < 0.1
    assert max(len(np.unique(planes[0][:, x])) for x in range(0, 256, 8)) > 1


def png_spec(clip: ClipInfo, **more: int | bool) -> EncodeSpec:
    return choose_spec(replace(clip, **more), width_px=64, height_px=48, codec="png", threads=1)


@pytest.mark.parametrize("bits", [8, 10])
def test_pictures_are_written_whole_numbered_and_exact(tmp_path: Path, clip: ClipInfo, bits: int) -> None:
    spec = png_spec(clip, bit_depth=bits)
    streams = plan_streams(clip, None, codec="png")
    assert streams.suffix == ".png" and any("cannot store timestamps" in note for note in streams.notes)
    level = 257 if bits > 8 else 1
    dtype = np.uint16 if bits > 8 else np.uint8
    frames = [Frame(n, 1, picture(n).astype(dtype) * dtype(level)) for n in range(5)]
    segments = write_segments(tmp_path, spec, frames, per_segment=3)
    hidden, target = tmp_path / ".hidden" / "f%03d.png", tmp_path / "new" / "f%03d.png"
    assert write_pictures(segments, hidden) == 5
    check_pictures(hidden, frames=5, spec=spec)
    with pytest.raises(OutputCheckError, match=r"f006\.png"):
        check_pictures(hidden, frames=6, spec=spec)
    move_pictures(hidden, target, frames=5)
    assert sorted(path.name for path in target.parent.iterdir()) == [f"f{n:03d}.png" for n in range(1, 6)]
    for number in range(5):
        (frame,) = read_frames(probe(numbered(target, number + 1)), warn=print)
        assert (frame.rgb_hwc == frames[number].rgb_hwc).all()


def test_pictures_that_cannot_all_be_moved_are_not_there_at_all(tmp_path: Path, clip: ClipInfo) -> None:
    spec = png_spec(clip)
    segments = write_segments(tmp_path, spec, [Frame(n, 1, picture(n)) for n in range(3)], per_segment=3)
    write_pictures(segments, tmp_path / "made" / "%d.png")
    (tmp_path / "target" / "3.png").mkdir(parents=True)
    with pytest.raises(OutputError, match="folder"):
        move_pictures(tmp_path / "made" / "%d.png", tmp_path / "target" / "%d.png", frames=3)
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["3.png"]


@pytest.mark.parametrize("rotation_deg", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_and_plain_frames_are_upright(
    tmp_path: Path, clip: ClipInfo, rotation_deg: int, mirrored: bool
) -> None:
    spec = png_spec(clip, rotation_deg=rotation_deg, mirrored=mirrored)
    segments = write_segments(tmp_path, spec, [Frame(0, 1, picture(0))], per_segment=1)
    write_pictures(segments, tmp_path / "%d.png")
    check_pictures(tmp_path / "%d.png", frames=1, spec=spec)
    (frame,) = read_frames(probe(tmp_path / "1.png"), warn=print)
    flipped = picture(0)[:, ::-1] if mirrored else picture(0)
    assert (frame.rgb_hwc == np.rot90(flipped, -rotation_deg // 90)).all()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le"])
def test_plain_frames_are_read_by_another_program(tmp_path: Path, clip: ClipInfo, pix_fmt: str) -> None:
    info = replace(clip, sample_aspect_ratio=Fraction(4, 3), rotation_deg=90)
    spec = choose_spec(info, width_px=64, height_px=48, codec="y4m", pix_fmt=pix_fmt, threads=1)
    assert plan_streams(clip, ".y4m", codec="y4m").suffix == ".y4m"
    frames = [Frame(n, 1, picture(n)) for n in range(5)]
    segments = write_segments(tmp_path, spec, frames, per_segment=3)
    with open(tmp_path / "a.y4m", "wb") as file:
        assert write_y4m(segments, spec, file) == 5
    again = probe(tmp_path / "a.y4m")
    assert (again.width_px, again.height_px, again.average_rate) == (48, 64, 25)
    assert (again.sample_aspect_ratio, again.pix_fmt) == (Fraction(3, 4), pix_fmt)
    hashes = [ffmpeg("-i", str(path), "-f", "framehash", "-hash", "crc32", "-").splitlines()[-1].split(",")[-1]
              for path in (tmp_path / "a.y4m", segments[-1].path)]  # fmt: skip
    assert hashes[0] == hashes[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_sink_that_takes_no_more_is_an_output_error(tmp_path: Path, clip: ClipInfo) -> None:
    spec = choose_spec(clip, width_px=64, height_px=48, codec="y4m", threads=1)
    segments = write_segments(tmp_path, spec, [Frame(0, 1, picture(0))], per_segment=1)
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OutputError, match="full"):
        write_y4m(segments, spec, file)


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


def test_a_join_that_is_killed_leaves_nothing_and_the_next_one_gives_the_same_bytes(tmp_path: Path, made: Path) -> None:
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


def test_what_the_picture_loses_is_named(clip: ClipInfo) -> None:
    fine = replace(clip, pix_fmt="yuv444p12le", bit_depth=12)
    spec = choose_spec(fine, width_px=64, height_px=64, codec="av1", threads=1)
    assert [loss.split()[1] for loss in losses(fine, spec)] == ["input", "input"]
    assert losses(fine, choose_spec(fine, width_px=64, height_px=64, threads=1)) == ()
    with pytest.raises(UsageError, match="mov"):
        plan_streams(clip, ".mkv", codec="png")
