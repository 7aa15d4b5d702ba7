"""Files that an output replaces: numbered images, links, the input itself."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.clips import decoded, make_clip, moving_picture
from tests.jobs.doubler import Doubler, builder, job, left_over, upscale
from ultraflash_cli.errors import OutputError, UltraflashError, UsageError
from ultraflash_cli.jobs.batch import plan_batch, run_batch
from ultraflash_cli.jobs.resume.work_folder import work_folder
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.video.stills import move_pictures, write_png


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=4, audio=False)


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Five pictures, 00005 to 00009."""
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in range(5, 10):
        write_png(folder / f"{number:05d}.png", moving_picture(number, width=32, height=24))
    return folder


def png(source: Path, output: Path | None, **options: Any) -> Any:
    return job(source, output, **{"codec": "auto", "crf": None, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.png"))


# Numbered pictures


@pytest.mark.parametrize("there", ["00001", "00002", "00004", "00005", "00700"])
def test_pictures_of_any_number_are_in_the_way(clip: Path, tmp_path: Path, there: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / f"{there}.png").write_text("mine")
    with pytest.raises(UsageError, match=rf"{there}\.png exists; use -y to replace it"):
        upscale(png(clip, folder / "%05d.png"))
    assert upscale(png(clip, folder / "%05d.png", skip_existing=True)).skipped
    assert contents(folder) == {f"{there}.png": b"mine"}


def test_only_the_numbers_of_the_clip_are_replaced_and_the_rest_is_named(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("00002.png", "00005.png", "00006.png", "2.png", "000002.png", "00002.jpg", "a00002.png"):
        (folder / name).write_text("mine")
    report = upscale(png(clip, folder / "%05d.png", overwrite=True))
    after = contents(folder)
    assert {name for name, content in after.items() if content != b"mine"} == {f"{n:05d}.png" for n in range(1, 5)}
    assert len(after) == 10
    assert any("00005.png to 00006.png were not made by this run and are kept" in each for each in report.warnings)


def test_pictures_keep_the_numbers_of_those_they_are_made_of(shots: Path, tmp_path: Path) -> None:
    upscale(png(shots / "%05d.png", tmp_path / "kept" / "%04d.png"))
    assert numbers(tmp_path / "kept") == [5, 6, 7, 8, 9]
    upscale(png(shots, tmp_path / "part" / "%04d.png", images=True, start="0.05", end="0.15"))
    assert numbers(tmp_path / "part") == [7, 8], "frames 2 and 3 of 24 a second"
    (kept,), (part,) = (decoded(tmp_path / folder / "0008.png") for folder in ("kept", "part"))
    assert np.array_equal(kept[10:], part[10:]), "a number stands for the same picture"
    upscale(png(shots / "%05d.png", tmp_path / "new" / "%04d.png", renumber=True))
    assert numbers(tmp_path / "new") == [1, 2, 3, 4, 5]


def test_a_picture_line_can_be_run_again(shots: Path, tmp_path: Path) -> None:
    for source, options in ((shots / "%05d.png", {}), (shots, {"images": True})):
        target = tmp_path / f"big{len(options)}" / "%05d.png"
        upscale(png(source, target, **options))
        before = contents(target.parent)
        with pytest.raises(UsageError, match="exists; use -y to replace it"):
            upscale(png(source, target, **options))
        assert upscale(png(source, target, skip_existing=True, **options)).skipped
        assert contents(target.parent) == before
        upscale(png(source, target, overwrite=True, seed=1, **options))
        assert contents(target.parent).keys() == before.keys()
        assert contents(target.parent) != before


def test_a_clip_that_exists_is_mentioned_when_its_input_is_pictures(shots: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    output.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        upscale(job(shots / "%05d.png", output))
    assert upscale(job(shots / "%05d.png", output, skip_existing=True)).skipped
    assert upscale(job(shots / "%05d.png", output, overwrite=True)).frames_out == 5


@pytest.mark.parametrize("images", [True, False], ids=["folder", "pattern"])
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"skip_existing": True}, {"renumber": True}], ids=str)
def test_input_pictures_are_never_the_output(shots: Path, images: bool, options: dict[str, Any]) -> None:
    source = shots if images else shots / "%05d.png"
    (shots.parent / "way").symlink_to(shots)
    before = contents(shots)
    for folder in (shots, shots.parent / "way", shots.parent / "shots" / ".." / "shots"):
        with pytest.raises(UsageError, match="is the input itself"):
            upscale(png(source, folder / "%05d.png", images=images, **options))
    assert contents(shots) == before
    assert left_over(shots) == left_over(shots.parent) == []


def test_a_hard_link_to_an_input_picture_is_the_input(shots: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.link(shots / "00007.png", tmp_path / "out" / "00001.png")
    with pytest.raises(UsageError, match="is the input itself"):
        upscale(png(shots / "%05d.png", tmp_path / "out" / "%05d.png", overwrite=True))


def test_pictures_of_another_name_may_be_next_to_the_input(shots: Path) -> None:
    before = contents(shots)
    upscale(png(shots / "%05d.png", shots / "big_%05d.png"))
    after = contents(shots)
    assert before.items() <= after.items()
    assert len(after) == 10


def test_a_picture_that_is_a_link_is_replaced_and_what_it_leads_to_stays(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.png").write_text("mine")
    (tmp_path / "out" / "0002.png").symlink_to(tmp_path / "mine.png")
    upscale(png(clip, tmp_path / "out" / "%04d.png", overwrite=True))
    assert (tmp_path / "mine.png").read_text() == "mine"
    assert not (tmp_path / "out" / "0002.png").is_symlink()


def test_two_places_for_a_number_are_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 placeholders for a number"):
        upscale(png(clip, tmp_path / "%02d_%02d.png"))


def test_a_run_killed_between_two_pictures_resumes_with_the_same_command(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "%04d.png"

    def killed(made: Path, target: Path, *, frames: int, first: int) -> None:
        move_pictures(made, target, frames=2, first=first)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ultraflash_cli.jobs.running.finish.move_pictures", killed)
        with pytest.raises(KeyboardInterrupt):
            upscale(png(clip, target))
    assert numbers(target.parent) == [1, 2]
    never = builder(lambda prepared: Doubler(prepared, fails_at=0))
    assert upscale(png(clip, target), build=never).frames_out == 4
    assert numbers(target.parent) == [1, 2, 3, 4]


def test_what_was_put_among_the_pictures_of_a_killed_run_is_not_replaced(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "%04d.png"

    def killed(made: Path, target: Path, *, frames: int, first: int) -> None:
        move_pictures(made, target, frames=2, first=first)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ultraflash_cli.jobs.running.finish.move_pictures", killed)
        with pytest.raises(KeyboardInterrupt):
            upscale(png(clip, target))
    (target.parent / "0003.png").write_text("mine")
    with pytest.raises(UsageError, match=r"0003\.png exists"):
        upscale(png(clip, target))
    assert (target.parent / "0003.png").read_text() == "mine"


# Links, and targets that are not files


@pytest.mark.parametrize("kind", ["file", "dangling", "chain"])
def test_a_link_that_is_named_stays_and_its_target_is_written(clip: Path, tmp_path: Path, kind: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    link, target = tmp_path / "out.mkv", disk / "film.mkv"
    if kind == "file":
        target.write_text("old")
    elif kind == "chain":
        (tmp_path / "between.mkv").symlink_to(target)
    link.symlink_to(tmp_path / "between.mkv" if kind == "chain" else Path("disk", "film.mkv"))
    if kind == "file":
        with pytest.raises(UsageError, match="exists"):
            upscale(job(clip, link))
    seen: list[list[str]] = []

    def build(prepared: Any) -> Any:
        seen.append(left_over(disk))
        return builder()(prepared)

    report = upscale(job(clip, link, overwrite=kind == "file"), build=build)
    assert report.output == str(link)
    assert f"{link} is a symlink to {target}, which is written" in report.warnings
    assert link.is_symlink()
    assert len(decoded(target)) == len(decoded(link)) == 4
    assert seen == [[work_folder(target).name]], "the work lies on the target's disk"
    assert left_over(disk) == left_over(tmp_path) == []


def test_links_that_cannot_be_written_through_are_refused(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.mkv").symlink_to("loop.mkv")
    (tmp_path / "keys.mkv").symlink_to(tmp_path / "authorized_keys")
    (tmp_path / "self.mkv").symlink_to(clip)
    refused = {"loop.mkv": "points to itself", "keys.mkv": "another extension", "self.mkv": "input itself"}
    for name, words in refused.items():
        with pytest.raises(UsageError, match=words):
            upscale(job(clip, tmp_path / name, overwrite=True))
    assert not (tmp_path / "authorized_keys").exists()


def test_a_folder_for_pictures_that_nobody_has_named_is_no_link(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "in_2x").symlink_to(tmp_path / "mine")
    for overwrite in (True, False):
        with pytest.raises(UsageError, match="is a symlink"):
            upscale(job(clip, codec="png", crf=None, overwrite=overwrite))
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_link_under_a_name_that_nobody_has_given_is_not_followed(clip: Path, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "in_2x.mkv").symlink_to(tmp_path / "planted.mkv")
    with pytest.raises(UsageError, match="is a symlink"):
        upscale(job(clip, overwrite=overwrite))
    assert not (tmp_path / "planted.mkv").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives links to another user")
def test_a_link_of_another_user_in_a_shared_folder_is_not_followed(clip: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "out.mkv").symlink_to(tmp_path / "planted.mkv")
    os.chown(shared / "out.mkv", 65534, 65534, follow_symlinks=False)
    with pytest.raises(UsageError, match="another user"):
        upscale(job(clip, shared / "out.mkv", overwrite=True))
    assert not (tmp_path / "planted.mkv").exists()


def test_an_output_folder_that_is_a_link_is_written_into(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "way").symlink_to(tmp_path / "real")
    upscale(job(clip, tmp_path / "way" / "inner" / "out.mkv"))
    assert (tmp_path / "real" / "inner" / "out.mkv").is_file()
    assert left_over(tmp_path / "real" / "inner") == []


def test_what_is_no_file_is_not_replaced(clip: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.mkv")
    (tmp_path / "pictures").mkdir()
    os.mkfifo(tmp_path / "pictures" / "0003.png")
    for made in (job(clip, tmp_path / "out.mkv"), png(clip, tmp_path / "pictures" / "%04d.png")):
        with pytest.raises(UsageError, match="not a regular file"):
            upscale(made)
    assert (tmp_path / "out.mkv").is_fifo()


def test_no_input_of_a_batch_is_replaced_by_the_result_of_another(tmp_path: Path) -> None:
    first, second = make_clip(tmp_path / "a.mkv", frames=4), make_clip(tmp_path / "a_2x.mkv", frames=4)
    before = second.read_bytes()
    jobs = [job(first, overwrite=True), job(second, overwrite=True)]
    outcomes = list(plan_batch(jobs, stop=Stop(), sources=[first, second]))
    assert isinstance(outcomes[0].failure, UltraflashError)
    assert second.read_bytes() == before


def test_of_two_inputs_with_one_name_the_second_is_not_skipped_for_the_first(tmp_path: Path) -> None:
    first, second = make_clip(tmp_path / "a.mkv", frames=4), make_clip(tmp_path / "a.mp4", frames=4)
    jobs = [job(each, folder=tmp_path / "out", codec="ffv1", crf=None, skip_existing=True) for each in (first, second)]
    for _ in range(2):
        refused, done = run_batch(jobs, lambda event: None, stop=Stop(), build=builder(), sources=[first, second])
        assert done.failure is None
        assert "would both be written to" in str(refused.failure)


def test_an_output_in_a_folder_that_is_a_file_is_refused(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        upscale(png(clip, tmp_path / "plain" / "%04d.png"))
