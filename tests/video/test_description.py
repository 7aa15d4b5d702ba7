"""The text output of `probe`."""

from pathlib import Path

import pytest

from tests.video.clips import ClipPlan, make_clip
from ultraflash_cli.video.color import BT709, LIMITED, ColorInfo
from ultraflash_cli.video.description import describe_clip, describe_color
from ultraflash_cli.video.probe import probe


@pytest.mark.parametrize(
    ("color", "words"),
    [
        pytest.param(BT709, "bt709, limited", id="one name for all three"),
        pytest.param(ColorInfo(), "unspecified, unspecified range", id="nothing known"),
        pytest.param(
            ColorInfo(matrix=9, primaries=9, transfer=16, range=LIMITED),
            "matrix bt2020nc, primaries bt2020, transfer smpte2084 (PQ), limited",
            id="HDR10",
        ),
    ],
)
def test_colour_tags_have_their_names(color: ColorInfo, words: str) -> None:
    assert describe_color(color) == words


def test_a_clip_is_described_in_words(tmp_path: Path) -> None:
    lines = dict(describe_clip(probe(make_clip(tmp_path / "a.mp4", ClipPlan()))))
    assert lines["scan"] == "progressive"
    assert lines["video"].startswith("h264, yuv420p, 8 bit")
    assert not [words for words in lines.values() if "{" in words or "None" in words]
