"""Stops and full disks in the last step of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.clips import decoded
from tests.jobs.doubler import Doubler, builder, job, left_over, upscale
from ultraflash_cli.errors import Interrupted, OutputError
from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.jobs.resume.work_folder import work_folder
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.upscale import run
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameUpscaler
from ultraflash_cli.video.join import join


def test_a_stop_during_the_join_is_obeyed_and_only_the_join_is_done_again(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def stopped(*arguments: Any, **named: Any) -> Any:
        stop.request(15)
        return join(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("ultraflash_cli.jobs.running.upscale.join", stopped)
        with pytest.raises(Interrupted, match="30 frames are finished") as caught:
            run(job(clip), lambda event: None, stop=stop, build=builder(), segment_frames=12)
    assert caught.value.exit_code == 143
    assert not (tmp_path / "in_2x.mkv").exists()
    assert upscale(job(clip), build=builder(lambda prepared: Doubler(prepared, fails_at=0))).frames_resumed == 30


def test_a_disk_that_fills_up_during_the_join_keeps_everything(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ultraflash_cli.video.join._interleave", full)
        with pytest.raises(OutputError, match="disk is full") as caught:
            upscale(job(clip))
    assert caught.value.exit_code == 7
    assert not (tmp_path / "in_2x.mkv").exists()
    assert not list(work_folder(tmp_path / "in_2x.mkv").glob("*.part*"))
    assert upscale(job(clip), build=builder(lambda prepared: Doubler(prepared, fails_at=0))).frames_resumed == 30


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_disk_that_fills_up_at_any_moment_is_exit_7_and_the_same_command_continues(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    synced = 0

    def full(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced >= moment:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError) as caught:
            upscale(job(clip))
    assert caught.value.exit_code == 7
    assert not (tmp_path / "in_2x.mkv").exists()
    report = upscale(job(clip))
    assert report.frames_out == len(decoded(tmp_path / "in_2x.mkv")) == 30
    assert left_over(tmp_path) == []


def test_room_for_the_states_is_asked_for_before_the_work(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(prepared: Prepared) -> Built[FrameUpscaler]:
        return replace(builder()(prepared), state_bytes=10**9)

    monkeypatch.setattr("ultraflash_cli.jobs.planning.target.free_bytes", lambda folder: 10**9)
    with pytest.raises(OutputError, match="2000 MB are needed"):
        upscale(job(clip), build=large)


def test_what_an_interrupted_run_has_written_counts_as_room(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        upscale(job(clip, codec="ffv1", crf=None), stop_at=29)
    needed: list[int] = []
    monkeypatch.setattr(
        "ultraflash_cli.jobs.planning.upscale.check_space", lambda folder, needed_bytes: needed.append(needed_bytes)
    )
    upscale(job(clip, codec="ffv1", crf=None))
    fresh = 2 * 4 * 128 * 96 * 30 // 8 + clip.stat().st_size
    assert needed[0] < fresh - 100_000
