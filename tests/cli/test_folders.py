"""Inputs that a command processes, inputs that it skips with a message, and stopping;
in this process."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.clips import make_clip
from tests.jobs.doubler import builder
from ultraflash_cli.errors import Interrupted
from ultraflash_cli.jobs import batch
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.jobs.running.stop import Stop, stopping_on_signals
from ultraflash_cli.main import main


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds one clip."""
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))
    (tmp_path / "films").mkdir()
    make_clip(tmp_path / "films" / "race.mkv", frames=2, width=16, height=16, audio=False)
    return tmp_path / "films"


def copied(source: Path, *names: str) -> None:
    for name in names:
        place = source.parent / name
        place.parent.mkdir(exist_ok=True)
        shutil.copy(source, place)


def test_a_folder_that_may_not_be_read_is_named_and_the_others_are_done(
    films: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(films / "race.mkv", "a/deep.mkv", "lost/x.mkv")
    look: Callable[[Any], list[str]] = os.listdir

    def refusing(path: Any) -> list[str]:
        if str(path).endswith("lost"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "listdir", refusing)
    assert main(["upscale", str(films), "--recursive", "--res", "2x", "--json", "--threads", "1"]) == 9
    shown = capsys.readouterr()
    assert (films / "race_2x.mkv").is_file() and (films / "a" / "deep_2x.mkv").is_file()
    assert [json.loads(line).get("exit_code") for line in shown.out.splitlines()] == [None, None, 3]
    assert f"warning: {films}/lost: Permission denied; skipping the folder" in shown.err.splitlines()
    assert shown.err.splitlines()[-1].startswith(f"error: 1 of 3 files failed: {films}/lost")
    monkeypatch.setattr(os, "listdir", lambda path: refusing(f"{path}lost"))
    assert main(["upscale", str(films), "--res", "2x"]) == 3


def test_what_is_passed_over_in_a_folder_is_named(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied(films / "race.mkv", "race_1920x1080.mkv", "race_4k.mkv", "other_2x.mkv", "inner/x.mkv")
    (films / "again").symlink_to(films / "inner")
    (films / "broken.mkv").symlink_to(films / "nothing.mkv")
    assert main(["upscale", str(films), "--recursive", "--dry-run", "--json", "--res", "2x"]) == 0
    shown = capsys.readouterr()
    inputs = [Path(json.loads(line)["input"]).name for line in shown.out.splitlines()]
    assert inputs == ["other_2x.mkv", "race.mkv", "x.mkv"]
    assert "skipped as results of earlier runs: race_1920x1080.mkv, race_4k.mkv; give a file" in shown.err
    assert "links to folders are not followed: again" in shown.err
    assert "broken.mkv skipped: it cannot be read or is a broken link" in shown.err


def test_photos_beside_the_videos_of_a_folder_are_named_but_not_posters(
    films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat.jpg", "race-poster.jpg", "race_2x_frame.png", ".hidden.jpg"):
        (films / name).write_bytes(b"x")
    for inputs in ([str(films)], [str(films), str(films / "race.mkv")]):
        main(["upscale", *inputs, "--dry-run", "--res", "2x", "-q"])
        said = f"warning: {films}: photos in a folder are skipped: cat.jpg; name them to upscale them\n"
        assert capsys.readouterr().err.startswith(said)


def test_a_folder_of_numbered_images_is_reported_as_images(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shots = tmp_path / "shots"
    shots.mkdir()
    for name in ("cover.jpg", "a_002.png", "a_001.png"):
        (shots / name).write_bytes(b"x")
    assert main(["upscale", str(shots)]) == 3
    assert "to upscale the images in it as one clip (a_001.png, ...), use --images" in capsys.readouterr().err
    (films / "race.mkv").rename(films / "race.txt")
    assert main(["upscale", str(films)]) == 3
    assert "--images" not in capsys.readouterr().err


def test_all_inputs_are_looked_for_before_any_work(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = films / "race.mkv", films / "out.mp4"
    assert main(["upscale", str(source), str(output), "--res", "2x", "--json"]) == 3
    shown = capsys.readouterr()
    assert shown.err == f"error: {output}: no such file; to write it, use -o {output}\n"
    assert json.loads(shown.out)["input"] == str(output)
    assert main(["upscale", str(source), str(output), "--res", "2x", "--keep-going"]) == 9
    assert (films / "race_2x.mkv").is_file()


def test_several_inputs_make_no_folder_that_is_called_like_a_file(
    films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(films / "race.mkv", "b.mkv")
    for inputs in ([films], [films / "race.mkv", films / "b.mkv"]):
        assert main(["upscale", *map(str, inputs), "-o", str(films / "out.mp4")]) == 2
        assert "several inputs need an output folder" in capsys.readouterr().err
    (films / "out.mp4").mkdir()
    named = [str(films / "race.mkv"), str(films / "out.mp4"), "-o", str(films / "out.mp4")]
    assert main(["upscale", *named, "--res", "2x", "--threads", "1"]) == 0
    assert "it is not used as an input" in capsys.readouterr().err
    assert [path.name for path in (films / "out.mp4").iterdir()] == ["race_2x.mkv"]


def test_an_output_that_ends_in_a_slash_is_a_folder_which_is_created(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(films / "race.mkv"), tmp_path / "out.mkv"
    assert main(["upscale", source, "-o", str(tmp_path / "out"), "--res", "2x"]) == 2
    assert f"{tmp_path / 'out'} has no extension; choose a file such as out.mp4" in capsys.readouterr().err
    assert main(["upscale", source, "-o", f"{tmp_path / 'a' / 'out'}/", "--res", "2x", "--threads", "1"]) == 0
    assert [path.name for path in (tmp_path / "a" / "out").iterdir()] == ["race_2x.mkv"]
    copied(films / "race.mkv", "b.mkv")
    for inputs in ([source], [source, str(films / "b.mkv")]):
        assert main(["upscale", *inputs, "-o", f"{out}/", "--res", "2x", "--threads", "1", "-n"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["b_2x.mkv", "race_2x.mkv"]
    assert main(["upscale", source, "-o", f"{source}/", "--res", "2x"]) == 7
    assert f"{source} is a file, expected a folder" in capsys.readouterr().err
    assert main(["generate", "sea", "--model", "tiny-lite", "-o", f"{tmp_path / 'made'}/", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"].startswith(f"{tmp_path / 'made'}/")


def test_no_output_replaces_another_input(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied(films / "race.mkv", "race_2x.mkv")
    before = (films / "race_2x.mkv").read_bytes()
    assert main(["upscale", str(films / "race.mkv"), str(films / "race_2x.mkv"), "--res", "2x", "-y"]) == 9
    assert "which is also an input" in capsys.readouterr().err
    assert (films / "race_2x.mkv").read_bytes() == before


@pytest.mark.parametrize("command", ["upscale", "generate"])
def test_a_long_dry_run_shows_plans_as_it_runs_and_obeys_the_first_ctrl_c(
    films: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    copied(films / "race.mkv", *(f"{number}.mkv" for number in range(9)))
    name = "prepare" if command == "upscale" else "prepare_generation"
    ready, calls = getattr(batch, name), 0

    def interrupting(job: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return ready(job)

    monkeypatch.setattr(batch, name, interrupting)
    inputs = [str(films)] if command == "upscale" else ["a cat", "--count", "100000000"]
    assert main([command, *inputs, "--dry-run", "--json", "--model", "tiny-random", "-q"]) == 130
    shown = capsys.readouterr()
    *plans, failure = map(json.loads, shown.out.splitlines())
    assert len(plans) == 3 and failure["exit_code"] == 130
    assert shown.err.startswith("error: interrupted before ")


def test_a_terminal_that_goes_away_stops_like_sigterm_and_may_say_so_twice() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stopping_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.interruption("gone").exit_code == 129
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_nohup_is_respected() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_the_first_ctrl_c_is_acknowledged_and_the_second_leaves_with_a_word(
    films: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Left(BaseException):
        pass

    def leave(code: int) -> None:
        raise Left(code)

    def press_twice(*_: object, **__: object) -> None:
        others = set(threading.enumerate())
        os.kill(os.getpid(), signal.SIGINT)
        for thread in set(threading.enumerate()) - others:
            thread.join(10)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(Models, "upscaler", staticmethod(press_twice))
    with pytest.raises(Left, match="130"):
        main(["upscale", str(films / "race.mkv"), "--res", "2x"])
    lines = capfd.readouterr().err.splitlines()
    assert lines[-2] == "finishing the current group of frames; press again to stop now"
    assert lines[-1].startswith("error: stopped; the current group is lost")


def test_a_stop_between_two_clips_is_obeyed() -> None:
    stop = Stop()
    stop.request(signal.SIGTERM)
    with pytest.raises(Interrupted, match="interrupted before"):
        next(batch.run_batch([batch.GenerateJob(prompt="a cat")], lambda event: None, stop=stop))


def test_what_is_no_file_on_this_machine_is_distinguished(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (films / "live.m3u8").write_text("#EXTM3U\nhttp://x/1.ts\n")
    for source, told in (("http://x/y.mp4", "URLs are not supported"), (films / "live.m3u8", "is a playlist")):
        for others in ([], [str(films / "race.mkv")]):
            assert main(["upscale", *others, str(source), "--dry-run", "--res", "2x", "-q"]) in (3, 9)
            assert told in capsys.readouterr().err


def test_an_unknown_pixel_format_is_a_usage_error(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["upscale", str(films / "race.mkv")], ["generate", "a cat"]):
        assert main([*command, "--pix-fmt", "foo", "--dry-run"]) == 2
        assert "use one of yuv420p" in capsys.readouterr().err


def test_an_error_event_names_its_input(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(films / "nothing.mkv")
    assert main(["upscale", missing, "--progress", "json"]) == 3
    (event,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (event["event"], event["input"]) == ("error", missing)
