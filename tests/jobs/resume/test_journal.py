"""The files of an interrupted run, and how the next one uses them."""

import json
from pathlib import Path

import pytest

from tests.jobs.fakes import plain_file
from ultraflash_cli.errors import InputError, OutputError
from ultraflash_cli.jobs.resume.entries import count_frames
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.resume.leftovers import find_leftovers, remove
from ultraflash_cli.jobs.resume.work_folder import OutputLock, fitted, temp_work_folder, work_folder

FINGERPRINT = {"--seed": 0, "the input's size": 100, "pair": (1, 2)}


def opened(folder: Path, **changed: object) -> Journal:
    folder.mkdir(exist_ok=True)
    return Journal(folder, FINGERPRINT | changed)


def add(journal: Journal, end_frame: int, state: bytes | None = b"state") -> Path:
    path = journal.segment_path()
    path.write_bytes(b"x" * end_frame)
    journal.add([plain_file(path)], first_frame=journal.frames, end_frame=end_frame, scene_first=0, state=state)
    return path


def test_the_same_fingerprint_continues_after_the_last_segment(tmp_path: Path) -> None:
    first = opened(tmp_path / "w")
    add(first, 10)
    add(first, 20, b"later")
    second = opened(tmp_path / "w")
    assert second.fresh_because is None
    assert second.frames == 20
    assert second.state_bytes() == b"later"
    assert [file.path.stat().st_size for file in second.files()] == [10, 20]


def test_a_journal_of_the_previous_format_continues_and_its_records_are_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    add(opened(folder), 10)
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    lines[0]["format"] = 2
    segment = lines[1]["segment"]
    (file,) = segment.pop("files")
    old = [
        segment | {"file": file.pop("path"), "size_bytes": file["size_bytes"]},
        segment | {"file": "segment-000001.video", "size_bytes": 0, "first_frame": 10, "end_frame": 20},
    ]
    text = [json.dumps(each) for each in (lines[0], *({"segment": each} for each in old))]
    (folder / "journal.jsonl").write_text("\n".join(text) + "\n")
    for name in ("segment-000000.video", "segment-000000.video.480p"):
        (folder / name).write_bytes(b"x" * 10)
        (folder / f"{name}.json").write_text(json.dumps(file))
    (folder / "segment-000001.video").touch()
    for _ in range(2):
        journal = opened(folder)
        assert journal.fresh_because is None and journal.frames == 20
        assert [file.path.name for file in journal.files()] == ["segment-000000.video"]
        assert journal.segments[0].names == ["segment-000000.video", "segment-000000.video.480p"]
        assert not list(folder.glob("*.json"))


def test_another_fingerprint_starts_afresh_and_says_what_changed(tmp_path: Path) -> None:
    add(opened(tmp_path / "w"), 10)
    second = Journal(tmp_path / "w", FINGERPRINT | {"--seed": 7})
    assert second.fresh_because == "--seed was 0 and is 7"
    assert second.frames == 0
    assert not list((tmp_path / "w").glob("segment-*"))


def test_an_interrupted_last_line_is_no_harm(tmp_path: Path) -> None:
    first = opened(tmp_path / "w")
    add(first, 10)
    with (tmp_path / "w" / "journal.jsonl").open("a") as file:
        file.write('{"segment": {"file": "segm')
    second = opened(tmp_path / "w")
    assert second.frames == 10
    add(second, 20)
    assert opened(tmp_path / "w").frames == 20


def test_a_journal_of_rubbish_starts_afresh(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "journal.jsonl").write_bytes(b"\xff\xfe rubbish")
    assert opened(tmp_path / "w").frames == 0


def test_a_damaged_segment_and_all_after_it_are_made_again(tmp_path: Path) -> None:
    first = opened(tmp_path / "w")
    add(first, 10, None)
    damaged = add(first, 20)
    add(first, 30, None)
    first.finish()
    damaged.write_bytes(b"short")
    second = opened(tmp_path / "w")
    assert second.frames == 10
    assert not second.complete
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["journal.jsonl", "segment-000000.video"]


def test_without_its_state_a_segment_is_made_again(tmp_path: Path) -> None:
    first = opened(tmp_path / "w")
    add(first, 10, None)
    add(first, 20)
    (tmp_path / "w" / "state-000001.safetensors").unlink()
    assert opened(tmp_path / "w").frames == 10


def test_with_a_damaged_state_a_segment_is_made_again(tmp_path: Path) -> None:
    first = opened(tmp_path / "w")
    add(first, 10, None)
    add(first, 20)
    (tmp_path / "w" / "state-000001.safetensors").write_bytes(b"statf")
    assert opened(tmp_path / "w").frames == 10


def test_a_finished_clip_needs_only_joining(tmp_path: Path) -> None:
    first = opened(tmp_path / "w")
    add(first, 10, None)
    first.finish()
    assert opened(tmp_path / "w").complete


def test_two_runs_cannot_write_one_output(tmp_path: Path) -> None:
    folder = work_folder(tmp_path / "out.mp4")
    with OutputLock(folder), pytest.raises(OutputError, match=r"another run is writing out\.mp4"):
        OutputLock(folder)
    OutputLock(folder).close()


def test_names_that_leave_no_room_are_shortened_and_stay_apart(tmp_path: Path) -> None:
    long = "film-" + "\N{CAT FACE}" * 60
    names = [f"{long}.mp4", f"{long}2.mp4", "film.mp4"]
    assert fitted(names[2]) == names[2]
    assert len({fitted(name) for name in names}) == 3
    for name in names[:2]:
        assert fitted(name).endswith(".mp4")
        folder = work_folder(tmp_path / name)
        OutputLock(folder).close()
        (folder / f"{Path(fitted(name)).stem}.part.mp4").touch()
        OutputLock(temp_work_folder(tmp_path / name, tmp_path)).close()


def test_what_a_stop_keeps_counts_until_its_segment_is_finished(tmp_path: Path) -> None:
    first = opened(tmp_path / "w")
    add(first, 10)
    first.begun_path().write_bytes(b"pictures")
    first.begin(8, end_frame=14, scene_first=3, groups=2, state=b"amid")
    second = opened(tmp_path / "w")
    assert (second.frames, second.safe_frames, second.scene_first, second.state_bytes()) == (10, 14, 3, b"amid")
    assert count_frames(tmp_path / "w") == 14
    # A later run appends to it and may be killed meanwhile.
    with second.begun_path().open("ab") as file:
        file.write(b" and more")
    assert opened(tmp_path / "w").safe_frames == 14
    third = opened(tmp_path / "w")
    add(third, 20, b"later")
    fourth = opened(tmp_path / "w")
    assert (fourth.frames, fourth.safe_frames, fourth.state_bytes()) == (20, 20, b"later")
    assert not list((tmp_path / "w").glob("begun-*"))


@pytest.mark.parametrize("damage", ["pictures", "state"])
def test_what_a_stop_has_kept_is_forgotten_where_it_is_damaged(tmp_path: Path, damage: str) -> None:
    first = opened(tmp_path / "w")
    add(first, 10)
    first.begun_path().write_bytes(b"pictures")
    first.begin(8, end_frame=14, scene_first=0, groups=1, state=b"amid")
    assert first.begun is not None
    (tmp_path / "w" / (first.begun.file if damage == "pictures" else first.begun.state)).write_bytes(b"am")
    second = opened(tmp_path / "w")
    assert (second.safe_frames, second.state_bytes()) == (10, b"state")
    assert not list((tmp_path / "w").glob("begun-*"))


def test_leftovers_are_found_counted_and_removed_unless_in_use(tmp_path: Path) -> None:
    folder = work_folder(tmp_path / "sub" / "out.mp4")
    OutputLock(folder).close()
    add(opened(folder), 10)
    (tmp_path / ".other.ultraflash").mkdir()
    assert find_leftovers([tmp_path], recursive=False) == []
    (found,) = find_leftovers([tmp_path], recursive=True)
    assert (found.folder, found.frames, found.in_use) == (folder, 10, False)
    assert count_frames(folder) == 10
    with OutputLock(folder):
        (busy,) = find_leftovers([tmp_path / "sub"], recursive=False)
        assert busy.in_use
        assert not remove(busy)
    assert remove(found)
    assert not folder.exists()
    with pytest.raises(InputError, match="no such folder"):
        find_leftovers([tmp_path / "nowhere"], recursive=False)
