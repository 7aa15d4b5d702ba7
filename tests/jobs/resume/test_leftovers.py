"""Leftovers of interrupted runs: those that `clean` finds, and files that it keeps."""

from pathlib import Path

from tests.jobs.doubler import job
from tests.jobs.resume.somebody import contents, interrupted
from ultraflash_cli.jobs.resume.leftovers import find_leftovers, remove
from ultraflash_cli.jobs.resume.work_folder import work_folder


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
