"""Runs that are killed at any moment: no partial output appears, and the next run
produces the uninterrupted result."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.jobs.clips import audio_packets, decoded, make_clip, timestamps

SEED, FRAMES = 4, 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("kills", "how"),
    [pytest.param(20, (), id="a local run"), pytest.param(12, ("units",), id="plan, worker and join")],
)
def test_after_a_kill_at_any_moment_the_next_run_gives_the_uninterrupted_result(
    tmp_path: Path, kills: int, how: tuple[str, ...]
) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=FRAMES, cut_at=17, uneven=True)
    arguments = (str(source), str(tmp_path), str(SEED), str(kills), *how)
    said = subprocess.run(
        [sys.executable, "-m", "tests.jobs.killed", *arguments], capture_output=True, text=True, timeout=300
    )
    assert said.returncode == 0, said.stderr
    told = [json.loads(line) for line in said.stdout.splitlines()]
    killed = [each for each in told if each["killed"] == -signal.SIGKILL]
    # Thread scheduling differs from run to run, so a kill planned near the end may come
    # too late.
    assert len(killed) >= kills - 2
    assert all(each["ended"] == 0 for each in told), said.stderr
    assert {each["phase"] for each in killed} == {"work", "join"}
    assert any(0 < each["resumed"] < FRAMES for each in killed), "some were killed amid their segments"
    assert any(each["resumed"] == FRAMES for each in killed if each["phase"] == "join" and not each["there"])
    whole = tmp_path / "whole.mkv"
    frames, sound, times = decoded(whole), audio_packets(whole), timestamps(whole)
    assert len(frames) == FRAMES
    for number in range(kills):
        output = tmp_path / f"{number:02d}.mkv"
        assert all(np.array_equal(a, b) for a, b in zip(decoded(output), frames, strict=True)), output.name
        assert audio_packets(output) == sound
        assert timestamps(output) == times
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".") or ".part" in path.name]
    left += [str(path) for path in tmp_path.glob("*.units/files/*/units")]
    assert not left, "the next run has tidied up"
