"""Whose files a run touches: work folders that are links or another user's, what lies in them, what tells an input."""

import io
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import generating
from tests.jobs.clips import make_clip
from tests.jobs.doubler import Doubler, builder, job, upscale
from ultraflash_cli.errors import Interrupted, OutputError, UsageError
from ultraflash_cli.jobs.events import Event, Started, Warned
from ultraflash_cli.jobs.resume import fingerprint as identity
from ultraflash_cli.jobs.resume.fingerprint import content_digest, pictures_digest
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.resume.leftovers import find_leftovers, remove
from ultraflash_cli.jobs.resume.owned_files import is_own_name
from ultraflash_cli.jobs.resume.work_folder import OutputLock, private_folder, temp_work_folder, work_folder
from ultraflash_cli.video.pipe import Pipe

NOBODY = 65534

root_only = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files to another user"
)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=30)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody's own files, some of them under names that the program gives its own."""
    folder = tmp_path / "victim"
    (folder / "inner").mkdir(parents=True)
    for name in ("thesis.txt", "segment-000000.video", "journal.jsonl", "stdin", "inner/photo.jpg"):
        (folder / name).write_text(f"mine: {name}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def note_of(events: list[Event]) -> str:
    (started,) = [event for event in events if isinstance(event, Started)]
    return started.note or ""


def interrupted(made: Any) -> None:
    with pytest.raises(Interrupted):
        upscale(made, stop_at=17)


# Folders that are not ours

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


def test_the_folder_beside_an_output_is_refused_too_where_the_work_lies_elsewhere(clip: Path, victim: Path) -> None:
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


# What lies in our folder


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


# What came between


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


# Leftovers


def test_clean_follows_no_link_and_removes_only_what_is_ours(clip: Path, victim: Path) -> None:
    interrupted(job(clip))
    folder = work_folder(clip.with_name("in_2x.mkv"))
    (folder / "notes.txt").write_text("mine")
    (folder / "state-000009.safetensors").symlink_to(victim / "thesis.txt")
    (folder / "inner").symlink_to(victim)
    (clip.parent / ".other.mkv.ultraflash").symlink_to(victim)
    (clip.parent / "way").symlink_to(victim)
    (victim / ".theirs.ultraflash").mkdir()
    (victim / ".theirs.ultraflash" / "lock").touch()
    before = contents(victim)
    found = {each.folder.name: each for each in find_leftovers([clip.parent], recursive=True)}
    assert found.keys() == {folder.name, ".other.mkv.ultraflash", ".theirs.ultraflash"}, "each of them once"
    assert "is a symlink" in str(found[".other.mkv.ultraflash"].refusal)
    assert not remove(found[".other.mkv.ultraflash"])
    assert not remove(found[folder.name]), "it is not gone, something in it is not ours"
    assert contents(victim) == before
    assert sorted(path.name for path in folder.iterdir()) == ["inner", "notes.txt"]


# Folders that others may write in


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


# What an input is known by


def test_a_copy_with_another_time_goes_on_where_the_first_was_interrupted(clip: Path) -> None:
    interrupted(job(clip))
    os.utime(clip, ns=(0, 1_000_000_000))
    assert upscale(job(clip)).frames_resumed == 17


def test_another_content_of_the_same_size_and_time_starts_afresh(clip: Path) -> None:
    interrupted(job(clip))
    before, content = clip.stat(), bytearray(clip.read_bytes())
    content[len(content) // 2] ^= 1
    clip.write_bytes(content)
    os.utime(clip, ns=(before.st_atime_ns, before.st_mtime_ns))
    events: list[Event] = []
    assert upscale(job(clip), events=events).frames_resumed == 0
    assert "the input's content was" in note_of(events)


def test_a_large_file_is_known_by_both_ends_and_blocks_between_them(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = bytearray(range(256)) * 1000

    def digest(*changed: int) -> str:
        other = bytearray(content)
        for place in changed:
            other[place] ^= 1
        path.write_bytes(other)
        return content_digest(path, samples=4, sample_bytes=1000)

    same = digest()
    assert all(digest(place) != same for place in (0, 999, 85_000, 170_999, 255_000, 255_999))
    assert digest(2000) == same, "what lies between the blocks is not read"
    path.write_bytes(content + b"x")
    assert content_digest(path, samples=4, sample_bytes=1000) != same


def test_pictures_are_known_by_names_and_content(tmp_path: Path) -> None:
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    first.write_bytes(b"a" * 100_000)
    second.write_bytes(b"b")
    known = pictures_digest([first, second])
    os.utime(first, ns=(0, 0))
    assert pictures_digest([first, second]) == known
    first.write_bytes(b"a" * 99_999 + b"c")
    assert pictures_digest([first, second]) != known


def test_another_version_of_a_library_keeps_the_old_work_aside(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(job(clip))
    folder = work_folder(clip.with_name("in_2x.mkv"))
    events: list[Event] = []
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_version", lambda name: "9.9" if name == "torch" else "1")
        interrupted(job(clip))  # its numpy and av are other ones, too
        (first,) = clip.parent.glob(".in_2x.mkv.kept*")
        patch.setattr(identity, "_version", lambda name: "10.0" if name == "torch" else "1")
        assert upscale(job(clip), events=events).frames_resumed == 0
    assert "the version of torch was 9.9 and is 10.0; the 17 finished frames are kept" in note_of(events)
    kept = sorted(each.name for each in clip.parent.glob(".in_2x.mkv.kept*"))
    assert kept == [".in_2x.mkv.kept1.ultraflash", ".in_2x.mkv.kept2.ultraflash"]
    assert [each.frames for each in find_leftovers([clip.parent], recursive=False)] == [17, 17]
    clip.with_name("in_2x.mkv").unlink()
    first.rename(folder)
    assert upscale(job(clip)).frames_resumed == 17, "the old version goes on with it"


def test_another_option_beside_another_version_keeps_nothing(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(job(clip))
    monkeypatch.setattr(identity, "_version", lambda name: "9.9")
    upscale(job(clip, seed=5))
    assert not list(clip.parent.glob(".*"))


def test_a_journal_of_another_format_is_kept_aside(clip: Path) -> None:
    interrupted(job(clip))
    folder = work_folder(clip.with_name("in_2x.mkv"))
    text = (folder / "journal.jsonl").read_text()
    (folder / "journal.jsonl").write_text(text.replace('"format": 3', '"format": 4', 1))
    events: list[Event] = []
    assert upscale(job(clip), events=events).frames_resumed == 0
    assert "was written by another version" in note_of(events)
    assert len(list(clip.parent.glob(".in_2x.mkv.kept1.ultraflash/segment-*.video"))) == 1


def test_a_run_on_the_same_output_cannot_begin_in_the_folder_that_was_put_aside(tmp_path: Path) -> None:
    folder = work_folder(tmp_path / "out.mkv")
    with OutputLock(folder) as lock:
        Journal(folder, {})
        kept = lock.set_aside()
        assert (kept / "journal.jsonl").is_file()
        assert [path.name for path in folder.iterdir()] == ["lock"]
        with pytest.raises(OutputError, match="another run"):
            OutputLock(folder)
    OutputLock(folder).close()
