"""The command in this process, with parts of the machine replaced."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.in_process import replace_model
from tests.cli.reference import PAGE, reference
from tests.jobs.clips import make_clip
from tests.jobs.doubler import builder
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.resume.work_folder import OutputLock, work_folder
from ultraflash_cli.main import main
from ultraflash_cli.video.stills import write_png
from ultraflash_cli.weights.manifest import read_manifest
from ultraflash_cli.weights.verify import sha256_of


@pytest.fixture
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_model(monkeypatch, builder())


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=6)


def test_the_page_of_the_command_line_is_what_help_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run python -m tests.cli.reference"


def test_help_stands_under_headings_with_examples_and_is_cut_nowhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["upscale", "--help"]) == 0
    page = capsys.readouterr().out
    headings = [line.removesuffix(":") for line in page.splitlines() if re.fullmatch(r"[A-Z]\w+:", line)]
    wanted = ["Output", "Picture", "Selection", "Encoding", "Model", "Performance", "Cluster", "Global", "Examples"]
    assert headings == ["Arguments", *wanted]
    assert "Path" not in page and "<" not in page
    assert max(map(len, page.splitlines())) <= 80
    assert main(["help", "upscale"]) == 0
    assert capsys.readouterr().out == page
    for group in ([], ["weights"], ["train"]):
        assert main([*group, "--help"]) == 0
        assert "..." not in capsys.readouterr().out.replace("[ARGS]...", "")


def test_shells_can_complete_commands_options_and_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_ULTRAFLASH_COMPLETE", "complete_bash")
    for words, place, expected in (
        ("ultraflash up", "1", ["upscale"]),
        ("ultraflash upscale --side", "2", ["--side-by-side"]),
        ("ultraflash upscale --codec he", "3", ["hevc", "hevc_nvenc"]),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", place)
        with contextlib.suppress(SystemExit):
            main([])
        assert capsys.readouterr().out.split() == expected


def test_a_size_that_bench_cannot_generate_is_refused_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "--size", "208x120", "--device", "cpu"]) == 2
    assert "generates 832x480 only" in capsys.readouterr().err


def test_probe_of_a_missing_file_gives_its_error_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "nosuch.mp4", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["exit_code"] == 3


def test_every_bad_input_gives_one_line_and_its_exit_code(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("These are words.\n" * 50)
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.mkv").write_text("mine")
    cases: dict[tuple[object, ...], int] = {
        (tmp_path / "nope.mp4",): 3,
        (tmp_path / "empty.mp4",): 3,
        (tmp_path / "text.mp4",): 3,
        (tmp_path / "folder",): 3,
        (clip, "-o", tmp_path / "text.mp4" / "out.mkv"): 7,
        (clip, "-o", tmp_path / "there.mkv"): 2,
        (clip, "-o", clip, "-y"): 2,
        (clip, tmp_path / "nope.mp4", "-o", tmp_path / "there.mkv"): 2,
        (clip, "-y", "-n"): 2,
        (clip, "--res", "5k"): 2,
        (clip, "--res", "32x24"): 2,
        (clip, "--res", "99999x99999"): 2,
        (clip, "--strength", "nan"): 2,
        (clip, "--strength", "2"): 2,
        (clip, "--crf", "-3"): 2,
        (clip, "--crf", "x"): 2,
        (clip, "--threads", "0"): 2,
        (clip, "--seed", "-1"): 2,
        (clip, "--device", "tpu"): 2,
        (clip, "--precision", "int8"): 2,
        (clip, "--device", "cpu", "--precision", "fp8"): 4,
        (clip, "--model", "best"): 2,
        (clip, "--start", "soon"): 2,
        (clip, "--pix-fmt", "rgb24"): 2,
        (clip, "--enc-opt", "preset=warp9"): 2,
        (clip, "--enc-opt", "x264-params=nothing=1"): 2,
        ("",): 2,
        (clip, "-o", ""): 2,
        (Path(os.devnull),): 3,
        # The system denies access to these, as it does in folders of other users.
        (tmp_path / ("x" * 300 + ".mp4"),): 3,
        (clip, "-o", tmp_path / ("x" * 300 + ".mp4")): 7,
        (clip, "-o", tmp_path / "one.png"): 2,
        (clip, "-o", "-", "--codec", "png"): 2,
        (clip, clip, "-o", "-"): 2,
        (clip, "-", "-o", tmp_path / "out.mkv"): 2,
        ("-",): 2,
        (clip, "--fps", "0"): 2,
        (clip, "--fps", "many"): 2,
        (clip, "--temp-dir", tmp_path / "text.mp4"): 7,
        (tmp_path / "*.nothing",): 3,
        (tmp_path / "%03d.png",): 3,
        (tmp_path / "folder", "--images"): 3,
        (tmp_path / "folder", "--recursive"): 3,
        (clip, "--no-such-flag"): 2,
        (): 2,
    }
    for arguments, code in cases.items():
        assert main(["upscale", *map(str, arguments)]) == code, arguments
        shown = capsys.readouterr()
        assert shown.out == ""
        *plan, line = shown.err.splitlines()
        assert line.startswith("error: ")
        assert not plan or code == 4, "only a device is found wanting after the plan"
    assert (tmp_path / "there.mkv").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_weights_with_nan_are_refused_with_their_name(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest()
    entry = manifest["lite/pixels_detail"]
    tensors = load_file(entry.path)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = torch.nan
    damaged = tmp_path / "pixels.safetensors"
    save_file(tensors, damaged)
    manifest["lite/pixels_detail"] = replace(
        entry, file=str(damaged), sha256=sha256_of(damaged), bytes=damaged.stat().st_size
    )
    monkeypatch.setattr("ultraflash_cli.models.shelf.read_manifest", lambda: manifest)
    assert main(["upscale", str(clip), "--res", "2x"]) == 8
    shown = capsys.readouterr()
    assert shown.out == ""
    _plan, line = shown.err.splitlines()
    assert line.startswith("error: pixels.safetensors")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("tiny_model")
def test_a_full_disk_is_one_line_and_exit_7(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "add", full)
    assert main(["upscale", str(clip), "--res", "2x", "-q"]) == 7
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert "disk is full" in line
    assert not clip.with_name("in_2x.mkv").exists()


def test_an_unexpected_error_is_one_line_and_a_traceback_with_verbose_only(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bolt is loose")

    replace_model(monkeypatch, broken)
    assert main(["upscale", str(clip), "--res", "2x"]) == 1
    _plan, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unexpected RuntimeError: a bolt is loose")
    assert main(["-v", "upscale", str(clip), "--res", "2x"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_too_little_memory_to_load_torch_is_5(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object, **__: object) -> None:
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    replace_model(monkeypatch, short)
    assert main(["upscale", str(clip), "--res", "2x"]) == 5


def test_ctrl_c_anywhere_is_130_and_one_line(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    replace_model(monkeypatch, interrupt)
    assert main(["upscale", str(clip), "--res", "2x", "-q"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_sigterm_before_the_work_begins_is_143(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("ultraflash_cli.jobs.planning.clips.find_clips", terminate)
    assert main(["upscale", str(clip)]) == 143


def test_no_memory_is_5(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    replace_model(monkeypatch, empty)
    assert main(["upscale", str(clip), "--res", "2x"]) == 5


def test_memory_that_runs_out_is_met_with_a_smaller_plan_that_is_reported(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ultraflash_cli.jobs.running import loader

    build, tries = loader.build_upscaler, 0

    def short(*arguments: Any, **named: Any) -> object:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(*arguments, **named)

    monkeypatch.setattr(loader, "build_upscaler", short)
    assert (
        main(["upscale", str(clip), "--res", "2x", "--model", "tiny-random", "--progress", "json", "--json", "-q"]) == 0
    )
    shown = capsys.readouterr()
    events = [json.loads(line) for line in shown.err.splitlines()]
    names = [event["event"] for event in events if event["event"] != "chunk"]
    assert names == ["plan", "retry", "retry", "warn", "start", "done"], "the first smaller plan changes no pixels"
    warnings = json.loads(shown.out)["warnings"]
    assert warnings and all(": for lack of memory" in warning for warning in warnings)


@pytest.mark.usefixtures("tiny_model")
def test_a_dry_run_tells_the_plan_and_writes_nothing(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(clip), "--dry-run", "--json", "--res", "3x"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["width"], plan["height"], plan["scale"]) == (192, 144, 3)
    assert [path.name for path in clip.parent.iterdir()] == ["in.mkv"]
    assert main(["upscale", str(clip), "--dry-run", "--res", "32x16"]) == 2


@pytest.mark.usefixtures("tiny_model")
def test_a_dry_run_warns_of_what_the_run_would(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["upscale", str(clip), "--res", "2x", "-o", str(clip.with_name("out.y4m"))]
    assert main([*command, "--dry-run", "--json"]) == 0
    foreseen = json.loads(capsys.readouterr().out)["warnings"]
    assert main([*command, "--dry-run"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[-len(foreseen) :] == [f"warning: {message}" for message in foreseen]
    assert main([*command, "--json"]) == 0
    assert foreseen == json.loads(capsys.readouterr().out)["warnings"] and "left out: stream 1 audio" in foreseen[0]


@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize("part", [("--end", "0.1"), ("--start", "0.05", "--end", "0.21"), ("--start", "0.13")])
def test_the_frames_between_start_and_end_are_counted_beforehand(
    clip: Path, part: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["upscale", str(clip), "--res", "2x", *part, "--json", "-q"]
    assert main([*command, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)["frames_total"]
    assert main(command) == 0
    assert planned == json.loads(capsys.readouterr().out)["frames_out"]


@pytest.mark.usefixtures("tiny_model")
def test_a_photo_becomes_a_photo(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, large = tmp_path / "photo.png", tmp_path / "large.png"
    write_png(photo, np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    command = ["upscale", str(photo), "--res", "2x"]
    assert [main(command), main(command), main([*command, "-n"]), main([*command, "-y"])] == [0, 2, 0, 0]
    assert [main([*command, "-o", str(large)]), main([*command, "-o", str(large), "--codec", "png", "-y"])] == [0, 0]
    told = capsys.readouterr().err
    assert "warning" not in told and "photo_2x.png: 1 frame in" in told
    for made in (tmp_path / "photo_2x.png", large):
        with av.open(str(made)) as container:
            assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(128, 96)]
    assert main([*command, "--codec", "h264"]) == 0
    assert main(["upscale", str(clip), "--res", "2x", "-o", str(large), "-y"]) == 2
    assert "a clip has many frames" in capsys.readouterr().err
    names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert names == ["in.mkv", "large.png", "photo.png", "photo_2x.mp4", "photo_2x.png"]


@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize("codec", ["h264", "hevc", "prores", "ffv1"])
def test_encoders_do_not_talk(clip: Path, codec: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(clip), "--res", "2x", "--codec", codec, "-q"]) == 0
    shown = capfd.readouterr()
    assert shown.out == ""
    assert [line for line in shown.err.splitlines() if "finer chroma" not in line] == []


def test_svt_av1_does_not_talk(clip: Path) -> None:
    # It once printed twenty lines to stderr for every segment; it reads its environment once in a process.
    command = [sys.executable, "-m", "ultraflash_cli", "upscale", str(clip), "--res", "2x", "--codec", "av1", "-q"]
    said = subprocess.run([*command, "--model", "tiny-random"], capture_output=True, text=True, check=True)
    assert said.stdout == ""
    assert [line for line in said.stderr.splitlines() if "finer chroma" not in line] == []


@pytest.mark.parametrize("arguments", [("-q", "upscale"), ("upscale", "-q")], ids=["before", "after"])
@pytest.mark.usefixtures("tiny_model")
def test_global_options_stand_before_or_after_the_command(
    clip: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert main([*arguments, str(clip), "--res", "2x", "-y"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_probe_tells_the_file_and_the_plan(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(clip), "--json", "--res", "2x"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["width"], found["height"], found["codec"]) == (64, 48, "h264")
    assert found["plan"]["width"] == 128
    assert found["plan"]["kept"] == ["stream 1 audio aac"]
    assert found["memory"]["total_bytes"] == sum(part["bytes"] for part in found["memory"]["parts"]) > 0
    assert main(["probe", str(clip)]) == 0
    shown = capsys.readouterr().out
    assert "64x48 -> 1280x960" in shown and "\nmemory: " in shown


def test_clean_lists_leftovers_and_removes_them_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = work_folder(tmp_path / "out.mp4")
    OutputLock(folder).close()
    Journal(folder, {})
    assert main(["clean", str(tmp_path)]) == 0
    assert "leftover" in capsys.readouterr().out
    assert folder.exists()
    assert main(["clean", str(tmp_path), "-y", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"]
    assert not folder.exists()


def test_weights_are_listed_with_size_and_licence_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ULTRAFLASH_HOME", str(tmp_path))
    assert main(["weights", "list", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {entry["name"] for entry in listed} == read_manifest().keys()
    built_in = [entry for entry in listed if entry["repository"] is None]
    assert all(entry["licence"] and entry["bytes"] and entry["installed"] for entry in built_in)
    assert not any(entry["installed"] for entry in listed if entry["repository"] is not None)
    assert main(["weights", "list"]) == 0
    assert " 6.6 kB " in capsys.readouterr().out, "not 0.0 MB"
    assert main(["weights", "verify", "--json"]) == 0
    assert main(["weights", "verify", "nope"]) == 2


def test_a_wrong_encoder_option_is_a_usage_error(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(clip), "--enc-opt", "tune"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_a_log_file_keeps_what_was_said(clip: Path, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    assert main(["--log-file", str(log), "upscale", str(clip), "--res", "huge", "-q"]) == 2
    assert "--res must be a name" in log.read_text()
