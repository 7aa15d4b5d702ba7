"""Several clips in one command, in this process: selection, output paths and
messages."""

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from tests.jobs.clips import decoded, make_clip, stream_kinds
from tests.jobs.doubler import Doubler, Trail, builder
from ultraflash_cli.jobs.planning.clips import find_clips, is_several
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main

GOOD, BROKEN = 196, 3
LONG = "x" * 249
"""A name that is not too long itself, although the name of its result is."""


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_of_two_hundred_files_the_good_ones_are_done_and_the_others_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    small = make_clip(tmp_path / "small.mkv", frames=2, width=16, height=16, audio=False)
    special = "a cat \N{CAT FACE} & two dogs.mkv"
    good = [special, *(f"{number:03d}.mkv" for number in range(GOOD - 1))]
    for name in (*good, f"{LONG}.mkv"):
        shutil.copy(small, films / name)
    content = small.read_bytes()
    broken = {"broken-1.mkv": content[:300], "broken-2.mkv": b"no film " * 99, "broken-3.mkv": b""}
    for name, what in broken.items():
        (films / name).write_bytes(what)
    out = tmp_path / "out"
    assert main(["upscale", str(films), "-o", str(out), "--res", "2x", "--threads", "1", "--keep-going", "--json"]) == 9
    shown = capsys.readouterr()
    assert names(out) == sorted(f"{Path(name).stem}_2x.mkv" for name in good)
    assert len(decoded(out / f"{Path(special).stem}_2x.mkv")) == 2
    reports = [json.loads(line) for line in shown.out.splitlines()]
    assert len(reports) == GOOD + BROKEN + 1
    failed = {Path(report["input"]).name: report["exit_code"] for report in reports if "error" in report}
    assert failed == dict.fromkeys(broken, 3) | {f"{LONG}.mkv": 7}
    *table, counts, error = shown.err.splitlines()[-(len(reports) + 2) :]
    assert counts == f"{GOOD} done, 0 skipped, 4 failed"
    assert sum(line.startswith("done") for line in table) == GOOD
    assert error.startswith("error: 4 of 200 files failed: ")
    assert all(name in error for name in failed)
    # The same command again only tries what is missing.
    assert main(["upscale", str(films), "-o", str(out), "--res", "2x", "--keep-going", "-n", "-q"]) == 9
    assert "4 of 200 files failed" in capsys.readouterr().err


def test_a_skipped_file_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = make_clip(tmp_path / "small.mkv", frames=2, width=16, height=16, audio=False)
    shutil.copy(small, tmp_path / "other.mkv")
    command = ["upscale", str(small), str(tmp_path / "other.mkv"), "--res", "2x", "-n"]
    assert main([*command[:2], *command[3:]]) == 0
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().err
    assert said.count("small_2x.mkv") == said.count("small_2x.mkv exists; skipping") == 1
    assert "done  2 frames" in said and said.endswith("1 done, 1 skipped, 0 failed\n")
    assert main(command) == 0
    assert capsys.readouterr().err.count("\n") == 3


def test_a_dry_run_names_the_files_that_it_would_skip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = make_clip(tmp_path / "small.mkv", frames=2, width=16, height=16, audio=False)
    shutil.copy(small, tmp_path / "other.mkv")
    shutil.copy(small, tmp_path / "small_2x.mkv")
    command = ["upscale", str(small), str(tmp_path / "other.mkv"), "--res", "2x", "-n", "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{tmp_path / 'small_2x.mkv'} exists; skipping {small}"
    assert said[1] == f"{tmp_path / 'other.mkv'} -> {tmp_path / 'other_2x.mkv'}"
    assert said[-1].startswith("total: 1 clip, ") and said[-1].endswith(", 1 skipped")
    assert main([*command, "--json", "-q"]) == 0
    skipped, planned = map(json.loads, capsys.readouterr().out.splitlines())
    assert skipped["skipped"] and "memory" not in skipped and planned["memory"]
    assert main([*command[:2], *command[3:]]) == 0
    assert capsys.readouterr().err == f"{tmp_path / 'small_2x.mkv'} exists; skipping {small}\n"


def test_a_tree_is_mirrored_below_the_output_folder(tmp_path: Path) -> None:
    films = tmp_path / "films"
    (films / "a" / "deep").mkdir(parents=True)
    (films / ".hidden").mkdir()
    small = make_clip(tmp_path / "small.mkv", frames=2, width=16, height=16, audio=False)
    for place in ("x.mkv", "a/x.mkv", "a/deep/y.mkv", ".hidden/z.mkv"):
        shutil.copy(small, films / place)
    out = films / "results"
    arguments = ["upscale", str(films), "-o", str(out), "--res", "2x", "--threads", "1", "-q"]
    assert main([*arguments, "--recursive"]) == 0
    assert names(out) == ["a/deep/y_2x.mkv", "a/x_2x.mkv", "x_2x.mkv"]
    assert main([*arguments, "--recursive", "-n"]) == 0
    assert len(names(out)) == 3, "results are no inputs"
    assert main(["upscale", str(films), "--recursive", "--res", "2x", "--threads", "1", "-q"]) == 0
    assert (films / "a" / "deep" / "y_2x.mkv").is_file()


def test_a_name_with_wildcards_stands_for_what_fits_it(tmp_path: Path) -> None:
    for name in ("a.mkv", "b.mkv", "c.mp4", "d[1].mkv"):
        (tmp_path / name).write_text("film")
    found = find_clips([tmp_path / "*.mkv"])
    assert [clip.source.name for clip in found] == ["a.mkv", "b.mkv", "d[1].mkv"]
    assert [clip.source.name for clip in find_clips([tmp_path / "d[1].mkv"])] == ["d[1].mkv"], "a file is itself"
    assert is_several([tmp_path / "*.mkv"], images=False)
    assert not is_several([tmp_path / "d[1].mkv"], images=False)
    assert is_several([tmp_path], images=False)
    assert not is_several([tmp_path], images=True)


def test_one_clip_comes_from_stdin_and_goes_to_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    clip = make_clip(tmp_path / "in.mkv", frames=4)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(clip.read_bytes())))
    assert main(["upscale", "-", "-o", "-", "--res", "2x", "--json", "--temp-dir", str(tmp_path / "temp"), "-q"]) == 0
    shown = capfdbinary.readouterr()
    (tmp_path / "out.mkv").write_bytes(shown.out)
    assert len(decoded(tmp_path / "out.mkv")) == 4
    assert stream_kinds(tmp_path / "out.mkv") == ["video", "audio"]
    report = json.loads(shown.err.splitlines()[-1])
    assert (report["input"], report["output"], report["frames_out"]) == ("-", "-", 4)


def test_a_picture_too_large_for_the_memory_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    source = tmp_path / "4k.mp4"
    with av.open(source, "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = 3840, 2160, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((3240, 3840), np.uint8), format="yuv420p")
        container.mux(video.encode(frame))
        container.mux(video.encode(None))
    assert main(["upscale", str(source), "--dry-run", "--max-memory", "500M", "--device", "cpu"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "the smallest plan needs" in line
    assert main(["upscale", str(source), "--dry-run", "--res", "1k", "--device", "cpu"]) == 2
    assert "--downscale" in capsys.readouterr().err


def test_a_folder_that_may_not_be_read_is_one_line_and_exit_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def locked(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ultraflash_cli.jobs.planning.clips.os.listdir", locked)
    assert main(["upscale", str(tmp_path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "Permission denied" in line


def test_a_batch_continues_if_asked_and_names_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    make_clip(folder / "a.mkv", frames=4)
    (folder / "b.mkv").write_text("broken")
    make_clip(folder / "c with a cat \N{CAT FACE}.mkv", frames=4)
    (folder / "notes.txt").write_text("no film")
    out = tmp_path / "out"
    assert main(["upscale", str(folder), "-o", str(out), "--res", "2x", "--json"]) == 9
    assert "1 of 3 files failed" in (said := capsys.readouterr().err.splitlines()[-1])
    assert "1 not tried" in said
    assert [path.name for path in out.iterdir()] == ["a_2x.mkv"]
    assert main(["upscale", str(folder), "-o", str(out), "--res", "2x", "--json", "--keep-going", "-n"]) == 9
    shown = capsys.readouterr()
    first, second, third = (json.loads(line) for line in shown.out.splitlines())
    assert first["skipped"]
    assert second["exit_code"] == 3
    assert third["frames_out"] == 4
    assert "1 of 3 files failed" in shown.err.splitlines()[-1]
    assert "not tried" not in shown.err
    assert "b.mkv" in shown.err.splitlines()[-1]
    assert len(list(out.iterdir())) == 2


def test_a_folder_done_twice_does_not_take_results_for_films(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mkv", frames=4)
    assert main(["upscale", str(tmp_path), "--res", "2x"]) == 0
    assert main(["upscale", str(tmp_path), "--res", "2x", "-n"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "a_2x.mkv"]


def test_two_inputs_that_would_share_an_output_are_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_clip(tmp_path / name / "a.mkv", frames=4)
    out = tmp_path / "out"
    inputs = [str(tmp_path / name / "a.mkv") for name in ("one", "two")]
    for options in (["-y"], []):
        assert main(["upscale", *inputs, "-o", str(out), "--res", "2x", *options]) == 9
        assert f"{inputs[1]} and {inputs[0]} would both be written to" in capsys.readouterr().err
        assert not out.exists()

    assert main(["upscale", *inputs, "-o", str(out), "--res", "2x", "--keep-going", "--json"]) == 9
    refused, done = map(json.loads, capsys.readouterr().out.splitlines())
    assert (refused["input"], refused["exit_code"]) == (inputs[1], 2) and "rename one" in refused["error"]
    assert (done["input"], done["frames_out"]) == (inputs[0], 4) and (out / "a_2x.mkv").exists()


@pytest.mark.parametrize(("option", "same"), [([], "-n"), (["-y"], "-n instead of -y")], ids=["plain", "-y"])
def test_a_stopped_batch_names_the_option_that_resumes_it(
    option: list[str],
    same: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Stopped(Doubler):
        def step(self, state: Trail, frames: list[np.ndarray]) -> tuple[Trail, list[np.ndarray]]:
            if (tmp_path / "a_2x.mkv").exists() and not state.seen:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(state, frames)

    for name in "abc":
        make_clip(tmp_path / f"{name}.mkv", frames=40)
    command = ["upscale", str(tmp_path), "--res", "2x"]
    with monkeypatch.context() as patch:
        patch.setattr(Models, "upscaler", staticmethod(builder(Stopped)))
        assert main([*command, *option]) == 143
    assert f"the same command with {same} resumes there\n" in capsys.readouterr().err

    assert main(command) == 9
    *_, error = capsys.readouterr().err.splitlines()
    assert error.endswith("; 2 not tried, use -n to skip what is done and resume the rest")
    assert main([*command, "-n"]) == 0
    said = capsys.readouterr().err
    assert "b.mkv: resuming after" in said and "2 done, 1 skipped, 0 failed" in said


def test_inputs_of_one_name_but_different_outputs_are_no_clash(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mkv", frames=4)
    make_clip(tmp_path / "a.mp4", frames=4)
    assert main(["upscale", str(tmp_path), "--res", "2x", "--html", "-q"]) == 0
    made = {path.name for path in tmp_path.iterdir()} - {"a.mkv", "a.mp4"}
    assert {"a_2x.mkv", "a_2x.mp4"} < made
