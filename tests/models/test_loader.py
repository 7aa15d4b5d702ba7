"""The built-in model as used by a job."""

from pathlib import Path

import numpy as np
import pytest

from tests.jobs.clips import decoded, make_clip
from ultraflash_cli.errors import Interrupted
from ultraflash_cli.jobs.events import Chunk, Event
from ultraflash_cli.jobs.planning.upscale import UpscaleJob
from ultraflash_cli.jobs.running.report import Report
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.upscale import run


def upscale(source: Path, output: Path, *, stop_at: int | None = None) -> Report:
    stop = Stop()

    def listen(event: Event) -> None:
        if stop_at is not None and isinstance(event, Chunk) and event.frames_done >= stop_at:
            stop.request()

    job = UpscaleJob(source=source, output=output, res="2x", threads=1)
    return run(job, listen, stop=stop, segment_frames=8)


def test_a_run_that_continues_inside_a_scene_produces_the_frames_of_an_uninterrupted_one(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=30)
    upscale(source, tmp_path / "whole.mp4")
    with pytest.raises(Interrupted):
        upscale(source, tmp_path / "broken.mp4", stop_at=13)
    assert list(tmp_path.glob(".broken.mp4.ultraflash/state-*"))
    report = upscale(source, tmp_path / "broken.mp4")
    assert 0 < report.frames_resumed < 30
    whole, broken = decoded(tmp_path / "whole.mp4"), decoded(tmp_path / "broken.mp4")
    assert len(broken) == 30
    assert all(np.array_equal(a, b) for a, b in zip(whole, broken, strict=True))


def test_the_report_tells_device_speed_memory_and_time_by_stage(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=6)
    report = upscale(source, tmp_path / "out.mp4")
    assert report.device == "cpu"
    assert report.precision in ("fp32", "bf16")
    assert report.fps_model is not None
    assert report.fps_wall is not None
    assert report.fps_model >= report.fps_wall > 0
    assert report.peak_rss_bytes > 50_000_000
    assert report.seconds_by_stage is not None
    assert report.seconds_by_stage.keys() >= {"pixels", "reading", "model", "writing"}
