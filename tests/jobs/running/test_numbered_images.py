"""Numbered images in and out."""

from pathlib import Path

import pytest

from tests.jobs.clips import decoded, moving_picture, timestamps
from tests.jobs.doubler import job, upscale
from ultraflash_cli.errors import InputError, Interrupted, UsageError
from ultraflash_cli.jobs.events import Event, Started
from ultraflash_cli.video.stills import write_png


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        write_png(folder / f"shot_{number:03d}.png", moving_picture(number, width=32, height=24))
    return folder


@pytest.mark.parametrize("named", ["folder", "pattern"])
def test_pictures_become_a_clip(tmp_path: Path, named: str) -> None:
    folder = pictures(tmp_path / "shots", 7)
    source = folder if named == "folder" else folder / "shot_%03d.png"
    report = upscale(job(source, images=named == "folder", fps=10))
    assert Path(report.output).name == "shot_2x.mp4"
    assert Path(report.output).parent == tmp_path
    assert [float(time) for time in timestamps(Path(report.output))] == pytest.approx([n / 10 for n in range(7)])
    assert report.warnings == () or all("finer" in each for each in report.warnings)


def test_a_folder_of_pictures_is_no_clip_without_being_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        upscale(job(pictures(tmp_path / "shots", 2)))


def test_a_changed_picture_starts_afresh(tmp_path: Path) -> None:
    source = pictures(tmp_path / "shots", 30) / "shot_%03d.png"
    with pytest.raises(Interrupted):
        upscale(job(source), stop_at=20)
    write_png(tmp_path / "shots" / "shot_004.png", moving_picture(500, width=32, height=24))
    events: list[Event] = []
    assert upscale(job(source), events=events).frames_resumed == 0
    (started,) = [event for event in events if isinstance(event, Started)]
    assert "the pictures" in str(started.note)


def test_a_clip_becomes_pictures_whole_or_not_at_all(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "%04d.png"
    with pytest.raises(Interrupted):
        upscale(job(clip, target, codec="auto", crf=None), stop_at=17)
    assert not list((tmp_path / "out").glob("*.png"))
    report = upscale(job(clip, target, codec="auto", crf=None))
    assert (report.frames_resumed, report.frames_out) == (17, 30)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{n:04d}.png" for n in range(1, 31)]
    (picture,) = decoded(tmp_path / "out" / "0010.png")
    assert picture.shape == (96, 128, 3)
    assert picture[4, 4, 0] == 8 * 9
    with pytest.raises(UsageError, match="exists"):
        upscale(job(clip, target, codec="auto", crf=None))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    report = upscale(job(clip, target, codec="auto", crf=None, end="0.2", seed=1, overwrite=True))
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    changed = [name for name in sorted(before) if before[name] != after[name]]
    assert (after.keys(), changed) == (before.keys(), [f"{n:04d}.png" for n in range(1, 6)])
    assert "0006.png to 0030.png were not made by this run and are kept" in " ".join(report.warnings)


def test_one_name_for_many_pictures_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="%05d"):
        upscale(job(clip, tmp_path / "out.png", codec="png", crf=None))
