"""`--detail`: two sets of weights and interpolations between them, through the
command."""

from pathlib import Path

import numpy as np
import pytest

from tests.jobs.clips import decoded, make_clip
from ultraflash_cli.main import main


def upscaled(source: Path, *options: str) -> np.ndarray:
    output = source.with_name(f"out{len(list(source.parent.iterdir()))}.mkv")
    command = ["upscale", str(source), "-o", str(output), "--res", "2x", "--codec", "ffv1", "--model", "lite", *options]
    assert main([*command, "--precision", "fp32", "--threads", "1"]) == 0
    return np.stack(decoded(output)).astype(float)


def test_without_it_detail_is_1_and_half_lies_between_faithful_and_detailed(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=3)
    plain, faithful, half, full = (
        upscaled(source, *options) for options in ((), *(("--detail", d) for d in ("0", "0.5", "1")))
    )
    assert np.array_equal(plain, full)
    way, gone = full - faithful, half - faithful
    share = float((gone * way).sum() / (way * way).sum())
    assert 0.1 < share < 0.9, "how far of the way from faithful to detailed"


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan"])
def test_a_detail_outside_0_to_1_is_a_usage_error(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=1)
    assert main(["upscale", str(source), "--detail", value]) == 2
    assert "--detail must be between 0 and 1" in capsys.readouterr().err


def test_a_model_that_enlarges_latents_takes_no_detail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=1)
    assert main(["upscale", str(source), "--model", "tiny-random", "--detail", "0.5"]) == 2
    assert "remove --detail" in capsys.readouterr().err
