"""`--guard`: the limit on a result's deviation from its source, through the command."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.jobs.clips import decoded, make_clip
from ultraflash_cli.engine.layers.resample import lanczos_resize
from ultraflash_cli.main import main


def strays(source: Path, output: Path) -> np.ndarray:
    small, large = (torch.from_numpy(np.stack(decoded(path))).permute(0, 3, 1, 2).float() for path in (source, output))
    return (lanczos_resize(large, *small.shape[2:]) - small).abs().numpy()


def test_a_guard_keeps_the_result_near_its_source_and_its_share_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=3)
    command = ["upscale", str(source), "--res", "2x", "--codec", "ffv1", "--model", "tiny-random", "--json"]
    worst: list[float] = []
    reports: list[dict[str, float | None]] = []
    for guard in ("off", "8"):
        output = tmp_path / f"{guard}.mkv"
        assert main([*command, "-o", str(output), "--guard", guard]) == 0
        shown = capsys.readouterr()
        reports.append(json.loads(shown.out))
        worst.append(float(np.quantile(strays(source, output), 0.99)))
        share = re.search(r"([\d.]+) % of the pixels corrected towards the source \(--guard\)", shown.err)
        assert (share is None) == (guard == "off")
    assert reports[0]["guard"] is None and reports[0]["guarded_share"] is None
    assert reports[1]["guard"] == 8 and (reports[1]["guarded_share"] or 0) > 0.1
    assert worst[1] < 10 < 2 * worst[1] < worst[0], "levels"


@pytest.mark.parametrize("value", ["0", "300", "nan", "much"])
def test_a_guard_that_is_no_number_of_levels_is_a_usage_error(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=1)
    assert main(["upscale", str(source), "--guard", value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--guard must be off or 1 to 255 levels" in line
