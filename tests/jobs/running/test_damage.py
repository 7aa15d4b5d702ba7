"""Damaged clips: upscaled, reported or refused."""

from pathlib import Path

import pytest

from tests.jobs.doubler import job, left_over, upscale
from tests.jobs.running.ways import piped
from ultraflash_cli.errors import InputError
from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameUpscaler


def test_what_is_lost_of_a_damaged_clip_is_reported_or_refused(clip: Path, tmp_path: Path) -> None:
    whole = clip.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    report = upscale(job(cut))
    assert 0 < report.frames_out < 30
    assert any("damaged or truncated" in warning or "truncated:" in warning for warning in report.warnings)
    Path(report.output).unlink()

    def never(prepared: Prepared) -> Built[FrameUpscaler]:
        raise AssertionError("the model was loaded")

    with pytest.raises(InputError, match="--strict"):
        upscale(job(cut, strict=True), build=never)
    assert upscale(job(clip, strict=True)).frames_out == 30
    assert left_over(tmp_path) == []


def test_a_damaged_pipe_is_refused_when_its_end_is_known(clip: Path, tmp_path: Path) -> None:
    whole = clip.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) // 2] + bytes(3000) + whole[len(whole) // 2 + 3000 :])
    with pytest.raises(InputError, match="--strict"):
        upscale(job(Path("-"), tmp_path / "out.mkv", strict=True, **piped(cut)))
    assert not (tmp_path / "out.mkv").exists()
    assert left_over(tmp_path) == []
