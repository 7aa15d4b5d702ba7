"""The folder of unfinished work."""

from pathlib import Path

import pytest

from tests.jobs.doubler import job, left_over, upscale
from ultraflash_cli.errors import Interrupted, OutputError


def test_unfinished_work_lies_in_the_temporary_folder_and_is_found_there(clip: Path, tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    with pytest.raises(Interrupted):
        upscale(job(clip, temp=temp), stop_at=17)
    assert left_over(tmp_path) == []
    (folder,) = temp.iterdir()
    assert (folder / "journal.jsonl").is_file()
    assert upscale(job(clip, temp=temp)).frames_resumed == 17
    assert list(temp.iterdir()) == []


def test_outputs_of_one_name_have_their_own_place_in_a_temporary_folder(clip: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with pytest.raises(Interrupted):
            upscale(job(clip, tmp_path / name / "out.mkv", temp=tmp_path / "temp"), stop_at=17)
    assert len(list((tmp_path / "temp").iterdir())) == 2


def test_a_temporary_folder_that_is_a_file_is_refused(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "temp").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        upscale(job(clip, temp=tmp_path / "temp"))
