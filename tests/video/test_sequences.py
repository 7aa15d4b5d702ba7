"""Numbered images as the frames of a clip."""

from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.video.clips import ffmpeg, make_clip
from tests.video.sources import made, read
from ultraflash_cli.errors import InputError
from ultraflash_cli.jobs.planning.inputs import find_input
from ultraflash_cli.video.probe import probe
from ultraflash_cli.video.sequence import ImageSequence, find_sequence


def pictures(folder: Path, *, name: str = "%05d.png", first: int = 1, count: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    escaped = str(folder).replace("%", "%%")
    ffmpeg(*made("1"), "-frames:v", str(count), "-start_number", str(first), f"{escaped}/{name}")
    return folder


@pytest.mark.parametrize("name", ["%05d.png", "shot 50%% ünï 🎬 %d.png", "f%03d.jpg", "a_%04d.tif", "b%d.bmp"])
@pytest.mark.parametrize("first", [0, 8])
def test_numbered_pictures_are_a_clip_of_24_frames_a_second(tmp_path: Path, name: str, first: int) -> None:
    folder = pictures(tmp_path / "a %d folder", name=name, first=first)
    (folder / "notes.txt").write_text("no picture")
    pattern = folder / name.replace("%%", "%")
    for source in (find_sequence(folder), find_sequence(pattern)):
        assert isinstance(source, ImageSequence) and source.first == first
        info, frames, warnings, _ = read(source)
        assert info.average_rate == 24 and not warnings
        assert [frame.pts * info.time_base for frame in frames] == [Fraction(n, 24) for n in range(4)]
        assert info.path.parent == folder and info.frame_count_estimate == 4
        for number, frame in enumerate(frames):
            (alone,) = read(source.picture(number))[1]
            assert np.array_equal(frame.rgb_hwc, alone.rgb_hwc)


def test_the_frame_rate_of_pictures_can_be_said(tmp_path: Path) -> None:
    info, frames, _, _ = read(find_sequence(pictures(tmp_path / "a"), rate=Fraction(30000, 1001)))
    assert frames[3].pts * info.time_base == Fraction(3003, 30000)


def test_numbers_with_growing_length_are_in_the_order_of_counting(tmp_path: Path) -> None:
    sequence = find_sequence(pictures(tmp_path / "a", name="f%d.png", first=8, count=5))
    assert [path.name for path in sequence.pictures()] == ["f8.png", "f9.png", "f10.png", "f11.png", "f12.png"]
    wide = find_sequence(pictures(tmp_path / "b", name="f%02d.png", first=98, count=4))
    assert [path.name for path in wide.pictures()] == ["f98.png", "f99.png", "f100.png", "f101.png"]
    assert len(read(sequence)[1]) == 5 and len(read(wide)[1]) == 4


def test_gaps_mixed_series_and_empty_folders_are_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", count=5)
    (folder / "00003.png").unlink()
    for path in (folder, folder / "%05d.png"):
        with pytest.raises(InputError, match=r"00003.png is missing \(1 of 5 images\)"):
            find_sequence(path)
    two = pictures(tmp_path / "b")
    pictures(two, name="x%03d.png")
    with pytest.raises(InputError, match="several image sequences"):
        find_sequence(two)
    assert find_sequence(two / "x%03d.png").count == 4
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="no numbered images"):
        find_sequence(tmp_path / "c")
    with pytest.raises(InputError, match="no file matches"):
        find_sequence(tmp_path / "c" / "%d.png")
    with pytest.raises(InputError, match="no such folder"):
        find_sequence(tmp_path / "d" / "%d.png")
    (pictures(tmp_path / "e") / "cover.png").write_bytes(b"x")
    with pytest.raises(InputError, match="does not end in a number"):
        find_sequence(tmp_path / "e")


@pytest.mark.parametrize("name", ["%05d.png", "%05d.bmp"])
def test_pictures_of_two_sizes_are_refused_and_named(tmp_path: Path, name: str) -> None:
    folder = pictures(tmp_path / "a", name=name)
    ffmpeg(*made("0.04", "32x48"), str(folder / (name % 3)))
    with pytest.raises(InputError, match=r"00003\.\w+: 32x48 pixels, but .* 64x48"):
        read(find_sequence(folder))


def test_a_folder_is_no_clip_unless_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        probe(pictures(tmp_path / "a"))
    found = partial(find_input, pipe=None, images=False, rate=None)
    assert isinstance(found(tmp_path / "a" / "%05d.png"), ImageSequence)
    literal = make_clip(tmp_path / "a.mp4").rename(tmp_path / "50%d.mp4")
    assert found(literal) == literal
