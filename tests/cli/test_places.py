"""Destinations of results and logs, through the command: pipes, devices, links,
malicious archives."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from tests.cli.in_process import replace_model
from tests.jobs.clips import decoded, make_clip, moving_picture
from tests.jobs.doubler import builder
from ultraflash_cli.jobs.resume.work_folder import OutputLock, work_folder
from ultraflash_cli.main import main
from ultraflash_cli.video.stills import write_png


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_model(monkeypatch, builder())


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=4)


@pytest.fixture
def shared_cases(repository: Path) -> Path:
    folder = repository.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("the shared cases are not on this machine")
    return folder


def upscale(*arguments: object) -> int:
    return main(["upscale", *map(str, arguments), "--res", "2x", "-q"])


# Malicious archives


@pytest.mark.parametrize("options", [[], ["-y"], ["--no-resume"]], ids=" ".join)
def test_an_archive_cannot_reach_a_folder_next_to_it(
    shared_cases: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("mine")
    with tarfile.open(shared_cases / "symlink_work_folder.tgz") as archive:
        archive.extractall(tmp_path, filter="fully_trusted")
    assert upscale(tmp_path / "evil_archive" / "clip.mp4", *options) == 7
    assert "is a symlink, expected a folder created by ultraflash" in capsys.readouterr().err
    assert main(["clean", str(tmp_path), "--recursive", "-y"]) == 0
    assert [(path.name, path.read_text()) for path in victim.iterdir()] == [("thesis.txt", "mine")]


def test_pictures_without_a_first_one_are_not_written_over(shared_cases: Path, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for each in (shared_cases / "frames_from_2").iterdir():
        shutil.copyfile(each, folder / each.name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for options in ([], ["-y"], ["-n"]):
        assert upscale(folder / "%05d.png", "-o", folder / "%05d.png", *options) == 2
        assert upscale(folder, "--images", "-o", folder / "%05d.png", *options) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_picture_lines_of_the_readme_can_be_run_again(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    for number in (7, 8):
        write_png(tmp_path / "shots" / f"{number:05d}.png", moving_picture(number, width=32, height=24))
    line = (tmp_path / "shots" / "%05d.png", "-o", tmp_path / "big" / "%05d.png")
    assert [upscale(*line), upscale(*line), upscale(*line, "-n"), upscale(*line, "-y")] == [0, 2, 0, 0]
    assert sorted(path.name for path in (tmp_path / "big").iterdir()) == ["00007.png", "00008.png"]
    assert upscale(*line[:2], tmp_path / "new" / "%05d.png", "--renumber") == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["00001.png", "00002.png"]


def test_pictures_of_which_one_is_missing_are_not_taken_for_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shots").mkdir()
    for number in (1, 2, 3):
        write_png(tmp_path / "shots" / f"{number}.png", moving_picture(number, width=32, height=24))
    line = (tmp_path / "shots" / "%d.png", "-o", tmp_path / "big" / "%d.png")
    assert upscale(*line) == 0
    (tmp_path / "big" / "2.png").unlink()
    capsys.readouterr()
    assert upscale(*line, "-n") == 2
    assert "only 2 of the numbers 1 to 3 are there, so -n cannot skip it" in capsys.readouterr().err
    assert upscale(*line, "-y") == 0
    assert upscale(*line, "-n") == 0


def test_clean_names_what_is_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / ".a.mp4.ultraflash").symlink_to(tmp_path / "victim")
    OutputLock(work_folder(tmp_path / "b.mp4")).close()
    (work_folder(tmp_path / "b.mp4") / "notes.txt").write_text("mine")
    assert main(["clean", str(tmp_path), "-y", "--json"]) == 0
    shown = capsys.readouterr()
    found = [json.loads(line) for line in shown.out.splitlines()]
    assert [(each["removed"], each["refusal"] is None) for each in found] == [(False, False), (False, True)]
    assert "skipped: " in shown.err
    assert "contains files that ultraflash did not create" in shown.err
    assert (work_folder(tmp_path / "b.mp4") / "notes.txt").exists()


# Pipes and devices


@pytest.mark.parametrize("command", ["upscale", "generate"])
def test_a_named_pipe_takes_the_stream(
    clip: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, taken = tmp_path / "pipe.mkv", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: taken.append(pipe.read_bytes()))
    reader.start()
    if command == "upscale":
        assert upscale(clip, "-o", pipe) == 0
    else:
        trial = ["--model", "tiny-random", "--res", "480p", "--seconds", "0.5", "--device", "cpu"]
        assert main(["generate", "a corgi", "-q", "-o", str(pipe), *trial]) == 0
    reader.join()
    (tmp_path / "taken.mkv").write_bytes(taken[0])
    assert len(decoded(tmp_path / "taken.mkv")) == {"upscale": 4, "generate": 9}[command]
    assert pipe.is_fifo()
    assert "stdout" not in capsys.readouterr().err


def test_a_named_pipe_is_called_by_its_name_and_takes_one_clip(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, taken = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    assert upscale(clip, clip, "-o", pipe) == 2
    assert main(["upscale", str(clip), "-o", str(pipe), "--res", "2x", "--dry-run"]) == 0, "nobody is waited for"
    reader = threading.Thread(target=lambda: taken.append(pipe.read_bytes()))
    capsys.readouterr()
    reader.start()
    assert upscale(clip, "-o", pipe, "--codec", "y4m", "--json") == 0
    reader.join()
    assert taken[0].startswith(b"YUV4MPEG2 W128 H96")
    assert json.loads(capsys.readouterr().out)["output"] == str(pipe)


def test_the_null_device_takes_everything_and_stays(clip: Path) -> None:
    before = os.lstat(os.devnull)
    for _ in range(2):
        assert upscale(clip, "-o", os.devnull) == 0
    after = os.lstat(os.devnull)
    assert (after.st_ino, after.st_rdev, after.st_mode) == (before.st_ino, before.st_rdev, before.st_mode)


def test_other_devices_are_refused(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.mkv"))
        for output in (tmp_path / "s.mkv", "/dev/full", "/dev/zero", "/dev/stderr"):
            if os.path.exists(output):
                assert upscale(clip, "-o", output, "-y") == 2, output
                assert "expected a file" in (line := capsys.readouterr().err) or "is used for messages" in line
        assert (tmp_path / "s.mkv").is_socket()
        assert not Path("/dev/full").is_file()


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output_is_meant_by_each_of_its_names(clip: Path, tmp_path: Path, name: str) -> None:
    program = (
        "import sys; from tests.jobs.doubler import builder;"
        "from ultraflash_cli.jobs.running.loader import Models;"
        "Models.upscaler = staticmethod(builder()); from ultraflash_cli.main import main; sys.exit(main())"
    )
    with (tmp_path / "taken.mkv").open("wb") as taken:
        done = subprocess.run(
            [sys.executable, "-c", program, "upscale", str(clip), "--res", "2x", "-q", "-o", name],
            stdout=taken,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(decoded(tmp_path / "taken.mkv")) == 4


# Logs


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_log_is_never_one_of_the_commands_own_files(
    clip: Path, tmp_path: Path, position: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "way.log").symlink_to(clip)
    (tmp_path / "prompts.txt").write_text("a corgi\n")
    (tmp_path / "picture.log").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    (tmp_path / "y4m.log").write_bytes(b"YUV4MPEG2 W4 H4\nFRAME\n" + b"\x10" * 100)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    line = ["upscale", str(clip), "-o", str(tmp_path / "out.mkv")]
    cases = [
        (str(clip), line),
        (str(tmp_path / "way.log"), line),
        (str(tmp_path / "out.mkv"), line),
        (str(tmp_path / "new.mp4"), line),
        (str(tmp_path / "picture.log"), line),
        (str(tmp_path / "y4m.log"), line),
        (str(tmp_path / "prompts.txt"), ["generate", "--prompts", str(tmp_path / "prompts.txt")]),
        (str(clip), ["probe", str(clip)]),
    ]
    for log, command in cases:
        arguments = ["--log-file", log]
        assert main([*arguments, *command] if position == "before" else [*command, *arguments]) == 2, log
        assert "--log-file" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_log_of_an_earlier_run_is_written_on(clip: Path, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("\x1b[31mearlier\x1b[0m\tline\n")
    assert main(["--log-file", str(log), "probe", str(tmp_path / "missing.mkv")]) == 3
    assert main(["--log-file", str(log), "upscale", "--no-such-option"]) == 2
    text = log.read_text()
    assert text.startswith("\x1b[31mearlier")
    assert "no such file" in text
    assert "--no-such-option" in text, "what is wrong before the command is known is kept, too"
