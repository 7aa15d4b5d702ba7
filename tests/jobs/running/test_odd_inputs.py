"""Inputs of odd sizes and shapes."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from tests.jobs.doubler import builder, job, upscale
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.jobs.events import Event, Warned
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameUpscaler


def test_a_warning_is_given_once(clip: Path) -> None:
    def build(prepared: Prepared) -> Built[FrameUpscaler]:
        return replace(builder()(prepared), warnings=("careful", "careful"))

    events: list[Event] = []
    report = upscale(job(clip), build=build, events=events)
    assert report.warnings.count(f"{clip}: careful") == 1
    assert len([event for event in events if isinstance(event, Warned)]) == len(report.warnings)


@pytest.mark.parametrize("fps", [0, -1, 241])
def test_an_impossible_rate_is_refused_at_birth(fps: int) -> None:
    with pytest.raises(ConfigError, match="--fps"):
        UpscaleJob(source=Path("in.mp4"), fps=Fraction(fps))
