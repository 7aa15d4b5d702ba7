"""Tags that are not UTF-8."""

from pathlib import Path

import pytest

from tests.cli.tracks import PICTURE, X264, Runner, make
from tests.video.clips import ffmpeg


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_tags_of_programs_that_do_not_write_utf8_keep_their_letters(run: Runner, tmp_path: Path, suffix: str) -> None:
    source = make(tmp_path / f"a{suffix}", f"{PICTURE.format(0.2)} {X264} -metadata title=XX_caf_XX -metadata artist=é")
    source.write_bytes(source.read_bytes().replace(b"XX_caf_XX", b"A caf\xe9, \x80"))
    done = run(source, "out.mp4")
    assert done.code == 0, done.error
    tags = ffmpeg("-i", str(done.output), "-f", "ffmetadata", "-").splitlines()
    assert {"title=A café, €", "artist=é"} <= set(tags)


def test_a_track_whose_codec_is_not_known_is_named_as_such(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:00,300\nHello\n")
    source = make(tmp_path / "a.mp4", f"{PICTURE.format(0.4)} -i {tmp_path / 'a.srt'} {X264} -c:s ttml")
    done = run(source, "out.mp4")
    assert done.code == 0, done.error
    assert "left out: stream 1 subtitle of an unknown codec" in done.warnings
