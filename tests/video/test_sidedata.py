"""Side data of frames, also of kinds and with metadata on which PyAV fails."""

import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image, ImageCms

from ultraflash_cli.video.probe import probe
from ultraflash_cli.video.sidedata import side_data


def photo(path: Path, *, orientation: int = 6) -> Path:
    """A picture with a colour profile, EXIF tags and a rotation."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", orientation
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (16, 12), "teal").save(path, exif=exif, icc_profile=profile)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_all_side_data_of_a_photo_are_read(tmp_path: Path, suffix: str) -> None:
    with av.open(str(photo(tmp_path / f"a{suffix}"))) as container:
        found = side_data(next(container.decode(video=0)))
    assert {"EXIF", "ICC_PROFILE", "DISPLAYMATRIX"} <= found.keys()
    assert b"Maker" in found["EXIF"] and found["ICC_PROFILE"][36:40] == b"acsp"


def test_a_named_colour_profile_in_a_png_does_not_end_the_process(tmp_path: Path) -> None:
    source = photo(tmp_path / "a.png")
    script = (
        "import sys; from pathlib import Path; from ultraflash_cli.video.probe import probe\n"
        "for _ in range(5): print(probe(Path(sys.argv[1])).rotation_deg)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(source)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["90"] * 5), done.stderr


@pytest.mark.parametrize("orientation", [2, 4, 5, 7])
def test_a_photo_that_exif_mirrors_is_known_to_be_mirrored(tmp_path: Path, orientation: int) -> None:
    info = probe(photo(tmp_path / "a.jpg", orientation=orientation))
    assert info.mirrored and (info.rotation_deg in (90, 270)) == (orientation > 4)
