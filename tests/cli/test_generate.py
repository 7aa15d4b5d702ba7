"""The installed command with the trial model: from a prompt to a file, despite
interruptions and errors."""

import io
import json
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.cli.command import REPORT_KEYS, interrupted, ultraflash
from tests.cli.reference import reference
from tests.jobs.clips import decoded, make_clip, timestamps
from ultraflash_cli.engine.profiles import PROFILES, TINY_LITE
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.main import main

PROMPT = "A corgi on a beach"
TRIAL = ("--model", "tiny-random", "--device", "cpu", "--threads", "1", "--enc-opt", "preset=ultrafast")
FRAMES, SAFE = 193, 85
"""The long clip's length and the end of its first segment; more frames follow it than
the queues hold."""
LONG = ("generate", PROMPT, *TRIAL, "--seconds", "12", "--save-lr", "--seed", "7")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The long clip made without interruption, and the messages."""
    output = tmp_path_factory.mktemp("whole") / "whole.mp4"
    return output, ultraflash(*LONG, "-o", output, "--json", "--progress", "json")


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with no weights installed."""
    monkeypatch.setenv("ULTRAFLASH_HOME", str(tmp_path / "home"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same_pixels(one: Path, other: Path) -> bool:
    frames, others = decoded(one), decoded(other)
    return len(frames) == len(others) and all(np.array_equal(a, b) for a, b in zip(frames, others, strict=True))


def test_words_become_a_clip_of_the_right_size_length_and_times(
    whole: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    output, said = whole
    assert said.returncode == 0, said.stderr
    assert names(output.parent) == ["whole.mp4", "whole_480p.mp4"]
    for path, shape in ((output, (128, 192, 3)), (output.with_name("whole_480p.mp4"), (64, 96, 3))):
        assert [frame.shape for frame in decoded(path)] == [shape] * FRAMES
        assert timestamps(path) == [Fraction(number, 16) for number in range(FRAMES)]
        with av.open(path) as container:
            assert container.metadata["title"] == PROMPT
            assert "seed 7" in container.metadata["comment"]


def test_stdout_holds_one_json_object_and_stderr_one_event_a_line(
    whole: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    output, said = whole
    report = json.loads(said.stdout)
    assert report.keys() >= REPORT_KEYS | {"prompt", "seed", "counters", "first_frame_s", "low_output"}
    assert (report["prompt"], report["seed"], report["output"]) == (PROMPT, 7, str(output))
    assert (report["frames_out"], report["width"], report["height"]) == (FRAMES, 192, 128)
    assert report["counters"]["generator_passes"] == 5 * report["counters"]["chunks"]
    assert report["counters"]["refreshes_skipped"] == 0
    assert 0 < report["first_frame_s"] < report["seconds"]
    events = [json.loads(each) for each in said.stderr.splitlines()]
    shown = [event["event"] for event in events]
    assert (shown[:2], shown[-1]) == (["plan", "start"], "done")
    assert set(shown[2:-1]) == {"chunk"}
    assert {event["first_frame_s"] for event in events[2:-1]} == {report["first_frame_s"]}


def test_after_sigkill_the_same_command_produces_the_pixels_of_an_uninterrupted_run(
    whole: tuple[Path, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (*LONG, "-o", tmp_path / "out.mp4")
    assert interrupted(command, signal.SIGKILL, lambda event: event.get("frames_safe") == SAFE) == -signal.SIGKILL
    assert names(tmp_path) == [".out.mp4.ultraflash"]
    assert main([*map(str, command)]) == 0
    assert f"out.mp4: resuming after {SAFE} finished frames" in capsys.readouterr().err
    assert names(tmp_path) == ["out.mp4", "out_480p.mp4"]
    for name in ("out.mp4", "out_480p.mp4"):
        assert same_pixels(tmp_path / name, whole[0].with_name(name.replace("out", "whole")))


def test_upscale_with_the_trial_model_survives_sigkill_as_well(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=150, width=48, height=32, audio=False)
    upscale = ("upscale", clip, *TRIAL, "--res", "2x")
    assert main([*map(str, upscale), "-o", str(tmp_path / "whole.mp4"), "-q"]) == 0
    command = (*upscale, "-o", tmp_path / "out.mp4")
    first_segment_is_safe = lambda event: 0 < event.get("frames_safe", 0) < 140  # noqa: E731
    assert interrupted(command, signal.SIGKILL, first_segment_is_safe) == -signal.SIGKILL
    assert main([*map(str, command), "-q"]) == 0
    assert same_pixels(tmp_path / "out.mp4", tmp_path / "whole.mp4")
    assert timestamps(tmp_path / "out.mp4") == timestamps(clip)


def test_prompts_of_stdin_times_count_become_files_with_names_of_their_own(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\ufeffa cat\r\n\r\n# no dog\r\n  a fox \r\n"  # as Windows writes it
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    arguments = ["--prompts", "-", "--count", "2", "--seed", "4", "--res", "480p", "--seconds", "0.5", "--json"]
    assert main(["generate", *arguments, *TRIAL, "-o", "clips", "-q"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(report["prompt"], report["seed"]) for report in reports] == [
        ("a cat", 4), ("a cat", 5), ("a fox", 4), ("a fox", 5),
    ]  # fmt: skip
    made = [f"a-{animal}_480p_seed{seed}.mp4" for animal in ("cat", "fox") for seed in (4, 5)]
    assert names(at_home / "clips") == made
    first = [decoded(at_home / "clips" / name)[0] for name in made]
    assert all(not np.array_equal(first[0], other) for other in first[1:])


def test_a_clip_is_gone_on_from(at_home: Path) -> None:
    clip = make_clip(at_home / "in.mp4", frames=50)
    short = ["generate", PROMPT, *TRIAL, "--res", "480p", "--seconds", "1", "-q"]
    assert main([*short, "-o", "plain.mp4"]) == 0
    assert main([*short, "-o", "next.mp4", "--init-clip", str(clip)]) == 0
    assert main([*short, "-o", "again.mp4", "--init-clip", str(clip)]) == 0
    assert len(decoded(at_home / "next.mp4")) == 17
    assert same_pixels(at_home / "next.mp4", at_home / "again.mp4")
    assert not same_pixels(at_home / "next.mp4", at_home / "plain.mp4")


def test_what_is_spared_is_counted(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--res", "1k", "--seconds", "3", "--cache-management", "steps=2,refresh=0,kv", "--json", "-q"]
    assert main(["generate", PROMPT, *TRIAL, *arguments]) == 0
    counters = json.loads(capsys.readouterr().out)["counters"]
    assert counters["refreshes_skipped"] == counters["chunks"] - 1
    assert counters["generator_passes"] == 5 + 2 * (counters["chunks"] - 1)


def test_an_over_long_prompt_is_cut_and_said_to_be(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(f"word{number}" for number in range(2000))
    assert main(["generate", words, *TRIAL, "--res", "480p", "--seconds", "0.5"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "tokens; only the first 32 are used" in line
    (made,) = names(at_home)
    assert len(made) <= 60 + len("_480p_seed0.mp4")


def test_every_bad_input_gives_one_line_and_its_exit_code(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (at_home / "there.mp4").write_text("mine")
    (at_home / "there_480p.mp4").write_text("mine")
    (at_home / "binary").write_bytes(b"\xff\xfe\x00")
    (at_home / "nothing").write_text("# no prompt\n")
    before = names(at_home)
    cases: dict[tuple[str, ...], int] = {
        ("",): 2,
        (" \n ",): 2,
        ("\x00",): 2,
        ("\udcff",): 2,
        (): 2,
        (PROMPT, "--prompts", "nothing"): 2,
        ("--prompts", "nothing"): 2,
        ("--prompts", "missing"): 3,
        ("--prompts", "binary"): 3,
        (PROMPT, "--model", "best"): 2,
        (PROMPT, "--model", "tiny-lite", "--device", "cpu", "--decoder", "ultra"): 2,
        ("", "--model", "tiny-lite"): 2,
        (PROMPT, "--model", "ultraflash", "--device", "cpu", "--max-memory", "200G"): 8,
        (PROMPT, *TRIAL[:2], "--device", "cuda:99"): 4,
        (PROMPT, *TRIAL[:2], "--device", "tpu"): 2,
        (PROMPT, *TRIAL, "--max-memory", "1M"): 5,
        (PROMPT, *TRIAL, "--max-memory", "lots"): 2,
        (PROMPT, *TRIAL, "-o", "there.mp4"): 2,
        (PROMPT, *TRIAL, "-o", "there.mp4", "-y", "-n"): 2,
        (PROMPT, *TRIAL, "--count", "2", "-o", "there.mp4"): 2,
        (PROMPT, *TRIAL, "--count", "2", "-o", "new.mp4"): 2,
        (PROMPT, *TRIAL, "--count", "0"): 2,
        (PROMPT, *TRIAL, "-o", "there.mp4/out.mp4"): 7,
        (PROMPT, *TRIAL, "-o", "-", "--codec", "png"): 2,
        (PROMPT, *TRIAL, "-o", "-", "--count", "2"): 2,
        (PROMPT, *TRIAL, "-o", "-", "--save-lr"): 2,
        (PROMPT, *TRIAL, "-o", "one.png"): 2,
        (PROMPT, *TRIAL, "-o", "out.txt"): 2,
        (PROMPT, *TRIAL, "--seconds", "0"): 2,
        (PROMPT, *TRIAL, "--seconds", "nan"): 2,
        (PROMPT, *TRIAL, "--fps", "0"): 2,
        (PROMPT, *TRIAL, "--seed", "-1"): 2,
        (PROMPT, *TRIAL, "--res", "8k"): 2,
        (PROMPT, *TRIAL, "--res", "480p", "--save-lr"): 2,
        (PROMPT, *TRIAL, "--cache-management", "everything"): 2,
        (PROMPT, *TRIAL, "--enc-opt", "preset=warp9"): 2,
        (PROMPT, *TRIAL, "--init-clip", "missing.mp4"): 3,
        (PROMPT, *TRIAL, "--init-clip", "binary"): 3,
    }
    for arguments, code in cases.items():
        assert main(["generate", *arguments]) == code, arguments
        shown = capsys.readouterr()
        assert shown.out == ""
        *plan, line = shown.err.splitlines()
        assert not plan or code in (4, 5, 8), (arguments, shown.err)
        assert line.startswith("error: "), arguments
    assert names(at_home) == before
    assert (at_home / "there.mp4").read_text() == "mine"


def test_a_full_disk_is_one_line_and_exit_7_before_and_during_the_work(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    short = ["generate", PROMPT, *TRIAL, "--res", "480p", "--seconds", "0.5", "-q"]
    with monkeypatch.context() as patch:
        patch.setattr("ultraflash_cli.jobs.planning.target.free_bytes", lambda folder: 100)
        assert main(short) == 7
    assert "disk full" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        assert main(short) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert "disk is full" in line
    assert names(at_home) == []


def test_a_batch_continues_if_asked_and_names_what_failed(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (at_home / "prompts").write_text("a cat\na fox\n")
    (at_home / "a-cat_480p_seed0.mp4").write_text("mine")
    command = ["generate", "--prompts", "prompts", *TRIAL, "--res", "480p", "--seconds", "0.5"]
    assert main(command) == 9
    assert "1 of 2 files failed: a-cat_480p_seed0; 1 not tried" in capsys.readouterr().err
    assert main([*command, "--keep-going"]) == 9
    assert names(at_home) == ["a-cat_480p_seed0.mp4", "a-fox_480p_seed0.mp4", "prompts"]
    assert main([*command, "-n"]) == 0


def test_a_dry_run_tells_the_plan_and_writes_nothing(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry = ["generate", PROMPT, "--model", "tiny-random", "--device", "cpu", "--dry-run", "--seconds", "1"]
    assert main([*dry, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["input"], plan["width"], plan["height"], plan["frames_total"]) == (PROMPT, 192, 128, 17)
    assert main(dry) == 0
    assert "192x128, 1.06 s, 17 frames" in capsys.readouterr().err
    assert names(at_home) == []


def test_the_trial_models_are_not_shown() -> None:
    assert not [name for name in ("tiny-random", "tiny-lite") if name in reference()]


# The built-in model's shape

LITE = ("--model", "tiny-lite", "--device", "cpu", "--threads", "1")


def test_the_installed_command_makes_both_sizes_by_a_model_with_a_skip_path(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    said = ultraflash("generate", PROMPT, *LITE, "--res", "2k", "--seconds", "0.5", "--save-lr", "-o", output, "--json")
    assert said.returncode == 0, said.stderr
    report = json.loads(said.stdout)
    assert (report["model"], report["frames_out"], report["warnings"]) == ("tiny-lite", 9, [])
    assert [line for line in said.stderr.splitlines() if line == TINY_LITE.notice]
    for path, shape in ((output, (192, 288, 3)), (output.with_name("out_480p.mp4"), (64, 96, 3))):
        assert [frame.shape for frame in decoded(path)] == [shape] * 9


def test_what_to_know_of_a_model_is_reported_once_for_all_clips(
    at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", PROMPT, *LITE, "--res", "480p", "--seconds", "0.5", "--count", "2"]
    for extra, times in (("--dry-run", 1), ("--seed=0", 1), ("-qy", 0)):
        assert main([*command, extra]) == 0
        assert capsys.readouterr().err.count(TINY_LITE.notice) == times, extra
    assert main([*command, "-y", "--progress", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["notice"] for event in events if event["event"] == "plan"] == [TINY_LITE.notice] * 2


def test_a_fresh_installation_makes_a_clip_with_no_flag(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PROFILES, "lite", replace(TINY_LITE, name="lite"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["generate", "a red balloon", "--seconds", "0.5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["output"], report["width"]) == ("lite", "a-red-balloon_1k_seed0.mp4", 192)


@pytest.mark.parametrize(
    ("model", "rule", "said"),
    [
        ("tiny-lite", "kv", "kv saves nothing with --res 480p, where no SR transformer runs; remove kv"),
        ("lite", "steps", "steps saves nothing with lite, which takes one denoising step; remove steps"),
        ("lite", "refresh,kv", "kv saves nothing with --res 480p, where no SR transformer runs; remove kv"),
        (
            "lite",
            "refresh",
            "refresh saves no time with lite, whose context passes cost less than the check; remove refresh",
        ),
    ],
)
def test_a_cache_rule_that_saves_nothing_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, rule: str, said: str
) -> None:
    asked = ["generate", "a red car", "--model", model, "--res", "480p", "--cache-management", rule]
    assert main([*asked, "-o", str(tmp_path / "car.mp4")]) == 2
    assert capsys.readouterr().err == f"error: --cache-management: {said}\n"
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_very_many_clips_ends_with_a_total(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts").write_text("a boat\na mill\n")
    command = ["generate", "--prompts", "prompts", *TRIAL, "--res", "480p", "--seconds", "0.5", "--dry-run"]
    assert main([*command, "--count", "500000000"]) == 0
    plain = capsys.readouterr().err.splitlines()
    assert sum(" -> " in line for line in plain) == 10
    assert plain[-2] == "... and 999,999,990 more; the first 200 were checked"
    assert plain[-1].startswith("total: 1,000,000,000 clips, about ")
    assert main([*command, "--count", "6"]) == 0
    plain = capsys.readouterr().err.splitlines()
    assert plain[-2] == "... and 2 more" and plain[-1].startswith("total: 12 clips")
    assert main([*command, "--count", "6", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
