"""`--detail`: two sets of weights and interpolations between them, through the
command."""

from pathlib import Path

import numpy as np
import pytest

from tests.jobs.clips import decoded, make_clip
from ultraflash_cli.main import main
from ultraflash_cli.video.stills import write_png


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


@pytest.mark.parametrize("detail", ["0", "1"])
def test_flat_colours_of_a_drawing_stay_flat(tmp_path: Path, detail: str) -> None:
    source, output = tmp_path / "drawing.png", tmp_path / "out.png"
    colors = np.array([[[200, 40, 40], [40, 90, 200], [250, 210, 60]], [[60, 160, 80], [250, 200, 170], [90, 60, 120]]])
    drawing = colors.astype(np.uint8).repeat(48, axis=0).repeat(48, axis=1)
    for edge in (0, 46, 48, 94, 96, 142):
        drawing[:, edge : edge + 2] = 0
        drawing[edge : edge + 2] = 0
    write_png(source, drawing)
    command = ["upscale", str(source), "-o", str(output), "--res", "2x", "--model", "lite", "--detail", detail]
    assert main([*command, "--threads", "1", "-q"]) == 0
    (made,) = decoded(output)
    for row, column in np.ndindex(2, 3):
        area = made[96 * row + 20 : 96 * row + 76, 96 * column + 20 : 96 * column + 76].astype(int)
        assert np.abs(area - colors[row, column]).max() <= 2, "levels; 1 was measured"


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
