"""Tracks other than the video, through the command: compared with the source by another
program."""

from pathlib import Path

import pytest

from tests.cli.tracks import PICTURE, X264, Runner, make, samples
from tests.video.clips import copied_hashes


@pytest.mark.parametrize(
    ("case", "output"),
    [("06-pgs.m2ts", "out.mkv"), ("09-camera-pcm-u8.mov", "out.mov"), ("11-mulaw.avi", "out.mov")],
)
def test_a_track_that_the_container_cuts_otherwise_is_kept(run: Runner, cases: Path, case: str, output: str) -> None:
    done = run(cases / case, output)
    assert done.code == 0, done.error
    assert copied_hashes(done.output) == copied_hashes(cases / case) != []
    assert "were written" not in done.warnings


@pytest.mark.parametrize(
    ("name", "sound", "output"),
    [
        ("a.avi", "-ar 8000 -c:a pcm_alaw", "out.mov"),
        ("a.mkv", "-ar 22050 -c:a pcm_s24le", "out.mov"),
        ("a.nut", "-ar 44100 -c:a pcm_s8", "out.mov"),
    ],
)
def test_plain_sound_is_kept_to_the_sample(run: Runner, tmp_path: Path, name: str, sound: str, output: str) -> None:
    source = make(tmp_path / name, f"{PICTURE.format(0.4)} -f lavfi -i sine=d=0.4 {X264} {sound}")
    done = run(source, output)
    assert done.code == 0, done.error
    assert samples(done.output) == samples(source)
