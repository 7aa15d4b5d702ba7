"""Photos that are damaged, called like something else, or asked for under odd names."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.jobs.clips import make_clip, moving_picture
from tests.jobs.doubler import builder
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main
from ultraflash_cli.video.truncation import is_cut_off


@pytest.fixture(autouse=True)
def doubler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(moving_picture(0, width=64, height=48))


def enlarge(*arguments: object) -> int:
    return main(["upscale", *map(str, arguments), "--res", "2x", "-q"])


def cut(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, "jpeg", **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: -len(whole) // 3])
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a", "JPEG"),
        ("a.mp4", "JPEG"),
        ("a.jfif", "JPEG"),
        ("a.txt", "PNG"),
        ("a.mov", "WEBP"),
        ("a.gif", "GIF"),
        ("a.avif", "AVIF"),
    ],
)
def test_a_photo_is_one_whatever_its_name(
    name: str, kind: str, picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / name, kind)
    assert enlarge(tmp_path / name) == enlarge(tmp_path / name, "-o", tmp_path / "out.jpg") == 0
    assert capsys.readouterr().err == ""
    for made in ("a_2x.png", "out.jpg"):
        with Image.open(tmp_path / made) as output:
            assert output.size == (128, 96)


def test_a_gif_that_moves_is_a_clip(picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture.save(tmp_path / "a.gif", save_all=True, append_images=[picture.rotate(180)])
    assert enlarge(tmp_path / "a.gif", "-o", tmp_path / "out.png") == 2
    assert "a clip has many frames" in capsys.readouterr().err
    assert enlarge(tmp_path / "a.gif") == 0 and (tmp_path / "a_2x.mp4").exists()


@pytest.mark.parametrize("is_progressive", [False, True], ids=["baseline", "progressive"])
def test_a_truncated_jpeg_is_said_to_be_so_and_strict_refuses_it(
    is_progressive: bool, picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = cut(tmp_path / "a.jpg", picture, progressive=is_progressive)
    assert enlarge(source, "-o", tmp_path / "out.png", "--strict") == 3
    refused = "damaged or truncated, refused by --strict: truncated: its end is missing"
    assert f"error: {source}: {refused}\n" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()

    assert enlarge(source, "-o", tmp_path / "out.png", "--json") == 0
    said = "a.jpg: truncated: its end is missing, and the decoder filled in the rest; copy it again"
    assert said in json.loads(capsys.readouterr().out)["warnings"][0]


@pytest.mark.parametrize("count", [1, 4], ids=["still", "moving"])
@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_a_truncated_gif_or_png_is_said_to_be_so_and_strict_refuses_it(
    kind: str, count: int, picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / f"a.{kind.lower()}"
    turns = [picture.rotate(90 * turn) for turn in range(1, count)]
    picture.save(source, kind, save_all=count > 1, append_images=turns, duration=40)
    assert enlarge(source, "-o", tmp_path / f"whole{count}.mp4", "--strict") == 0
    whole = source.read_bytes()
    source.write_bytes(whole[: -len(whole) // 9] if kind == "GIF" or count > 1 else whole[:-12])
    capsys.readouterr()

    assert enlarge(source, "-o", tmp_path / "out.mp4") == 0
    filled = ", and the decoder filled in the rest" if count == 1 else f"; {4 if kind == 'GIF' else 3} frames could be"
    assert f"{source.name}: truncated: its end is missing{filled}" in capsys.readouterr().err
    assert enlarge(source, "-o", tmp_path / "out.mp4", "--strict", "-y") == 3
    assert "refused by --strict: truncated: its end is missing" in capsys.readouterr().err


def test_truncated_images_of_a_sequence_are_counted(
    picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 3):
        cut(tmp_path / f"{number}.jpg", picture)
    picture.save(tmp_path / "2.jpg")
    assert enlarge(tmp_path / "%d.jpg", "-o", tmp_path / "out" / "%d.jpg") == 0
    assert "truncated: the end of 1.jpg, and that of 1 more, is missing" in capsys.readouterr().err


def test_what_surrounds_the_pixels_of_a_jpeg_is_no_truncation(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture.save(path, exif=b"Exif\0\0" + b"\xff\xd9" * 9)
    whole = path.read_bytes()
    assert not is_cut_off(path)
    path.write_bytes(whole + b"a trailer" * 1000)
    assert not is_cut_off(path)
    path.write_bytes(whole[:-2])
    assert is_cut_off(path), "the end within the tags is not that of the picture"
    path.write_bytes(whole[:30])
    assert is_cut_off(path)
    path.write_bytes(b"")
    assert not is_cut_off(path) and not is_cut_off(tmp_path / "none.jpg")


def test_the_plan_of_a_photo_counts_its_picture(
    picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "a.jpg")
    assert enlarge(tmp_path / "a.jpg", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["frames_total"] == 1


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("a.jpg", [], "choose a file such as out.png, or"),
        ("a.jpg", ["--codec", "jpeg"], "choose a file such as out.jpg, or"),
        ("a.mp4", ["--codec", "jpeg"], "choose a file such as out/%05d.jpg, or"),
        ("a.mp4", [], "choose a file such as out.mp4, or"),
    ],
)
def test_the_advice_for_a_name_without_extension_fits_the_output(
    source: str,
    options: list[str],
    says: str,
    picture: Image.Image,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if source == "a.mp4":
        make_clip(tmp_path / source, frames=2, audio=False)
    else:
        picture.save(tmp_path / source)
    assert enlarge(tmp_path / source, "-o", tmp_path / "out", *options) == 2
    assert says in capsys.readouterr().err


def test_a_photo_written_by_a_pattern_is_reported_under_its_own_name(
    picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "a.jpg")
    made = tmp_path / "z001.png"
    command = ["upscale", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "z%03d.png"), "--res", "2x"]
    assert main([*command, "--dry-run"]) == 0
    assert main([*command, "--json"]) == 0 and made.exists()
    shown = capsys.readouterr()
    assert json.loads(shown.out)["output"] == str(made)
    assert f"-> {made}: " in shown.err and f"{made}: 1 frame in" in shown.err and "%03d" not in shown.err

    assert main([*command, "-n"]) == 0
    assert f"{made} exists; skipping" in capsys.readouterr().err


def test_a_folder_of_photos_says_how_to_upscale_them(
    picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "dog.jpg")
    assert enlarge(tmp_path) == 3
    assert f"to upscale the photos in it, name them ({tmp_path / 'dog.jpg'}, ...)" in capsys.readouterr().err


def test_the_same_photo_twice_is_said_to_be_that(
    picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "dog.jpg")
    picture.save(tmp_path / "dog.png")
    assert enlarge(tmp_path / "dog.jpg", tmp_path / "dog.jpg", "-o", tmp_path, "-y") == 9
    assert f"error: {tmp_path / 'dog.jpg'} is among the inputs twice; name it once\n" in capsys.readouterr().err
    assert enlarge(tmp_path / "dog.jpg", tmp_path / "dog.png", "-o", tmp_path, "-y") == 9
    assert f"would both be written to {tmp_path / 'dog_2x.png'}; rename one" in capsys.readouterr().err
