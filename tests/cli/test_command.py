"""The installed command: exit codes, streams, results, interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import COMMAND, REPORT_KEYS, interrupted, ultraflash
from tests.jobs.clips import audio_packets, decoded, make_clip, timestamps

FRAMES, SAFE, CUT = 180, 69, 160
"""The clip's length, the end of its first segment, and the beginning of its second
scene. More frames follow the first segment than the queues hold, so that an event
always reports it before the clip ends."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(
        tmp_path_factory.mktemp("clip") / "in.mp4", frames=FRAMES, width=48, height=32, cut_at=CUT, uneven=True
    )


@pytest.fixture(scope="module")
def whole(clip: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The clip upscaled without interruption, and the messages."""
    output = clip.with_name("whole.mp4")
    return output, ultraflash("upscale", clip, "-o", output, "--res", "2x", "--json", "--progress", "json")


def test_a_clip_comes_out_with_all_frames_times_and_sound(
    clip: Path, whole: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    output, said = whole
    assert said.returncode == 0, said.stderr
    frames = decoded(output)
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * FRAMES
    assert timestamps(output) == timestamps(clip)
    assert audio_packets(output) == audio_packets(clip)
    for source, frame in zip(decoded(clip), frames, strict=True):
        small = frame.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
        assert np.abs(small - source).mean() < 8, "the picture is another one"
    assert sorted(path.name for path in clip.parent.iterdir()) == ["in.mp4", "whole.mp4"]


def test_stdout_holds_one_json_object_and_stderr_one_event_a_line(
    clip: Path, whole: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    output, said = whole
    (shown,) = said.stdout.splitlines()
    report = json.loads(shown)
    assert report.keys() >= REPORT_KEYS
    assert (report["input"], report["output"]) == (str(clip), str(output))
    assert (report["frames_in"], report["frames_out"], report["width"], report["height"]) == (FRAMES, FRAMES, 96, 64)
    events = [json.loads(each) for each in said.stderr.splitlines()]
    assert {event["schema"] for event in events} == {1}
    names = [event["event"] for event in events]
    assert (names[:2], names[-1]) == (["plan", "start"], "done")
    assert set(names[2:-1]) == {"chunk"}
    assert events[1]["predicted_s"] is None, "measuring would take about as long as the clip"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="SIGKILL"),
        pytest.param(signal.SIGINT, 130, id="SIGINT"),
    ],
)
def test_after_a_signal_the_same_command_produces_the_frames_of_an_uninterrupted_run(
    clip: Path, whole: tuple[Path, object], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    arguments = ("upscale", clip, "-o", tmp_path / "out.mp4", "--res", "2x")
    first_segment_is_safe = lambda event: event.get("frames_safe") == SAFE  # noqa: E731
    assert interrupted(arguments, number, first_segment_is_safe) == code
    assert [path.name for path in tmp_path.iterdir()] == [".out.mp4.ultraflash"]
    said = ultraflash(*arguments)
    assert said.returncode == 0, said.stderr
    assert said.stdout == ""
    (frames,) = (int(number) for number in re.findall(r"resuming after (\d+) finished frames", said.stderr))
    # A kill costs the current segment; a request to stop costs no finished work.
    assert frames == SAFE if number == signal.SIGKILL else frames > SAFE
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    uninterrupted, resumed = decoded(whole[0]), decoded(tmp_path / "out.mp4")
    assert len(resumed) == len(uninterrupted)
    assert all(np.array_equal(a, b) for a, b in zip(resumed, uninterrupted, strict=True))
    assert audio_packets(tmp_path / "out.mp4") == audio_packets(clip)
    assert timestamps(tmp_path / "out.mp4") == timestamps(clip)


def test_sigterm_is_143(clip: Path, tmp_path: Path) -> None:
    arguments = ("upscale", clip, "-o", tmp_path / "out.mp4", "--res", "2x")
    assert interrupted(arguments, signal.SIGTERM, lambda event: event["event"] == "chunk") == 143


def test_refusals_give_one_line_and_their_exit_code(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("These are words.\n" * 50)
    (tmp_path / "there.mp4").write_text("mine")
    cases = {
        (tmp_path / "text.mp4",): 3,
        (clip, "-o", tmp_path / "there.mp4"): 2,
        (clip, "--deinterlace", "maybe"): 2,
        (clip, "--device", "cuda:99", "-o", tmp_path / "out.mp4"): 4,
        (clip, "-o", tmp_path / "text.mp4" / "out.mp4"): 7,
    }
    for arguments, code in cases.items():
        said = ultraflash("upscale", *arguments)
        assert said.returncode == code, (arguments, said.stderr)
        assert said.stdout == ""
        *plan, line = said.stderr.splitlines()
        assert line.startswith("error: ")
        assert not plan or code == 4, "only a device is found wanting after the plan"
    assert (tmp_path / "there.mp4").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_help_and_version_import_neither_torch_nor_av() -> None:
    script = """
import os, sys
from ultraflash_cli.main import main
for arguments in (["--help"], ["--version"], ["upscale", "--help"], ["upscale", "--nope"]):
    main(arguments)
    heavy = {"torch", "av", "numpy", "triton", "safetensors"} & sys.modules.keys()
    assert not heavy, (arguments, heavy)
# OpenMP reads this when torch is imported, and never again.
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
"""
    environ = {name: text for name, text in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ)
    assert said.returncode == 0, said.stderr


def test_what_is_mistyped_is_refused_without_loading_torch(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mkv", frames=2, audio=False)
    script = """
import sys
from ultraflash_cli.main import main
for arguments in (
    "upscale nope.mkv", "upscale a.mkv --res 9", "upscale a.mkv -o a.mkv", "upscale a.mkv --dry-run -o a.mkv",
    "generate boat --init-clip nope.mkv", "compare nope.mkv a.mkv", "probe nope.mkv", "explain nope.mkv",
    "weights verify nope", "bench nope", "plan nope.mkv -o out --work-dir work", "worker nope", "join nope",
):
    assert main(arguments.replace("a.mkv", sys.argv[1]).split()) not in (0, 1), arguments
    assert "torch" not in sys.modules, arguments
"""
    command = [sys.executable, "-c", script, str(tmp_path / "a.mkv")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr


def test_a_reader_of_stdout_that_leaves_early_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    said = subprocess.run([*COMMAND, "weights", "list"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert said.returncode == 7
    assert said.stderr.splitlines() == ["error: stdout was closed before everything was written"]


def test_doctor_finds_this_machine_fit() -> None:
    said = ultraflash("doctor", "--json")
    assert said.returncode == 0, said.stdout
    found = json.loads(said.stdout)
    assert found["ok"]
    states = {finding["name"]: finding["state"] for finding in found["findings"]}
    assert {name for name, state in states.items() if state == "ok"} >= {
        "python",
        "torch",
        "av",
        "encoders",
        "weights",
        "generate",
        "disk",
    }
