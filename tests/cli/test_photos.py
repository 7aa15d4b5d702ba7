"""Photos through the command, and what only looks like one."""

import io
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.cli.photographs import photo, tags_of
from tests.jobs.doubler import builder
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main
from ultraflash_cli.video.tiff import tiff_pages


@pytest.fixture(autouse=True)
def doubler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))


def pictures() -> list[Image.Image]:
    return [Image.linear_gradient("L").resize((64, 48)).rotate(angle).convert("RGB") for angle in (0, 90)]


def one_after_the_other(path: Path) -> None:
    path.write_bytes(b"")
    for number, picture in enumerate(pictures()):
        part = path.with_stem(f"part{number}")
        picture.save(part)
        path.write_bytes(path.read_bytes() + part.read_bytes())
        part.unlink()


def animation(path: Path) -> None:
    first, *rest = pictures()
    first.save(path, save_all=True, append_images=rest, duration=100)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.png", one_after_the_other),
        ("a.webp", one_after_the_other),
        ("a.bmp", one_after_the_other),
        ("a.png", animation),
        ("a.gif", animation),
        ("a.avif", animation),
    ],
)
def test_two_pictures_in_a_file_are_no_photo_and_that_is_said_before_the_work(
    name: str,
    make: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / name)
    monkeypatch.setattr(Models, "upscaler", lambda *_: pytest.fail("the work has begun"))
    output = tmp_path / "out.png"
    assert main(["upscale", str(tmp_path / name), "-o", str(output), "--res", "2x"]) == 2
    says = f"error: {output} is a single image, but a clip has many frames; use {tmp_path / 'out'}/%05d.png\n"
    assert capsys.readouterr().err == says
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out.webp", "out.bmp", "out.gif"])
def test_pictures_are_written_as_png_and_jpeg_only(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_after_the_other(tmp_path / "a.png")
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / name)]) == 2
    assert "unknown container; use .mp4" in capsys.readouterr().err


def pipe_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".tif", ".bmp", ".gif", ".ppm"])
def test_a_photo_from_stdin_is_one(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tagged = suffix in (".jpg", ".png", ".webp", ".avif")
    if tagged:
        photo(tmp_path / f"a{suffix}")
    else:
        pictures()[0].save(tmp_path / f"a{suffix}")
    outputs = tmp_path / "file.png", tmp_path / "stdin.png"
    assert main(["upscale", str(tmp_path / f"a{suffix}"), "-o", str(outputs[0]), "--res", "2x", "-q"]) == 0
    pipe_in(monkeypatch, (tmp_path / f"a{suffix}").read_bytes())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    capsys.readouterr()
    assert main(["upscale", "-", "-o", str(outputs[1]), "--res", "2x"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"- -> {outputs[1]}: 64x48 to ") and "stdin cannot" not in said
    with Image.open(outputs[0]) as of_file, Image.open(outputs[1]) as of_pipe:
        assert np.array_equal(np.asarray(of_file), np.asarray(of_pipe))
    assert tags_of(outputs[0]) == tags_of(outputs[1]) and (tags_of(outputs[1])["maker"] == "Maker") == tagged
    assert not list((tmp_path / "temp").iterdir())


def test_a_photo_for_stdout_needs_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures()[0].save(tmp_path / "a.png")
    pipe_in(monkeypatch, (tmp_path / "a.png").read_bytes())
    assert main(["upscale", "-", "-o", "-", "--codec", "png"]) == 2
    said = "error: --codec png makes a file, but stdout is a stream of video; use -o NAME.png\n"
    assert capsys.readouterr().err == said


def test_a_damaged_photo_from_stdin_is_named_as_the_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures()[0].save(tmp_path / "a.png")
    pipe_in(monkeypatch, (tmp_path / "a.png").read_bytes()[:100])
    assert main(["upscale", "-", "-o", str(tmp_path / "out.png")]) == 3
    assert capsys.readouterr().err.startswith("error: -: no video frame can be decoded")


def test_several_pictures_from_stdin_are_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_after_the_other(tmp_path / "a.png")
    pipe_in(monkeypatch, (tmp_path / "a.png").read_bytes())
    assert main(["upscale", "-", "-o", str(tmp_path / "out.png"), "--res", "2x"]) == 2
    assert "out.png is a single image, but a clip has many frames" in capsys.readouterr().err
    pipe_in(monkeypatch, (tmp_path / "a.png").read_bytes())
    assert main(["upscale", "-", "-o", str(tmp_path / "out.mkv"), "--res", "2x", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["frames_out"] == 2


def test_a_frame_rate_does_nothing_for_a_photo_and_makes_a_clip_of_it_where_one_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures()[0].save(tmp_path / "a.jpg")
    command = ["upscale", str(tmp_path / "a.jpg"), "--res", "2x", "--fps", "24", "-q"]
    for more, made in (((), "a_2x.png"), (("--codec", "jpeg"), "a_2x.jpg"), (("-o", str(tmp_path / "b.png")), "b.png")):
        assert main([*command, *more]) == 0
        assert capsys.readouterr().err == "warning: a.jpg: a photo has no frame rate; --fps is ignored\n"
        with Image.open(tmp_path / made) as picture:
            assert picture.size == (128, 96)
    assert main([*command, "-o", str(tmp_path / "b.mp4")]) == 0
    assert capsys.readouterr().err == ""


def test_a_photo_that_is_called_like_numbered_images_is_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, picture in zip(("a%02d.png", "a01.png"), pictures(), strict=True):
        picture.crop((0, 0, 64 - 16 * (name == "a01.png"), 48)).save(tmp_path / name)
    assert main(["upscale", str(tmp_path / "a%02d.png"), "--res", "2x", "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["output"], report["width"]) == (str(tmp_path / "a_02d_2x.png"), 128)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a%02d.png", "a01.png", "a_02d_2x.png"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif"])
def test_a_photo_keeps_its_tags_and_its_colour_profile(suffix: str, tmp_path: Path) -> None:
    source, output = photo(tmp_path / f"a{suffix}"), tmp_path / "out.png"
    before = tags_of(source)
    assert main(["upscale", str(source), "-o", str(output), "--res", "2x", "-q"]) == 0
    after = tags_of(output)
    assert before["orientation"] == 6 and before["dimensions"] == (64, 48)
    assert after == before | {"size": (96, 128), "orientation": 1, "dimensions": (96, 128)}
    with Image.open(output) as picture:
        red = np.asarray(picture)[..., 0]
    assert red[16, 80] > 150 > 100 > red[16, 16], "turned by 90 degrees"


def test_each_numbered_photo_keeps_its_own_tags(tmp_path: Path) -> None:
    for number in range(3, 7):
        photo(tmp_path / f"{number:03d}.jpg", maker=f"shot {number}", orientation=1)
    command = ["upscale", str(tmp_path / "%03d.jpg"), "-o", str(tmp_path / "out" / "%03d.png"), "--res", "2x", "-q"]
    assert main([*command, "--start", "25%"]) == 0
    makers = {path.name: tags_of(path)["maker"] for path in sorted((tmp_path / "out").iterdir())}
    assert makers == {"004.png": "shot 4", "005.png": "shot 5", "006.png": "shot 6"}
    assert main([*command, "--start", "25%", "--renumber", "-y"]) == 0
    assert tags_of(tmp_path / "out" / "001.png")["maker"] == "shot 4"


def test_what_a_clip_cannot_hold_of_a_photo_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = photo(tmp_path / "a.jpg")
    assert main(["upscale", str(source), "-o", str(tmp_path / "out.mp4"), "--res", "2x", "-q"]) == 0
    said = "warning: out.mp4: left out: EXIF tags and the colour profile; .png can hold them\n"
    assert said in capsys.readouterr().err


TEXT = "gr\u00fc\u00dfe"


def with_texts(path: Path) -> Path:
    """A picture of 300 dots per inch, with a comment and other texts where its format has them."""
    texts = PngInfo()
    texts.add_text("Comment", TEXT)
    texts.add_text("parameters", "a cat, steps: 20", zip=True)
    texts.add_itxt("Title", "\u65e5\u672c")
    of_format: dict[str, dict[str, Any]] = {".png": {"pnginfo": texts}, ".jpg": {"comment": TEXT.encode()}}
    pictures()[0].save(path, dpi=(300, 300), **of_format.get(path.suffix, {}))
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
def test_a_photo_keeps_its_resolution_and_its_texts(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = with_texts(tmp_path / f"a{suffix}")
    for name in ("out.png", "out.jpg", "again.png", "again.jpg"):
        if name.startswith("again"):
            source = tmp_path / f"out{name[-4:]}"
        assert main(["upscale", str(source), "-o", str(tmp_path / name), "--res", "2x", "-q"]) == 0
        lost = "warning: out.jpg: left out: text tags; .png can hold them\n"
        assert capsys.readouterr().err == (lost if (suffix, name) == (".png", "out.jpg") else "")
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.02)
            found = dict(getattr(picture, "text", {}))
            comment = found.pop("Comment", None) or picture.info.get("comment", b"").decode()
        made = found.pop("ultraflash", None)
        assert (made is None) == name.endswith(".jpg")
        texts = {"parameters": "a cat, steps: 20", "Title": "\u65e5\u672c"}
        assert found == (texts if suffix == name[-4:] == ".png" else {})
        if suffix in (".jpg", ".png"):
            assert comment.startswith("ultraflash: ") or comment == TEXT
            assert (tmp_path / name).read_bytes().count(
                TEXT.encode("latin-1" if name.endswith("png") else "utf-8")
            ) == 1
        assert (tmp_path / name).read_bytes().count(b"ultraflash") == 1


def test_pixels_that_are_not_square_have_their_shape_and_no_resolution(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg"):
        pictures()[0].save(tmp_path / f"a{suffix}", dpi=(200, 100))
        for name in ("out.png", "out.jpg"):
            assert (
                main(["upscale", str(tmp_path / f"a{suffix}"), "-o", str(tmp_path / name), "--res", "2x", "-qy"]) == 0
            )
            with Image.open(tmp_path / name) as picture:
                shape = picture.info["aspect"] if name == "out.png" else picture.info["jfif_density"]
                assert "dpi" not in picture.info and shape[0] == 2 * shape[1]


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png", ".bmp"])
def test_a_photo_that_states_no_colours_is_srgb(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (64, 480), (200, 90, 30)).save(tmp_path / f"a1{suffix}")
    for source, output in ((f"a1{suffix}", "out1.png"), (f"a%d{suffix}", "out%d.png")):
        assert main(["upscale", str(tmp_path / source), "-o", str(tmp_path / output), "--res", "2x", "-qy"]) == 0
        content = (tmp_path / "out1.png").read_bytes()
        assert b"sRGB" in content and b"cICP" not in content
        with Image.open(tmp_path / "out1.png") as picture:
            assert np.abs(np.asarray(picture).astype(int)[400, 64] - (200, 90, 30)).max() < 4


def test_a_photo_without_tags_gets_none(tmp_path: Path) -> None:
    pictures()[0].save(tmp_path / "a.jpg")
    assert main(["upscale", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out.png"), "--res", "2x", "-q"]) == 0
    content = (tmp_path / "out.png").read_bytes()
    assert b"eXIf" not in content and b"iCCP" not in content


def test_the_further_pages_of_a_tiff_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
    first, *others = (Image.new("RGB", (64, 48), colour) for colour in colours)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    command = ["upscale", str(tmp_path / "a.tif"), "-o", str(tmp_path / "out.png"), "--res", "2x", "-q"]
    said = "warning: out.png: a.tif has 3 pages, and only the first is upscaled; save the others as files first\n"
    assert main([*command, "--dry-run"]) == 0
    assert said in capsys.readouterr().err
    assert main(command) == 0
    assert capsys.readouterr().err == said
    with Image.open(tmp_path / "out.png") as picture:
        assert np.asarray(picture)[40, 60].tolist() == [200, 30, 30]


@pytest.mark.parametrize("order", ["<", ">"])
def test_smaller_copies_and_masks_are_no_pages_of_a_tiff(order: str, tmp_path: Path) -> None:
    kinds = [0, 1, 2, 4, 2]
    tables = [
        struct.pack(f"{order}HHHIII", 1, 0x00FE, 4, 1, kind, 8 + 18 * at if at < len(kinds) else 0)
        for at, kind in enumerate(kinds, 1)
    ]
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8) + b"".join(tables)
    (tmp_path / "a.tif").write_bytes(content)
    assert tiff_pages(tmp_path / "a.tif") == 3
    for size_bytes in range(len(content)):
        (tmp_path / "cut.tif").write_bytes(content[:size_bytes])
        assert tiff_pages(tmp_path / "cut.tif") <= 3
    (tmp_path / "loop.tif").write_bytes(content[:-4] + struct.pack(f"{order}I", 8))
    assert tiff_pages(tmp_path / "loop.tif") == 3
