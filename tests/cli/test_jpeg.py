"""Pictures written as JPEG."""

import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.photographs import photo, tags_of
from tests.jobs.clips import make_clip, moving_picture
from tests.jobs.doubler import builder, job, upscale
from ultraflash_cli.errors import Interrupted
from ultraflash_cli.jobs.running.loader import Models, planes_for
from ultraflash_cli.main import main
from ultraflash_cli.video.containers import plan_alone
from ultraflash_cli.video.encode import made_spec
from ultraflash_cli.video.encoders import check_encoder
from ultraflash_cli.video.made_tag import read_made, with_made_chunk
from ultraflash_cli.video.photos import misfits, with_photo_data

LEAST_DB = 38


@pytest.fixture(autouse=True)
def doubler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))


def enlarge(source: Path, output: Path, *options: str) -> int:
    return main(["upscale", str(source), "-o", str(output), "--res", "2x", "-q", *options])


def read(path: Path) -> tuple[str, np.ndarray]:
    """The kind of pixels of a picture, and the picture."""
    with av.open(path) as container:
        frame = next(container.decode(video=0))
        return frame.format.name, frame.to_ndarray(format="rgb24").astype(float)


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * float(np.log10(255**2 / np.mean((one - other) ** 2)))


def coloured(path: Path, subsampling: int = 0) -> Path:
    Image.fromarray(moving_picture(0, width=64, height=48)).save(path, quality=98, subsampling=subsampling)
    return path


@pytest.mark.parametrize(
    ("source", "subsampling", "pix_fmt"),
    [("a.png", 0, "yuvj444p"), ("a.jpg", 0, "yuvj444p"), ("a.jpg", 2, "yuvj420p")],
    ids=["png", "444", "420"],
)
@pytest.mark.parametrize("name", ["out.jpg", "out.JPEG"])
def test_a_jpeg_shows_what_the_png_shows(
    source: str, subsampling: int, pix_fmt: str, name: str, tmp_path: Path
) -> None:
    picture = coloured(tmp_path / source, subsampling)
    assert enlarge(picture, tmp_path / name) == enlarge(picture, tmp_path / "out.png") == 0
    found, pixels = read(tmp_path / name)
    exact = read(tmp_path / "out.png")[1]
    assert found == pix_fmt
    assert psnr_db(pixels, exact) > LEAST_DB
    with Image.open(tmp_path / name) as other:
        assert other.format == "JPEG" and not other.info.get("progressive")
        assert psnr_db(np.asarray(other).astype(float), exact) > LEAST_DB


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_jpeg_keeps_the_tags_and_the_profile_and_is_upright_once(suffix: str, tmp_path: Path) -> None:
    source, output = photo(tmp_path / f"a{suffix}"), tmp_path / "out.jpg"
    before = tags_of(source)
    assert enlarge(source, output) == 0
    upright = {"size": (96, 128), "orientation": 1, "dimensions": (96, 128)}
    assert before["orientation"] == 6 and tags_of(output) == before | upright
    assert enlarge(source, tmp_path / "out.png") == 0
    with Image.open(source) as old, Image.open(output) as new, Image.open(tmp_path / "out.png") as png:
        assert new.info["icc_profile"] == old.info["icc_profile"]
        assert new.info["exif"] == b"Exif\0\0" + png.info["exif"].removeprefix(b"Exif\0\0")
    red = read(output)[1][..., 0]
    assert red[16, 80] > 150 > 100 > red[16, 16], "turned by 90 degrees"


def test_large_tags_and_profiles_are_divided_or_refused() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "jpeg")
    profile = bytes(16) + b"RGB " + bytes(range(256)) * 600
    jpeg = with_photo_data(file.getvalue(), {"ICC_PROFILE": profile, "EXIF": b"II*\0" + bytes(70_000)})
    with Image.open(io.BytesIO(jpeg)) as picture:
        picture.load()
        assert picture.info["icc_profile"] == profile and "exif" not in picture.info
    assert misfits({"EXIF": bytes(70_000), "ICC_PROFILE": profile}, "jpeg") == ["EXIF"]
    assert misfits({"EXIF": bytes(65_000), "ICC_PROFILE": bytes(17_000_000)}, "jpeg") == ["ICC_PROFILE"]


def test_a_long_tag_is_read_back_whole(tmp_path: Path) -> None:
    made = json.dumps({"prompt": "a balloon, " * 20_000})
    (tmp_path / "a.jpg").write_bytes(with_made_chunk(coloured(tmp_path / "b.jpg").read_bytes(), made))
    assert read_made(tmp_path / "a.jpg") == made
    assert read(tmp_path / "a.jpg")[1].shape == (48, 64, 3)
    assert read_made(tmp_path / "b.jpg") is None


def test_numbered_jpegs_keep_their_own_tags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3, 5):
        photo(tmp_path / f"{number:05d}.jpg", maker=f"shot {number}", orientation=1)
    assert enlarge(tmp_path / "%05d.jpg", tmp_path / "out" / "%05d.jpg") == 0
    makers = {path.name: tags_of(path)["maker"] for path in sorted((tmp_path / "out").iterdir())}
    assert makers == {"00003.jpg": "shot 3", "00004.jpg": "shot 4"}
    assert main(["explain", str(tmp_path / "out")]) == 0
    assert "-o OUT/%05d.jpg" in capsys.readouterr().out


def test_a_clip_becomes_jpegs_whole_or_not_at_all(tmp_path: Path) -> None:
    clip, target = make_clip(tmp_path / "a.mp4", frames=6, audio=False), tmp_path / "out" / "%04d.jpg"
    asked = job(clip, target, codec="auto", crf=None)
    with pytest.raises(Interrupted):
        upscale(asked, stop_at=3)
    assert not list((tmp_path / "out").glob("*.jpg"))
    report = upscale(asked)
    assert report.frames_resumed > 0 and report.frames_out == 6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{n:04d}.jpg" for n in range(1, 7)]
    small = moving_picture(5, width=64, height=48).repeat(2, axis=0).repeat(2, axis=1)
    assert psnr_db(read(tmp_path / "out" / "0006.jpg")[1][8:], small[8:].astype(float)) > 30


def test_codec_jpeg_names_the_file_and_an_existing_one_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = coloured(tmp_path / "a.png")
    command = ["upscale", str(source), "--res", "2x", "--codec", "jpeg", "-q"]
    assert main([*command, "--dry-run"]) == 0 and not (tmp_path / "a_2x.jpg").exists()
    assert main(command) == 0
    assert main(["explain", str(tmp_path / "a_2x.jpg")]) == 0
    assert "-o OUT.jpg" in capsys.readouterr().out
    assert main(command) == 2
    assert "a_2x.jpg exists" in capsys.readouterr().err
    assert main([*command, "-y", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["output"] == str(tmp_path / "a_2x.jpg") and said["frames_out"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a_2x.jpg"]


def test_what_a_jpeg_cannot_hold_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = np.full((48, 64), 40_000, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert enlarge(tmp_path / "deep.png", tmp_path / "deep.jpg") == 0
    assert "the input has 16 bits per sample" in capsys.readouterr().err
    profile = bytes(16) + b"CMYK" + bytes(108)
    Image.new("CMYK", (64, 48)).save(tmp_path / "print.jpg", icc_profile=profile)
    assert enlarge(tmp_path / "print.jpg", tmp_path / "shown.jpg") == 0
    assert "left out: the colour profile, which is for CMYK pictures" in capsys.readouterr().err
    Image.fromarray(np.full((48, 64, 4), 99, np.uint8)).save(tmp_path / "clear.png")
    assert enlarge(tmp_path / "clear.png", tmp_path / "clear.jpg") == 0
    assert "transparency is not kept" in capsys.readouterr().err
    with av.open(tmp_path / "wide.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "9"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, 16, 9
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert enlarge(tmp_path / "wide.mp4", tmp_path / "%d.jpg") == 0
    assert "the colours are bt2020, smpte2084 (PQ), which JPEG cannot state" in capsys.readouterr().err


def test_a_clip_to_generate_can_become_jpegs() -> None:
    assert plan_alone(None, codec="jpeg", frame_s=Fraction(1, 24)).suffix == ".jpg"
    assert plan_alone(".JPEG", codec="jpeg", frame_s=Fraction(1, 24)).suffix == ".jpeg"
    spec = made_spec(width_px=64, height_px=48, rate=Fraction(24), threads=1, suffix=".jpg")
    assert (spec.codec, spec.pix_fmt, spec.color.matrix, spec.color.range) == ("jpeg", "yuv420p", 5, 2)
    odd = made_spec(width_px=65, height_px=48, rate=Fraction(24), threads=1, suffix=".jpg")
    assert odd.pix_fmt == "yuv444p"
    assert planes_for(spec, torch.device("cuda")) is None, "chroma lies between the pixels"
    check_encoder(spec)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-o", "out.jpg"], "out.jpg is a single image, but a clip has many frames; use {}/%05d.jpg"),
        (["-o", "%d_%d.jpg"], "2 placeholders for a number, expected one, such as %05d.jpg"),
        (["-o", "%05d.jpg", "--codec", "h264"], ".jpg cannot hold h264 video"),
        (
            ["-o", "out.mp4", "--codec", "jpeg"],
            ".mp4 cannot hold jpeg video; use .jpg for a photo, folder/%05d.jpg for a clip, or another --codec",
        ),
        (["-o", "%05d.jpg", "--crf", "3"], "--crf: jpeg is always written at its best quality; remove it"),
        (
            ["-o", "-", "--codec", "jpeg"],
            "--codec jpeg makes many files, but stdout is one stream; use -o DIR/%05d.jpg",
        ),
        (["-o", "%05d.jpg", "--codec", "jpg"], "did you mean jpeg?"),
    ],
)
def test_what_jpeg_does_not_do_is_refused(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "a.mp4", frames=3, audio=False)
    assert main(["upscale", "a.mp4", "--res", "2x", *options]) == 2
    assert says.format("out") in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
