"""Photos through the command, and what only looks like one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.jobs.doubler import builder
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main


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


@pytest.mark.parametrize("name", ["out.webp", "out.jpg", "out.gif"])
def test_pictures_are_written_as_png_only(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_after_the_other(tmp_path / "a.png")
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / name)]) == 2
    assert "unknown container; use .mp4" in capsys.readouterr().err
