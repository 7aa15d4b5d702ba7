"""Folders that a run does not enter: links, files, other users' folders, and folders
that others may write to."""

import io
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import generating
from tests.jobs.doubler import builder, job, upscale
from tests.jobs.resume.somebody import contents, interrupted
from ultraflash_cli.errors import OutputError
from ultraflash_cli.jobs.resume.leftovers import find_leftovers, remove
from ultraflash_cli.jobs.resume.work_folder import private_folder, temp_work_folder, work_folder
from ultraflash_cli.video.pipe import Pipe

NOBODY = 65534

root_only = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files to another user"
)


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda place, victim: place.symlink_to(victim),
    "relative link": lambda place, victim: place.symlink_to(os.path.relpath(victim, place.parent)),
    "link to a link": lambda place, victim: (
        (place.parent / "first").symlink_to(victim),
        place.symlink_to(place.parent / "first"),
    )[0],
    "dangling link": lambda place, victim: place.symlink_to(victim / "not" / "there"),
    "link to a file": lambda place, victim: place.symlink_to(victim / "thesis.txt"),
    "file": lambda place, victim: (place.write_text("mine"), None)[1],
}


@pytest.mark.parametrize("resume", [True, False], ids=["auto", "off"])
@pytest.mark.parametrize("where", ["beside", "temp"])
@pytest.mark.parametrize("kind", LINKS)
def test_a_work_folder_that_is_no_folder_of_ours_is_refused_and_nothing_is_touched(
    clip: Path, victim: Path, kind: str, where: str, resume: bool
) -> None:
    output, temp = clip.with_name("in_2x.mkv"), clip.with_name("temp") if where == "temp" else None
    place = work_folder(output)
    if temp is not None:
        temp.mkdir()
        place = temp_work_folder(output, temp)
    LINKS[kind](place, victim)
    before, at_home = contents(victim), sorted(clip.parent.rglob("*"))
    with pytest.raises(OutputError, match=r"expected a folder created by ultraflash; remove it") as caught:
        upscale(job(clip, temp=temp, resume=resume, overwrite=True))
    assert caught.value.exit_code == 7
    assert contents(victim) == before
    assert sorted(clip.parent.rglob("*")) == at_home


def test_the_folder_next_to_an_output_is_refused_too_when_the_work_is_elsewhere(clip: Path, victim: Path) -> None:
    work_folder(clip.with_name("in_2x.mkv")).symlink_to(victim)
    before = contents(victim)
    with pytest.raises(OutputError, match="is a symlink"):
        upscale(job(clip, temp=clip.with_name("temp")))
    assert contents(victim) == before


def test_a_generation_follows_no_link_either(tmp_path: Path, victim: Path) -> None:
    before = contents(victim)
    work_folder(tmp_path / "out.mp4").symlink_to(victim)
    for resume in (True, False):
        with pytest.raises(OutputError, match="is a symlink"):
            generating.generate(generating.job(tmp_path, output=tmp_path / "out.mp4", seconds=1, resume=resume))
    assert contents(victim) == before


@root_only
@pytest.mark.parametrize("where", ["beside", "temp"])
def test_a_work_folder_of_another_user_is_not_used(clip: Path, where: str) -> None:
    output, temp = clip.with_name("in_2x.mkv"), clip.with_name("temp") if where == "temp" else None
    if temp is not None:
        temp.mkdir(mode=0o777)
    place = work_folder(output) if temp is None else temp_work_folder(output, temp)
    place.mkdir()
    (place / "segment-000000.video").write_text("theirs")
    os.chown(place, NOBODY, NOBODY)
    with pytest.raises(OutputError, match=rf"belongs to another user \(uid {NOBODY}\)"):
        upscale(job(clip, temp=temp))
    assert contents(place) == {"segment-000000.video": b"theirs"}
    (found,) = find_leftovers([place.parent], recursive=False)
    assert "another user" in str(found.refusal)
    assert not remove(found)


def test_a_work_folder_is_this_users_alone(clip: Path) -> None:
    interrupted(job(clip))
    folder = work_folder(clip.with_name("in_2x.mkv"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    seen: list[int] = []

    def build(prepared: Any) -> Any:
        seen.append(stat.S_IMODE(folder.stat().st_mode))
        return builder()(prepared)

    assert upscale(job(clip), build=build).frames_resumed == 17
    assert seen == [0o700], "one that was open before is closed"


def test_what_comes_through_a_pipe_is_never_written_into_another_file(clip: Path, victim: Path) -> None:
    temp, output = clip.with_name("temp"), clip.with_name("out.mkv")
    folder = temp_work_folder(output, temp)
    folder.mkdir(parents=True)
    (folder / "stdin").symlink_to(victim / "thesis.txt")
    before = contents(victim)
    source = Pipe(io.BytesIO(clip.read_bytes()))
    upscale(job(Path("-"), output, pipe=source, temp=temp))
    assert contents(victim) == before
    with pytest.raises(OutputError):
        Pipe(io.BytesIO(b"film")).spool_to(victim / "thesis.txt")
    assert contents(victim) == before


def test_a_stream_is_made_in_a_folder_that_nobody_else_may_look_into(
    clip: Path, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    seen: list[int] = []

    def build(prepared: Any) -> Any:
        seen.extend(stat.S_IMODE(path.stat().st_mode) for path in shared.rglob("*") if path.is_dir())
        return builder()(prepared)

    upscale(job(clip, stdout=io.BytesIO()), build=build)
    assert seen == [0o700, 0o700]
    assert list(shared.iterdir()) == [], "nothing is left of it"
    private_folder().symlink_to(victim)
    before = contents(victim)
    with pytest.raises(OutputError, match="is a symlink"):
        upscale(job(clip, stdout=io.BytesIO()))
    assert contents(victim) == before
