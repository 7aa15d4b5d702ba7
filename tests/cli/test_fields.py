"""Fields and frame rates through the command, measured or requested, and read back by
another program."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.cli.doubled import cases, doubled, same_pictures
from tests.cli.independent import look
from tests.video.clips import ClipPlan, ffmpeg, make_clip
from ultraflash_cli.errors import UsageError
from ultraflash_cli.main import main
from ultraflash_cli.options import as_rate

__all__ = ["cases", "doubled"]

WAVES = "geq=lum='128+100*sin((X+N*3)/7)*cos((Y+N)/9)':cb=128:cr=128"
GRAY = "-f lavfi -i color=gray:size={}:rate={}:duration={}"
TILES = "geq=lum='mod(floor(X/2)*37+floor((Y+{})/2)*floor((Y+{})/2)*53\\,200)+20':cb=128:cr=128"
"""Pixel art of random tiles, doubled by repeating, that scrolls."""
PROGRESSIVE = {
    "a scroll by one pixel of a doubled game.mp4": f"{GRAY.format('128x96', 30, 1)} -vf {TILES.format('2*N', '2*N')}"
    " -c:v libx264 -preset ultrafast",
    "the same, up.mkv": f"{GRAY.format('128x96', 25, 1)} -vf {TILES.format('200-2*N', '200-2*N')} -c:v ffv1",
    "a few frames in DNxHR.mov": "-f lavfi -i testsrc2=size=256x128:rate=25:duration=0.2 -c:v dnxhd "
    "-profile:v dnxhr_hq -pix_fmt yuv422p",
    "a test picture in MPEG-4.avi": "-f lavfi -i testsrc2=size=160x96:rate=25:duration=1 -c:v mpeg4 -q:v 5",
}
FLAGGED = "-c:v mpeg2video -q:v 2 -g 10 -flags +ilme+ildct"


@pytest.mark.parametrize("name", PROGRESSIVE)
def test_pictures_with_sharp_lines_are_not_taken_for_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    ffmpeg(*PROGRESSIVE[name].split(), str(tmp_path / name))
    assert main(["probe", str(tmp_path / name), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["interlaced"] is False


def test_a_scrolling_game_keeps_its_lines(cases: Path, tmp_path: Path, doubled: Callable[..., list[str]]) -> None:
    source = cases / "28-pixel-art-scroll.mp4"
    assert doubled(source, tmp_path / "out.mkv", "--end", "0.2") == []
    before, after = look(source, tmp_path), look(tmp_path / "out.mkv", tmp_path)
    assert after.size == (640, 448) and len(after.times) == 6
    assert np.abs(before.pictures[:6] - after.pictures).mean() < 3


def test_a_flag_that_the_pictures_belie_is_not_believed_unless_asked(
    tmp_path: Path, doubled: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.mkv"
    ffmpeg(*GRAY.format("160x96", 25, 1).split(), "-vf", f"{WAVES},setfield=tff", *FLAGGED.split(), str(source))
    warnings = doubled(source, tmp_path / "out.mkv")
    assert len(warnings) == 1 and "flagged as interlaced" in warnings[0] and "--deinterlace frame" in warnings[0]
    assert main(["probe", str(source), "--json"]) == 0
    assert warnings[0] in json.loads(capsys.readouterr().out)["warnings"]
    same_pictures(look(source, tmp_path), look(tmp_path / "out.mkv", tmp_path), 1.0)
    warnings = doubled(source, tmp_path / "out.mkv", "--deinterlace", "frame")
    assert len(warnings) == 1 and "one frame out per frame in" in warnings[0]
    assert doubled(source, tmp_path / "out.mkv", "--deinterlace", "off") == []


def test_a_title_without_fields_does_not_hide_later_ones(tmp_path: Path, doubled: Callable[..., list[str]]) -> None:
    source = tmp_path / "a.ts"
    parts = [tmp_path / "title.ts", tmp_path / "film.ts"]
    ffmpeg(*GRAY.format("160x96", 25, 1).split(), "-vf", f"{WAVES},setfield=tff", *FLAGGED.split(), str(parts[0]))
    fields = f"{WAVES},tinterlace=interleave_top,setfield=tff"
    ffmpeg(
        *GRAY.format("160x96", 50, 2).split(), "-vf", fields, *FLAGGED.split(), "-output_ts_offset", "1", str(parts[1])
    )
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    warnings = doubled(source, tmp_path / "out.mkv", "--end", "0.2")
    assert any("deinterlaced with bwdif" in warning for warning in warnings)


@pytest.mark.parametrize(("order", "scan"), [("top", "tff"), ("bottom", "bff")])
def test_fields_become_frames_at_twice_the_rate_exactly(
    tmp_path: Path, doubled: Callable[..., list[str]], order: str, scan: str
) -> None:
    source, output = tmp_path / "a.mkv", tmp_path / "out.mp4"
    fields = f"{WAVES},tinterlace=interleave_{order},setfield={scan}"
    ffmpeg(*GRAY.format("160x96", 50, 0.4).split(), "-vf", fields, *FLAGGED.split(), str(source))
    warnings = doubled(source, output, "--deinterlace", "field", "--codec", "h264", "--crf", "1")
    assert len(warnings) == 1 and "two frames out per frame in" in warnings[0]
    after = look(output, tmp_path)
    assert after.times == tuple(Fraction(number, 50) for number in range(20)) and after.end == Fraction(20, 50)
    before = look(source, tmp_path, before=f"bwdif=mode=send_field:parity={scan}:deint=all,")
    same_pictures(before, after)
    doubled(source, output, "--deinterlace", "frame", "--codec", "h264", "--crf", "1")
    assert look(output, tmp_path).times == tuple(Fraction(number, 25) for number in range(10))


def test_fields_can_be_left_woven(tmp_path: Path, doubled: Callable[..., list[str]]) -> None:
    source = tmp_path / "a.mkv"
    fields = f"{WAVES},tinterlace=interleave_top,setfield=tff"
    ffmpeg(*GRAY.format("160x96", 50, 0.4).split(), "-vf", fields, *FLAGGED.split(), str(source))
    assert doubled(source, tmp_path / "out.mkv", "--deinterlace", "off") == []
    same_pictures(look(source, tmp_path), look(tmp_path / "out.mkv", tmp_path), 1.0)


# Rates


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25", Fraction(25)),
        ("25.0", Fraction(25)),
        ("12.5", Fraction(25, 2)),
        ("23.976", Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("119.88", Fraction(120000, 1001)),
        ("30000/1001", Fraction(30000, 1001)),
        ("15/2", Fraction(15, 2)),
    ],
)
def test_a_rate_is_taken_exactly(text: str, rate: Fraction) -> None:
    assert as_rate(text) == rate


@pytest.mark.parametrize("text", ["", "x", "-1", "1/0", "30000/1001.5", "1e3", "inf", "25fps"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--fps must be a number"):
        as_rate(text)


@pytest.mark.parametrize(("text", "rate"), [("30000/1001", Fraction(30000, 1001)), ("23.976", Fraction(24000, 1001))])
def test_a_clip_and_pictures_are_timed_at_ntsc_rates(
    tmp_path: Path, doubled: Callable[..., list[str]], text: str, rate: Fraction
) -> None:
    source = make_clip(tmp_path / "a.mp4", ClipPlan(pts=range(25)))
    doubled(source, tmp_path / "out.mp4", "--fps", text, "--codec", "h264")
    after = look(tmp_path / "out.mp4", tmp_path)
    assert after.times == tuple(number / rate for number in range(len(after.times)))
    assert abs(len(after.times) - rate) < 1 and after.end == len(after.times) / rate
    folder = tmp_path / "shot"
    folder.mkdir()
    ffmpeg("-i", str(source), "-frames:v", "6", str(folder / "%03d.png"))
    doubled(folder / "%03d.png", tmp_path / "out.mp4", "--fps", text, "--codec", "h264")
    assert look(tmp_path / "out.mp4", tmp_path).times == tuple(number / rate for number in range(6))


def test_a_generated_clip_is_timed_at_an_ntsc_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.mp4"
    asked = ["--res", "480p", "--seconds", "0.3", "--fps", "29.97", "-o", str(output), "--codec", "h264"]
    assert main(["generate", "a lake", "--dry-run", *asked]) == 0
    assert main(["generate", "a lake", "--dry-run", *asked[:-5], "29,97"]) == 2
    assert "--fps must be a number such as" in capsys.readouterr().err
