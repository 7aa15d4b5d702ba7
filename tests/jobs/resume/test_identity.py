"""Criteria by which a run recognises work of the same job: the input's content,
versions, the journal's format."""

import os
from pathlib import Path

import pytest

from tests.jobs.doubler import job, upscale
from tests.jobs.resume.somebody import interrupted, note_of
from ultraflash_cli.errors import OutputError
from ultraflash_cli.jobs.events import Event
from ultraflash_cli.jobs.resume import fingerprint as identity
from ultraflash_cli.jobs.resume.fingerprint import content_digest, pictures_digest
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.resume.leftovers import find_leftovers
from ultraflash_cli.jobs.resume.work_folder import OutputLock, work_folder


def test_a_copy_with_a_different_time_continues_where_the_first_was_interrupted(clip: Path) -> None:
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
        interrupted(job(clip))  # its numpy and av are different, too
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


def test_a_changed_option_with_a_changed_version_keeps_nothing(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
