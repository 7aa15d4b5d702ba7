"""HDR metadata."""

from fractions import Fraction
from pathlib import Path

import pytest

from tests.video.clips import ffmpeg, make_clip
from tests.video.sources import made
from ultraflash_cli.video.color import ContentLight, MasteringDisplay
from ultraflash_cli.video.probe import probe

X265 = ("-c:v", "libx265", "-preset", "ultrafast")


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
