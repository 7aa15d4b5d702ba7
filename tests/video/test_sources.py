"""What is read besides plain files: numbered pictures, pipes, transparency, HDR, and all that is awkward."""

import io
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from tests.video.clips import ClipPlan, ffmpeg, make_clip, mean_error, picture, shown_times
from ultraflash_cli.errors import InputError, OutputError
from ultraflash_cli.video.color import ContentLight, MasteringDisplay
from ultraflash_cli.video.decode import DecodedFrame, ReadReport, read_frames
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.probe import ClipInfo, probe
from ultraflash_cli.video.sequence import ImageSequence, find_sequence
from ultraflash_cli.video.source import Source, find_source, open_input
from ultraflash_cli.video.truncation import missing_bytes

X264 = ("-c:v", "libx264", "-preset", "ultrafast")
X265 = ("-c:v", "libx265", "-preset", "ultrafast")


def made(seconds: str = "0.4", size: str = "64x48", rate: int = 25) -> list[str]:
    return ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}"]


def read(source: Source, *, alpha: bool = False) -> tuple[ClipInfo, list[DecodedFrame], list[str], ReadReport]:
    info = probe(source)
    warnings: list[str] = []
    report = ReadReport()
    frames = list(read_frames(info, alpha=alpha, warn=warnings.append, report=report))
    assert report.frames == len(frames)
    assert all(b.pts > a.pts for a, b in pairwise(frames))
    return info, frames, warnings, report


def same(a: Sequence[DecodedFrame], b: Sequence[DecodedFrame]) -> bool:
    return len(a) == len(b) and all(
        (x.pts, x.duration) == (y.pts, y.duration) and np.array_equal(x.rgb_hwc, y.rgb_hwc)
        for x, y in zip(a, b, strict=True)
    )


# Numbered pictures


def pictures(folder: Path, *, name: str = "%05d.png", first: int = 1, count: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    escaped = str(folder).replace("%", "%%")
    ffmpeg(*made("1"), "-frames:v", str(count), "-start_number", str(first), f"{escaped}/{name}")
    return folder


@pytest.mark.parametrize("name", ["%05d.png", "shot 50%% ünï 🎬 %d.png", "f%03d.jpg", "a_%04d.tif", "b%d.bmp"])
@pytest.mark.parametrize("first", [0, 8])
def test_numbered_pictures_are_a_clip_of_24_frames_a_second(tmp_path: Path, name: str, first: int) -> None:
    folder = pictures(tmp_path / "a %d folder", name=name, first=first)
    (folder / "notes.txt").write_text("no picture")
    pattern = folder / name.replace("%%", "%")
    for source in (find_source(folder, images=True), find_source(pattern)):
        assert isinstance(source, ImageSequence) and source.first == first
        info, frames, warnings, _ = read(source)
        assert info.average_rate == 24 and not warnings
        assert [frame.pts * info.time_base for frame in frames] == [Fraction(n, 24) for n in range(4)]
        assert info.path.parent == folder and info.frame_count_estimate == 4
        for number, frame in enumerate(frames):
            (alone,) = read(source.picture(number))[1]
            assert np.array_equal(frame.rgb_hwc, alone.rgb_hwc)


def test_the_frame_rate_of_pictures_can_be_said(tmp_path: Path) -> None:
    info, frames, _, _ = read(find_source(pictures(tmp_path / "a"), images=True, rate=Fraction(30000, 1001)))
    assert frames[3].pts * info.time_base == Fraction(3003, 30000)


def test_numbers_with_growing_length_are_in_the_order_of_counting(tmp_path: Path) -> None:
    sequence = find_sequence(pictures(tmp_path / "a", name="f%d.png", first=8, count=5))
    assert [path.name for path in sequence.pictures()] == ["f8.png", "f9.png", "f10.png", "f11.png", "f12.png"]
    wide = find_sequence(pictures(tmp_path / "b", name="f%02d.png", first=98, count=4))
    assert [path.name for path in wide.pictures()] == ["f98.png", "f99.png", "f100.png", "f101.png"]
    assert len(read(sequence)[1]) == 5 and len(read(wide)[1]) == 4


def test_gaps_mixed_series_and_empty_folders_are_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", count=5)
    (folder / "00003.png").unlink()
    for path in (folder, folder / "%05d.png"):
        with pytest.raises(InputError, match=r"00003.png is missing \(1 of 5 are\)"):
            find_sequence(path)
    two = pictures(tmp_path / "b")
    pictures(two, name="x%03d.png")
    with pytest.raises(InputError, match="several image sequences"):
        find_sequence(two)
    assert find_sequence(two / "x%03d.png").count == 4
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="no numbered images"):
        find_sequence(tmp_path / "c")
    with pytest.raises(InputError, match="no file matches"):
        find_sequence(tmp_path / "c" / "%d.png")
    with pytest.raises(InputError, match="no such folder"):
        find_sequence(tmp_path / "d" / "%d.png")
    (pictures(tmp_path / "e") / "cover.png").write_bytes(b"x")
    with pytest.raises(InputError, match="does not end in a number"):
        find_sequence(tmp_path / "e")


@pytest.mark.parametrize("name", ["%05d.png", "%05d.bmp"])
def test_pictures_of_two_sizes_are_refused_and_named(tmp_path: Path, name: str) -> None:
    folder = pictures(tmp_path / "a", name=name)
    ffmpeg(*made("0.04", "32x48"), str(folder / (name % 3)))
    with pytest.raises(InputError, match=r"00003\.\w+: 32x48 pixels, but .* 64x48"):
        read(find_source(folder, images=True))


def test_a_folder_is_no_clip_unless_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        probe(find_source(pictures(tmp_path / "a")))
    assert isinstance(find_source(tmp_path / "a" / "%05d.png"), ImageSequence)
    literal = make_clip(tmp_path / "a.mp4").rename(tmp_path / "50%d.mp4")
    assert find_source(literal) == literal


# Pipes


class Trickle(io.RawIOBase):
    """A pipe: gives a few bytes at a time and cannot be sought."""

    def __init__(self, content: bytes, step: int = 777) -> None:
        self._rest = io.BytesIO(content)
        self._step = step

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._rest.read(min(self._step, size) if size >= 0 else self._step)


@pytest.mark.parametrize(
    ("suffix", "arguments"),
    [
        (".y4m", ("-pix_fmt", "yuv420p")),
        (".mkv", X264),
        (".ts", X264),
        (".nut", ("-c:v", "ffv1")),
        (".webm", ("-c:v", "libvpx-vp9", "-cpu-used", "8")),
        (".mp4", (*X264, "-movflags", "frag_keyframe+empty_moov")),
        (".h264", X264),
    ],
)
@pytest.mark.parametrize("spooled", [False, True])
def test_a_pipe_gives_the_frames_of_the_file(
    tmp_path: Path, suffix: str, arguments: Sequence[str], spooled: bool
) -> None:
    path = tmp_path / f"a{suffix}"
    ffmpeg(*made("1.2"), *arguments, str(path))
    _, expected, _, _ = read(path)
    pipe = Pipe(Trickle(path.read_bytes()))
    info = probe(pipe)
    assert probe(pipe).width_px == 64 and info.path == Path("-")
    digest = pipe.head_digest()
    if spooled:
        pipe.spool_to(tmp_path / "spool")
    frames = list(read_frames(info, warn=print))
    assert same(frames, expected)
    assert digest == Pipe(Trickle(path.read_bytes(), 50)).head_digest()
    if spooled:
        pipe.read_to_end()
        assert pipe.whole_file is not None and pipe.whole_file.read_bytes() == path.read_bytes()
        assert same(list(read_frames(info, warn=print)), expected)
        with open_input(pipe) as container:
            assert container.streams.video
    else:
        with pytest.raises(InputError, match="only once"):
            list(read_frames(info, warn=print))


def test_a_pipe_holds_in_memory_no_more_than_its_head() -> None:
    pipe = Pipe(Trickle(bytes(1_000_000), 10_000))
    head = pipe.reader(last=False)
    assert len(head.read(4000)) == 4000
    reader = pipe.reader(last=True)
    sizes = []
    while content := reader.read(10_000):
        sizes.append(len(content))
        assert len(pipe._memory) <= 10_000
    assert sum(sizes) == 1_000_000


@pytest.mark.parametrize("content", [b"", b"no film", bytes(200_000)])
def test_a_pipe_without_a_video_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="-: what comes through the pipe"):
        probe(Pipe(Trickle(content)))


def test_a_file_whose_index_is_at_the_end_cannot_come_through_a_pipe(tmp_path: Path) -> None:
    # Larger than what is read at once, or the index is there before its frames are asked for.
    path = tmp_path / "a.mp4"
    noise = "testsrc2=size=320x240:rate=25:duration=0.4,noise=alls=60:allf=t"
    ffmpeg("-f", "lavfi", "-i", noise, "-c:v", "libx264", "-preset", "ultrafast", "-crf", "1", str(path))
    with pytest.raises(InputError, match="save it to a file"):
        read(Pipe(Trickle(path.read_bytes())))


def test_a_broken_pipe_and_a_full_spool_are_told_apart(tmp_path: Path) -> None:
    class Broken(Trickle):
        def read(self, size: int = -1, /) -> bytes:
            raise OSError("gone")

    with pytest.raises(InputError, match="gone"):
        probe(Pipe(Broken(b"")))
    with pytest.raises(OutputError):
        Pipe(Trickle(b"")).spool_to(tmp_path / "none" / "spool")
    if Path("/dev/full").exists():
        pipe = Pipe(Trickle(bytes(10)))
        with pytest.raises(OutputError):
            pipe.spool_to(Path("/dev/full"))
            pipe.read_to_end()


# Transparency

CLEAR = "color=red:size=64x48:rate=25:duration=0.2,format={0},geq=lum='X*3':cb=128:cr=128:a='Y*5'"
CLEAR_RGB = "color=red:size=64x48:rate=25:duration=0.2,format={0},geq=r='X*3':g='Y':b=50:a='Y*5'"


@pytest.mark.parametrize(
    ("suffix", "pix_fmt", "arguments"),
    [
        (".webm", "yuva420p", "-c:v libvpx-vp9 -lossless 1 -auto-alt-ref 0"),
        (".webm", "yuva420p", "-c:v libvpx -auto-alt-ref 0"),
        (".mkv", "yuva420p", "-c:v ffv1"),
        (".mkv", "yuva422p", "-c:v ffv1"),
        (".mkv", "yuva444p", "-c:v ffv1"),
        (".mov", "yuva444p", "-c:v prores_ks -alpha_bits 8 -pix_fmt yuva444p10le"),
        (".mkv", "rgba", "-c:v ffv1 -pix_fmt bgra"),
        (".mov", "rgba", "-c:v qtrle -pix_fmt argb"),
        (".mov", "rgba", "-c:v png -pix_fmt rgba"),
        (".mov", "rgba", "-c:v png -pix_fmt rgba64be"),
        (".mov", "rgba", "-c:v png -pix_fmt ya8"),
        (".mov", "rgba", "-c:v png -pix_fmt ya16be"),
        (".apng", "rgba", "-pix_fmt rgba"),
        (".png", "rgba", "-frames:v 1"),
        (".webp", "rgba", "-frames:v 1 -c:v libwebp -lossless 1"),
        (".mkv", "rgba", "-c:v ffv1 -pix_fmt gbrap10le -strict -2"),
        (".mkv", "rgba", "-c:v ffv1 -pix_fmt gbrap16le -strict -2"),
    ],
)
def test_transparency_comes_in_the_depth_of_the_picture(
    tmp_path: Path, suffix: str, pix_fmt: str, arguments: str
) -> None:
    path = tmp_path / f"a{suffix}"
    source = (CLEAR_RGB if pix_fmt == "rgba" else CLEAR).format(pix_fmt)
    chosen = [] if "-pix_fmt" in arguments else ["-pix_fmt", pix_fmt]
    ffmpeg("-f", "lavfi", "-i", source, *arguments.split(), *chosen, str(path))
    info, frames, warnings, _ = read(path, alpha=True)
    assert info.has_alpha and not warnings
    assert len(frames) == (1 if "-frames:v 1" in arguments else 5)
    most = 65535 if info.bit_depth > 8 else 255
    for frame in frames:
        assert frame.alpha_hw is not None and frame.alpha_hw.shape == (48, 64)
        assert frame.alpha_hw.dtype == frame.rgb_hwc.dtype
        expected = np.arange(48)[:, None] * 5 / 255 * np.ones((48, 64))
        assert np.abs(frame.alpha_hw / most - expected).max() < 0.006
    if suffix != ".webp":
        plain = read(path)[1]
        assert all(frame.alpha_hw is None for frame in plain)
        assert all(mean_error(a.rgb_hwc, b.rgb_hwc) <= most / 255 for a, b in zip(frames, plain, strict=True))


def test_a_gif_is_transparent_where_it_says_so_and_opaque_else(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    source = "color=red:size=64x48:rate=10:duration=0.3,format=rgba,geq=r=200:g=X:b=0:a='if(lt(X,32),0,255)'"
    ffmpeg("-f", "lavfi", "-i", source, "-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse", str(path))
    info, frames, _, _ = read(path, alpha=True)
    assert info.has_alpha
    for frame in frames:
        assert frame.alpha_hw is not None
        assert (frame.alpha_hw[:, :31] == 0).all() and (frame.alpha_hw[:, 33:] == 255).all()
    ffmpeg(*made(), str(path))
    info, frames, warnings, _ = read(path, alpha=True)
    assert not info.has_alpha and frames[0].alpha_hw is None and not warnings


# High dynamic range


def test_mastering_display_and_light_levels_are_read(tmp_path: Path) -> None:
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    params = f"log-level=none:master-display={display}:max-cll=1000,400"
    tags = ["-vf", "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"]
    for suffix in (".mp4", ".mkv"):
        path = tmp_path / f"a{suffix}"
        ffmpeg(*made("0.1"), *X265, "-pix_fmt", "yuv420p10le", "-x265-params", params, *tags, str(path))
        info = probe(path)
        assert info.mastering_display == MasteringDisplay(
            red=(Fraction(34000, 50000), Fraction(16000, 50000)),
            green=(Fraction(13250, 50000), Fraction(34500, 50000)),
            blue=(Fraction(7500, 50000), Fraction(3000, 50000)),
            white=(Fraction(15635, 50000), Fraction(16450, 50000)),
            darkest_nits=Fraction(50, 10000),
            brightest_nits=Fraction(1000),
        )
        assert info.mastering_display is not None and info.mastering_display.x265 == display
        assert info.mastering_display.svtav1.endswith("L(1000.0000,0.0050)")
        assert info.content_light == ContentLight(max_cll=1000, max_fall=400)
        assert (info.color.primaries, info.color.transfer, info.color.matrix) == (9, 16, 9)
    plain = probe(make_clip(tmp_path / "plain.mp4"))
    assert plain.mastering_display is None and plain.content_light is None


@pytest.mark.parametrize(("place", "name"), [(0, "left"), (1, "center"), (2, "topleft")])
def test_where_the_chroma_lies_is_read(tmp_path: Path, place: int, name: str) -> None:
    path = tmp_path / "a.mkv"
    ffmpeg(*made("0.1"), *X265, "-x265-params", f"log-level=none:chromaloc={place}", str(path))
    assert probe(path).chroma_location == name


# Turned and stretched


@pytest.mark.parametrize(
    ("flags", "rotation", "mirrored"),
    [
        (("-display_hflip",), 0, True),
        (("-display_vflip",), 180, True),
        (("-display_rotation", "90"), 270, False),
        (("-display_rotation", "30"), 0, False),
    ],
)
def test_flips_and_turns_are_told_apart(tmp_path: Path, flags: Sequence[str], rotation: int, mirrored: bool) -> None:
    source = make_clip(tmp_path / "a.mp4")
    path = tmp_path / "b.mp4"
    ffmpeg(*flags, "-i", str(source), "-c", "copy", str(path))
    info = probe(path)
    assert (info.rotation_deg % 360, info.mirrored) == (rotation % 360, mirrored)
    for stored, shown in zip(read(source)[1], read(path)[1], strict=True):
        assert np.array_equal(stored.rgb_hwc, shown.rgb_hwc)


# Time


def test_a_clip_cut_within_an_open_group_begins_with_what_can_be_shown(tmp_path: Path) -> None:
    whole, cut = tmp_path / "a.ts", tmp_path / "b.ts"
    ffmpeg(*made("2"), "-c:v", "libx264", "-bf", "3", "-g", "10", "-x264-params", "open-gop=1", str(whole))
    data = whole.read_bytes()
    cut.write_bytes(data[len(data) // 188 * 2 // 5 * 188 :])
    info, frames, _, _ = read(cut)
    times = shown_times(cut)
    ours = [frame.pts * info.time_base for frame in frames]
    assert ours == times[-len(ours) :] and len(times) - len(ours) <= 4


def test_doubled_and_missing_time_stamps_are_made_to_grow_and_it_is_said_once(tmp_path: Path) -> None:
    source, path = make_clip(tmp_path / "a.mkv", ClipPlan(codec="ffv1", options={})), tmp_path / "b.mkv"
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(given.demux(video=0)):
            if packet.size:
                packet.pts = packet.dts = (number - (number in (4, 5, 6))) * 40
                packet.stream = stream
                out.mux_one(packet)
    _, frames, warnings, report = read(path)
    assert len(frames) == 12
    assert report.repaired_times == 1 and not report.damaged
    assert len(warnings) == 1 and "1 time stamps" in warnings[0]


def test_a_clip_whose_clock_wraps_or_starts_anew_goes_on(tmp_path: Path) -> None:
    part = tmp_path / "a.ts"
    ffmpeg(*made("0.4"), *X264, "-output_ts_offset", "30", str(part))
    path = tmp_path / "b.ts"
    path.write_bytes(part.read_bytes() * 3)
    info, frames, warnings, report = read(path)
    assert len(frames) == 30 and (report.restarts, report.repaired_times) == (2, 0)
    assert len(warnings) == 1 and "restarts 2 times, first at 0.40 s" in warnings[0]
    assert {(after.pts - before.pts) * info.time_base for before, after in pairwise(frames)} == {Fraction(1, 25)}
    assert (info.duration_s, info.end_pts) == (1.2, frames[-1].pts + frames[-1].duration)


# Several streams, changes on the way


def test_cover_pictures_and_second_videos_are_never_taken_for_the_video(tmp_path: Path) -> None:
    ffmpeg(*made("0.04", "32x32"), "-frames:v", "1", str(tmp_path / "cover.png"))
    first, second = make_clip(tmp_path / "a.mp4"), make_clip(tmp_path / "b.mp4", ClipPlan(size=(48, 32)))
    path = tmp_path / "all.mp4"
    inputs = ["-i", str(tmp_path / "cover.png"), "-i", str(first), "-i", str(second)]
    maps = ["-map", "0", "-map", "1", "-map", "2", "-c", "copy", "-disposition:v:0", "attached_pic"]
    ffmpeg(*inputs, *maps, str(path))
    info, frames, _, _ = read(path)
    assert (info.width_px, len(frames)) == (64, 12)
    assert [stream.codec for stream in info.other_videos] == ["h264"]
    assert [stream.is_picture for stream in info.streams].count(True) == 1
    ffmpeg(*inputs[2:], "-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "0", "-disposition:v:1", "default",
           str(tmp_path / "b.mkv"))  # fmt: skip
    assert probe(tmp_path / "b.mkv").width_px == 48


def test_a_picture_that_changes_size_is_scaled_to_the_largest_and_it_is_said_once(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{n}.ts", ClipPlan(size=size)) for n, size in enumerate([(64, 48), (96, 64)] * 2)]
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    _, frames, warnings, _ = read(path)
    assert len(frames) == 48
    assert {frame.rgb_hwc.shape for frame in frames} == {(64, 96, 3)}
    assert sum("(64x48 at 0.00 s); all is scaled to 96x64" in warning for warning in warnings) == 1
    assert mean_error(frames[12 + 5].rgb_hwc, picture(5, width=96, height=64)) < 4


def test_pixels_that_change_their_shape_are_said_once(tmp_path: Path) -> None:
    parts = [tmp_path / f"{number}.ts" for number in range(2)]
    for part, aspect in zip(parts, ("4/3", "16/9"), strict=True):
        ffmpeg(*made(), "-c:v", "mpeg2video", "-q:v", "3", "-aspect", aspect, str(part))
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts) * 2)
    info, frames, warnings, _ = read(path)
    assert info.sample_aspect_ratio == 1 and len(frames) == 40
    assert sum("changes from 1 to 4/3" in warning for warning in warnings) == 1


# Fields


@pytest.mark.parametrize(("order", "scan"), [("interleave_top", "tff"), ("interleave_bottom", "bff")])
def test_interlaced_pictures_without_a_flag_are_found_by_measuring(tmp_path: Path, order: str, scan: str) -> None:
    path = tmp_path / "a.mkv"
    moving = ["-f", "lavfi", "-i", "color=gray:size=160x96:rate=50:duration=1"]
    shape = "geq=lum='128+100*sin((X+N*3)/7)*cos((Y+N)/9)':cb=128:cr=128"
    ffmpeg(*moving, "-vf", f"{shape},tinterlace={order},setfield=prog", "-c:v", "ffv1", str(path))
    info, frames, warnings, _ = read(path)
    assert info.scan == scan and info.interlaced
    assert len(frames) == 25
    assert len(warnings) == 1 and "bwdif" in warnings[0]
    combed = [np.abs(np.diff(f.rgb_hwc[:, :, 1].astype(int), 2, axis=0)).mean() for f in frames]
    plain = list(read_frames(info, deinterlace=False, warn=print))
    before = [np.abs(np.diff(f.rgb_hwc[:, :, 1].astype(int), 2, axis=0)).mean() for f in plain]
    assert np.median(combed) < 0.5 * np.median(before)


def test_progressive_pictures_are_left_alone_and_so_is_telecined_film(tmp_path: Path) -> None:
    moving = ["-f", "lavfi", "-i", "color=gray:size=160x96:rate=24:duration=2"]
    shape = "geq=lum='128+100*sin((X+N*6)/7)*cos((Y+N*2)/9)':cb=128:cr=128"
    ffmpeg(*moving, "-vf", shape, "-c:v", "ffv1", str(tmp_path / "a.mkv"))
    info, _, warnings, _ = read(tmp_path / "a.mkv")
    assert info.scan == "progressive" and not warnings
    ffmpeg(*moving, "-vf", f"{shape},telecine,setfield=tff", "-c:v", "ffv1", str(tmp_path / "b.mkv"))
    info, _, warnings, _ = read(tmp_path / "b.mkv")
    assert info.scan == "telecined" and not info.interlaced
    assert len(warnings) == 1 and "telecine" in warnings[0]


# Damage


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4", ".mov", ".avi"])
def test_a_broken_tail_is_salvaged_and_its_loss_is_a_value(tmp_path: Path, suffix: str) -> None:
    codec = ["-c:v", "libvpx", "-g", "5"] if suffix == ".webm" else [*X264, "-g", "5"]
    flags = ["-movflags", "faststart"] if suffix in (".mp4", ".mov") else []
    whole, cut = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    ffmpeg(*made("4"), *codec, *flags, str(whole))
    assert missing_bytes(whole) == 0
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) * 6 // 10])
    assert missing_bytes(cut) == len(data) - len(data) * 6 // 10
    _, frames, warnings, report = read(cut)
    assert 20 < len(frames) < 95
    assert report.damaged and report.missing_bytes and (report.lost_s > 0 or suffix == ".avi")
    assert len(warnings) == 1 and "lost" in warnings[0] and "\n" not in warnings[0]
    _, frames, warnings, report = read(whole)
    assert len(frames) == 100 and not report.damaged and not warnings


def test_encrypted_videos_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    key = ["-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8"]
    ffmpeg(*made(), *X264, "-encryption_scheme", "cenc-aes-ctr", *key, str(path))
    with pytest.raises(InputError, match="is encrypted"):
        probe(path)


def test_an_unknown_codec_is_refused_in_one_line(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(InputError, match="codec") as refusal:
        probe(path)
    assert "\n" not in str(refusal.value)


def test_files_without_a_frame_are_refused_and_one_frame_is_enough(tmp_path: Path) -> None:
    one = make_clip(tmp_path / "a.mp4", ClipPlan(pts=(0,)))
    info, frames, _, _ = read(one)
    assert len(frames) == 1 and info.frame_count_estimate == 1
    empty = tmp_path / "b.mkv"
    with av.open(str(empty), "w") as container:
        container.add_stream("ffv1", rate=25, width=64, height=48)
        container.start_encoding()
    with pytest.raises(InputError, match=r"not one frame|not a video"):
        probe(empty)
