"""Inputs and outputs that cannot work: named for what they are, before any work."""

import io
import json
import sys
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.jobs.clips import make_clip, moving_picture
from tests.jobs.doubler import builder
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main


@pytest.fixture(autouse=True)
def doubler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))


def animation(path: Path) -> bytes:
    first, *others = (Image.fromarray(moving_picture(number, width=64, height=48)) for number in range(4))
    first.save(path, save_all=True, append_images=others, duration=40)
    return path.read_bytes()


@pytest.mark.parametrize("is_piped", [False, True], ids=["file", "pipe"])
def test_an_animated_webp_is_named(
    is_piped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = animation(tmp_path / "a.webp")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    source = "-" if is_piped else str(tmp_path / "a.webp")
    assert main(["upscale", source, "-o", str(tmp_path / "out.mp4")]) == 3
    assert capsys.readouterr().err.startswith(f"error: {source}: an animated WebP, which the built-in FFmpeg cannot")


def test_an_animated_png_is_read_from_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(animation(tmp_path / "a.png"))))
    assert main(["upscale", "-", "-o", str(tmp_path / "out.mkv"), "--res", "2x", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["frames_out"] == 4


@pytest.mark.parametrize(
    ("output", "code", "says"),
    [("link", 2, "error: {link} is a symlink to {target}"), ("link/", 7, "{link} is a symlink to {target}")],
    ids=["file", "folder"],
)
def test_a_dangling_link_as_output_is_named(
    output: str, code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link, target = tmp_path / "link", tmp_path / "nowhere"
    link.symlink_to(target)
    source = make_clip(tmp_path / "a.mkv", frames=4, audio=False)
    assert main(["upscale", str(source), "-o", f"{tmp_path}/{output}", "--res", "2x"]) == code
    said = capsys.readouterr().err
    assert f"{says.format(link=link, target=target)}, which does not exist; create that folder first" in said
    assert "model" not in said and not target.exists()


def test_both_fields_of_a_photo_are_two_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(moving_picture(0, width=64, height=48)).save(tmp_path / "a.png")
    command = ["upscale", str(tmp_path / "a.png"), "--res", "2x", "--deinterlace", "field"]
    assert main([*command, "-o", str(tmp_path / "out.png")]) == 2
    said = f"error: {tmp_path / 'out.png'} is a single image, but --deinterlace field makes two of a photo; use "
    assert capsys.readouterr().err == f"{said}--deinterlace frame, or {tmp_path / 'out'}/%05d.png\n"
    for output in ([], ["-o", str(tmp_path / "out" / "%d.png")]):
        assert main([*command, *output]) == 0
    made = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*.png"))
    assert made == ["a_2x/00001.png", "a_2x/00002.png", "out/1.png", "out/2.png"]


def test_a_photo_has_neither_frame_rate_nor_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(moving_picture(0, width=64, height=48)).save(tmp_path / "a.png")
    assert main(["probe", str(tmp_path / "a.png"), "--res", "2x"]) == 0
    shown = capsys.readouterr().out
    assert "length      a photo\n" in shown and "frame rate" not in shown
    assert main(["probe", str(tmp_path / "a.png"), "--res", "2x", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["average_rate"] is found["duration_s"] is None and found["frames_estimate"] == 1


def test_only_a_requested_size_beyond_x3_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_clip(tmp_path / "a.mkv", frames=2, width=64, height=48, audio=False)
    command = ["upscale", str(source), "--dry-run", "--json"]
    for options, warned in (([], False), (["--res", "3x"], False), (["--res", "4x"], True)):
        assert main([*command, *options]) == 0
        assert ("beyond x3" in capsys.readouterr().out) == warned


def test_compare_names_the_ffmpeg_that_it_lacks_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_text("no film")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["compare", str(tmp_path / "a.mp4"), str(tmp_path / "a.mp4")]) == 2
    assert "error: measuring needs the ffmpeg of the Python package imageio-ffmpeg; run pip" in capsys.readouterr().err


def test_webm_says_before_the_work_that_sound_is_left_out_and_opus_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = make_clip(tmp_path / "a.mkv", frames=12), tmp_path / "a.webm"
    command = ["upscale", str(source), "-o", str(output), "--res", "2x", "--json", "-q"]
    assert main([*command, "--dry-run"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning.endswith("audio aac: .webm cannot hold it; .mkv can, --audio opus converts it")
    assert main([*command, "--audio", "opus"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []
    with av.open(str(output)) as made:
        assert made.streams.audio[0].codec_context.codec.canonical_name == "opus"


def test_sizes_that_only_the_hub_knows_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "list"]) == 0
    shown = capsys.readouterr()
    assert "  size on pull  " in shown.out and "unknown" not in shown.out
    assert "size on pull: only the hub knows it; `weights pull` shows it" in shown.err
