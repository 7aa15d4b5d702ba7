"""Files that a run touches in its work folder: only its own, and none that appeared
meanwhile."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.doubler import Doubler, builder, job, upscale
from tests.jobs.resume.somebody import contents, interrupted, note_of
from ultraflash_cli.errors import OutputError, UsageError
from ultraflash_cli.jobs.events import Event, Warned
from ultraflash_cli.jobs.resume.owned_files import is_own_name
from ultraflash_cli.jobs.resume.work_folder import work_folder


@pytest.mark.parametrize(
    "name",
    [
        "journal.jsonl",
        "journal.new",
        "segment-000000.video",
        "segment-000000.video.json",
        "segment-000000.video.part.json",
        "segment-000001.video.480p",
        "begun-000000.frames",
        "state-000000.safetensors",
        "made-0",
        "stdin",
    ],
)
@pytest.mark.parametrize("kind", ["link", "hard link", "dangling link"])
def test_a_link_under_a_name_of_ours_goes_and_what_it_leads_to_stays(
    clip: Path, victim: Path, name: str, kind: str
) -> None:
    folder = work_folder(clip.with_name("in_2x.mkv"))
    folder.mkdir()
    (folder / "lock").touch()
    target = victim if name == "made-0" else victim / "thesis.txt"
    if kind == "link":
        (folder / name).symlink_to(target)
    elif kind == "dangling link":
        (folder / name).symlink_to(victim / "new")
    elif name != "made-0":
        os.link(target, folder / name)
    before = contents(victim)
    report = upscale(job(clip))
    assert (report.frames_out, Path(report.output).exists()) == (30, True)
    assert contents(victim) == before
    assert not folder.exists()


def test_a_lock_that_is_a_link_is_refused(clip: Path, victim: Path) -> None:
    folder = work_folder(clip.with_name("in_2x.mkv"))
    folder.mkdir()
    (folder / "lock").symlink_to(victim / "new")
    with pytest.raises(OutputError, match="lock is a symlink"):
        upscale(job(clip))
    assert not (victim / "new").exists()


def test_pictures_of_a_stopped_segment_that_have_another_name_are_not_written_on(clip: Path, tmp_path: Path) -> None:
    interrupted(job(clip))
    (begun,) = work_folder(clip.with_name("in_2x.mkv")).glob("begun-*.frames")
    os.link(begun, tmp_path / "backup")
    before = (tmp_path / "backup").read_bytes()
    assert 0 < upscale(job(clip)).frames_resumed < 17, "the finished segment is used, what lies behind it made again"
    assert (tmp_path / "backup").read_bytes() == before


@pytest.mark.parametrize("resume", [True, False], ids=["auto", "off"])
def test_files_of_somebodys_own_in_a_work_folder_are_left_and_named(clip: Path, resume: bool) -> None:
    folder = work_folder(clip.with_name("in_2x.mkv"))
    (folder / "photos").mkdir(parents=True)
    for name in ("notes.txt", "photos/1.jpg", "segment-1.mov", "lock2"):
        (folder / name).write_text("mine")
    before = contents(folder)
    events: list[Event] = []
    upscale(job(clip, resume=resume), events=events)
    assert contents(folder) == before
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert any("was not removed: it contains files that ultraflash did not create" in each for each in warned)


@pytest.mark.parametrize("name", ["/etc/hostname", "../victim/thesis.txt", "notes.txt", "lock", "made-0", ""])
@pytest.mark.parametrize("field", ["path", "state"])
def test_a_journal_that_names_other_files_starts_afresh_and_says_so(
    clip: Path, victim: Path, name: str, field: str
) -> None:
    interrupted(job(clip))
    folder = work_folder(clip.with_name("in_2x.mkv"))
    lines = (folder / "journal.jsonl").read_text().splitlines()
    for number, line in enumerate(lines):
        record = json.loads(line)
        if "segment" in record:
            segment = record["segment"]
            (segment if field == "state" else segment["files"][0])[field] = name
            lines[number] = json.dumps(record)
    (folder / "journal.jsonl").write_text("\n".join(lines) + "\n")
    before, events = contents(victim), list[Event]()
    assert upscale(job(clip), events=events).frames_resumed == 0
    assert "starting over, the journal of the interrupted run names" in note_of(events)
    assert contents(victim) == before


@pytest.mark.parametrize(
    "change",
    [
        {"end_frame": "12"},
        {"end_frame": None},
        {"first_frame": 5},
        {"scene_first": 1.5},
        {"files": []},
        {"files": [3]},
        {"size_bytes": -1},
        {"frames": "12"},
        {"first_pts": None},
    ],
    ids=str,
)
def test_a_journal_of_impossible_numbers_starts_afresh(clip: Path, change: dict[str, Any]) -> None:
    interrupted(job(clip))
    path = work_folder(clip.with_name("in_2x.mkv")) / "journal.jsonl"
    first, segment, *_ = map(json.loads, path.read_text().splitlines())
    entry = segment["segment"]
    (entry if change.keys() <= entry.keys() else entry["files"][0]).update(change)
    path.write_text(f"{json.dumps(first)}\n{json.dumps(segment)}\n")
    assert upscale(job(clip)).frames_out == 30


def test_every_file_that_a_run_makes_has_a_name_of_ours(clip: Path) -> None:
    seen: set[str] = set()
    folder = work_folder(clip.with_name("in_2x.mkv"))

    def look(event: Event) -> None:
        seen.update(path.name for path in folder.glob("*"))

    from ultraflash_cli.jobs.running.upscale import run

    interrupted(job(clip))
    look(Event(input=""))
    run(job(clip), look, build=builder(), segment_frames=12)
    assert len(seen) > 5
    assert all(map(is_own_name, seen)), seen


def test_a_file_that_appears_during_the_run_is_not_replaced(clip: Path) -> None:
    output = clip.with_name("in_2x.mkv")

    def build(prepared: Any) -> Any:
        output.write_text("mine")
        return builder()(prepared)

    with pytest.raises(UsageError, match="exists"):
        upscale(job(clip), build=build)
    assert output.read_text() == "mine"
    never = builder(lambda prepared: Doubler(prepared, fails_at=0))
    assert upscale(job(clip, overwrite=True), build=never).frames_resumed == 30, "the work is kept"
