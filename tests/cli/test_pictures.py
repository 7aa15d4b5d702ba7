"""Metadata next to the frames, constant or changing within a file, through the command;
read back by another program."""

import json
import re
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from struct import pack, unpack_from

import av
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cli.doubled import doubled, same_pictures
from tests.cli.independent import look
from tests.video.clips import ClipPlan, ffmpeg, make_clip
from ultraflash_cli.main import main

__all__ = ["doubled"]

MOVING = "-f lavfi -i testsrc2=size={}:rate=25:duration={}"


def coarse(path: Path) -> NDArray[np.float64]:
    """Return the frames of a clip whose size changes and is a multiple of 16x12, in the
    form that ``look`` returns."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([each.reshape(12, len(each) // 12, 16, each.shape[1] // 16, 3).mean((1, 3)) for each in frames])


def shown_crop(path: Path) -> list[str]:
    """Return the crop that the other program reads from a file:
    left/right/top/bottom."""
    done = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, check=False)
    return re.findall(r"Frame Cropping: (\S+)", done.stderr.decode())


def with_clean_aperture(path: Path, shown: tuple[int, int], left: int, top: int, size: tuple[int, int]) -> Path:
    """Put a ``clap`` box into the only video track of a QuickTime file whose index
    follows its frames."""
    content = bytearray(path.read_bytes())
    across, down = (2 * left + shown[0] - size[0], 2), (2 * top + shown[1] - size[1], 2)
    box = pack(">I4s8i", 40, b"clap", shown[0], 1, shown[1], 1, *across, *down)
    entry = content.index(b"avc1", content.index(b"stsd")) - 4
    end = entry + unpack_from(">I", content, entry)[0]
    content[end:end] = box
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        place = content.index(name, content.rindex(b"moov")) - 4
        content[place : place + 4] = pack(">I", unpack_from(">I", content, place)[0] + len(box))
    content[entry : entry + 4] = pack(">I", unpack_from(">I", content, entry)[0] + len(box))
    path.write_bytes(content)
    return path


# Cropping by the container


def test_a_clean_aperture_is_what_is_enlarged(cases: Path, tmp_path: Path, doubled: Callable[..., list[str]]) -> None:
    source = cases / "16-clean-aperture.mov"
    assert doubled(source, tmp_path / "out.mkv") == []
    after = look(tmp_path / "out.mkv", tmp_path)
    assert after.size == (128, 96) and shown_crop(tmp_path / "out.mkv") == []
    same_pictures(look(source, tmp_path), after)


@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
@pytest.mark.parametrize("rotation", [0, 90], ids=["upright", "turned"])
def test_crop_turn_and_shape_of_pixels_hold_together(
    tmp_path: Path, doubled: Callable[..., list[str]], suffix: str, rotation: int
) -> None:
    plan = ClipPlan(pts=range(4), size=(80, 56), aspect=Fraction(4, 3), rotation=rotation)
    source = with_clean_aperture(make_clip(tmp_path / "a.mov", plan), (64, 48), 12, 2, (80, 56))
    if suffix == ".mkv":
        ffmpeg("-i", str(source), "-c", "copy", str(tmp_path / "a.mkv"))
        source = tmp_path / "a.mkv"
    assert shown_crop(source) == ["12/4/2/6"]
    output = tmp_path / f"out{suffix}"
    doubled(source, output, "--codec", "h264", "--crf", "1")
    before, after = look(source, tmp_path), look(output, tmp_path)
    assert after.size == (128, 96) and shown_crop(output) == []
    assert after.aspect == before.aspect == Fraction(4, 3) and after.turn == before.turn
    assert bool(after.turn) == (rotation != 0)
    same_pictures(before, after, 3.0)


def test_transparency_is_cropped_as_the_picture_is(tmp_path: Path, doubled: Callable[..., list[str]]) -> None:
    clear = "-f lavfi -i color=red:size=80x56:rate=25:duration=0.12,format=rgba,geq=r='X*3':g='Y':b=50:a='Y*4'"
    source = tmp_path / "a.mov"
    ffmpeg(*clear.split(), *["-c:v", "prores_ks", "-pix_fmt", "yuva444p10le", "-movflags", "-faststart"], str(source))
    content = source.read_bytes().replace(b"ap4h", b"avc1")
    source.write_bytes(content)
    source.write_bytes(with_clean_aperture(source, (64, 48), 8, 4, (80, 56)).read_bytes().replace(b"avc1", b"ap4h"))
    assert shown_crop(source) == ["8/8/4/4"]
    doubled(source, tmp_path / "out.mkv")
    before, after = look(source, tmp_path), look(tmp_path / "out.mkv", tmp_path)
    assert after.size == (128, 96)
    assert np.ptp(after.pictures[..., 3]) > 100
    same_pictures(before, after)


# Changes within a file


def test_each_frame_is_read_in_its_own_range(cases: Path, tmp_path: Path, doubled: Callable[..., list[str]]) -> None:
    warnings = doubled(cases / "21-range-changes.h264", tmp_path / "out.mkv")
    assert [warning for warning in warnings if "matrix or range changes within" in warning] == warnings and len(
        warnings
    ) == 1
    after = look(tmp_path / "out.mkv", tmp_path).pictures
    half = len(after) // 2
    assert np.abs(after[:half].mean(axis=0) - after[half:].mean(axis=0)).mean() < 1.5


@pytest.mark.parametrize(
    "tags",
    [
        pytest.param(("colorspace=bt709", "out_color_matrix=bt709", 1), id="matrix"),
        pytest.param(("range=full", "out_range=full", 1), id="range"),
        pytest.param(("colorspace=bt709:range=full", "out_color_matrix=bt709:out_range=full", 2), id="both"),
    ],
)
def test_a_matrix_or_range_that_changes_in_mid_stream_is_honoured(
    tmp_path: Path, doubled: Callable[..., list[str]], tags: tuple[str, str, int]
) -> None:
    other, made, times = tags
    picture = "-f lavfi -i color=0xC04020:size=64x48:rate=25:duration=0.2"
    usual = "scale=out_color_matrix=smpte170m:out_range=limited,setparams=colorspace=smpte170m:range=limited"
    parts = [tmp_path / f"{number}.h264" for number in range(2)]
    for part, how in zip(parts, (usual, f"scale=out_color_matrix=smpte170m:{made},setparams={other}"), strict=True):
        how = how.replace("out_color_matrix=smpte170m:out_color_matrix", "out_color_matrix")
        how = how if "colorspace" in how else how.replace("setparams=", "setparams=colorspace=smpte170m:")
        how = how if "range=" in how.split("setparams")[1] else f"{how}:range=limited"
        ffmpeg(
            *picture.split(), "-vf", f"{how},format=yuv420p", *["-c:v", "libx264", "-crf", "1", "-bf", "0"], str(part)
        )
    source = tmp_path / "all.h264"
    source.write_bytes(b"".join(part.read_bytes() for part in parts) * times)
    warnings = doubled(source, tmp_path / "out.mkv")
    assert len(warnings) == 1 and "matrix or range" in warnings[0]
    after = look(tmp_path / "out.mkv", tmp_path).pictures
    assert len(after) == 10 * times
    assert np.abs(after[..., :3] - [0xC0, 0x40, 0x20]).max() < 6


def test_two_numbers_of_one_matrix_are_no_change(tmp_path: Path, doubled: Callable[..., list[str]]) -> None:
    parts = [tmp_path / f"{number}.h264" for number in range(2)]
    for part, matrix in zip(parts, ("smpte170m", "bt470bg"), strict=True):
        how = f"scale=out_color_matrix=smpte170m,setparams=colorspace={matrix}:range=limited,format=yuv420p"
        ffmpeg(*MOVING.format("64x48", 0.2).split(), "-vf", how, "-c:v", "libx264", "-bf", "0", str(part))
    source = tmp_path / "all.h264"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert doubled(source, tmp_path / "out.mkv") == []


def test_a_recording_that_grows_is_enlarged_from_its_largest_size(
    cases: Path, tmp_path: Path, doubled: Callable[..., list[str]]
) -> None:
    source = cases / "23-size-grows.h264"
    warnings = doubled(source, tmp_path / "out.mkv")
    assert len(warnings) == 1 and "(32x24 at 0.00 s); everything is scaled to 128x96" in warnings[0]
    after = look(tmp_path / "out.mkv", tmp_path)
    assert after.size == (256, 192)
    errors = np.abs(coarse(source) - after.pictures[..., :3]).mean(axis=(1, 2, 3))
    assert errors[:5].max() < 12 and errors[5:].max() < 4  # the first five have a sixteenth of the pixels


def test_a_growing_recording_in_webm_is_enlarged_from_its_largest_size(
    tmp_path: Path, doubled: Callable[..., list[str]]
) -> None:
    source = changing(tmp_path / "a.webm", [(48, 36), (96, 72), (64, 48)])
    doubled(source, tmp_path / "out.mkv")
    after = look(tmp_path / "out.mkv", tmp_path)
    assert after.size == (192, 144) and len(after.times) == 15
    assert np.abs(coarse(source) - after.pictures[..., :3]).mean(axis=(1, 2, 3)).max() < 6


def test_a_telephone_that_is_turned_while_it_records_is_not_stretched(
    tmp_path: Path, doubled: Callable[..., list[str]]
) -> None:
    source = changing(tmp_path / "a.webm", [(192, 144), (144, 192)])
    warnings = doubled(source, tmp_path / "out.mkv")
    assert len(warnings) == 1 and "bars" in warnings[0]
    before, after = coarse(source), look(tmp_path / "out.mkv", tmp_path).pictures[..., :3]
    assert np.abs(before[:5] - after[:5]).mean() < 6
    assert np.abs(before[5:].mean(axis=2) - after[5:].sum(axis=2) * 12 / 108).mean() < 6  # 108 of 192 columns
    assert not after[5:, :, [0, 1, 2, -3, -2, -1]].any()


def test_wide_and_narrow_pixels_in_one_recording_keep_their_shape(
    tmp_path: Path, doubled: Callable[..., list[str]]
) -> None:
    parts = [tmp_path / f"{number}.ts" for number in range(2)]
    for at_s, (part, aspect) in enumerate(zip(parts, ("16/9", "4/3"), strict=True)):
        white = "-f lavfi -i color=white:size=64x48:rate=25:duration=0.2"
        ffmpeg(*white.split(), *f"-c:v mpeg2video -q:v 2 -aspect {aspect} -output_ts_offset {at_s}".split(), str(part))
    source = tmp_path / "all.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    warnings = doubled(source, tmp_path / "out.mp4", "--codec", "h264", "--crf", "1")
    assert any("pixel aspect ratio changes" in warning for warning in warnings)
    after = look(tmp_path / "out.mp4", tmp_path)
    assert after.aspect == Fraction(4, 3)
    bright = after.pictures[..., :3].mean(axis=(1, 3)) > 128  # by frame and column
    assert bright[0].all() and bright[-1].sum() == 12 and not bright[-1, [0, 1, -2, -1]].any()


def changing(path: Path, sizes: list[tuple[int, int]]) -> Path:
    """A WebM file of five frames of each size, as browsers record them."""
    with av.open(str(path), "w") as container:
        stream = None
        for part, (width, height) in enumerate(sizes):
            piece = path.with_name(f"part{part}.webm")
            ffmpeg(
                *MOVING.format(f"{width}x{height}", 0.2).split(),
                *["-c:v", "libvpx", "-crf", "4", "-b:v", "2M"],
                str(piece),
            )
            with av.open(str(piece)) as given:
                stream = stream or container.add_stream_from_template(given.streams.video[0])
                for packet in given.demux(video=0):
                    if packet.size:
                        assert packet.pts is not None
                        packet.pts = packet.dts = packet.pts + 200 * part
                        packet.stream = stream
                        container.mux_one(packet)
    return path


# Unreadable transparency


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".h265"])
def test_transparency_in_a_layer_of_hevc_is_named_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    clear = "-f lavfi -i color=red:size=64x48:rate=25:duration=0.12,format=yuva420p,geq=lum='X*3':cb=128:cr=128:a='Y*5'"
    source, plain = tmp_path / f"a{suffix}", tmp_path / f"plain{suffix}"
    ffmpeg(*clear.split(), *["-c:v", "libx265", "-x265-params", "log-level=none"], str(source))
    ffmpeg(*clear.split(), *["-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", "log-level=none"], str(plain))
    for path, is_clear in ((source, True), (plain, False)):
        assert main(["probe", str(path), "--res", "2x", "--json"]) == 0
        warnings = json.loads(capsys.readouterr().out)["warnings"]
        assert any("it is in an HEVC layer" in warning for warning in warnings) == is_clear


def test_the_transparent_hevc_of_another_tool_is_named(
    cases: Path, tmp_path: Path, doubled: Callable[..., list[str]]
) -> None:
    warnings = doubled(cases / "24-hevc-alpha.mp4", tmp_path / "out.mkv")
    assert sum("it is in an HEVC layer" in warning for warning in warnings) == 1
