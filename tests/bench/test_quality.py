"""The quality benchmark makes its inputs as it says and reports every method on every clip."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality
from ultraflash_cli.metrics.ffmpeg import read_luma, run_ffmpeg
from ultraflash_cli.metrics.registry import METRICS


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one clip whose sides divide by nothing in particular, and a file that is no clip."""
    folder = tmp_path_factory.mktemp("clips")
    pattern = ["-f", "lavfi", "-i", "testsrc2=size=158x130:rate=25:duration=0.4"]
    run_ffmpeg([*pattern, "-pix_fmt", "yuv420p", "-c:v", "ffv1", str(folder / "pattern.mkv")], what="pattern")
    (folder / "notes.txt").write_text("no clip")
    return folder


@pytest.mark.parametrize("scale", [2, 3], ids=["x2", "x3"])
def test_inputs_are_a_whole_fraction_of_the_cropped_original(clips: Path, tmp_path: Path, scale: int) -> None:
    cases = list(quality.prepare(clips / "pattern.mkv", tmp_path, scale=scale, frames=3, kinds=quality.KINDS))
    assert [case.kind for case in cases] == ["clean", "deg"]
    for case in cases:
        truth, low = list(read_luma(case.truth)), list(read_luma(case.low))
        assert len(truth) == len(low) == 3
        assert truth[0].shape == (case.height_px, case.width_px)
        assert low[0].shape == (case.height_px // scale, case.width_px // scale)
        assert low[0].shape[0] % 2 == low[0].shape[1] % 2 == 0


def test_resamplers_are_scored_on_both_kinds_and_the_json_holds_it_all(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "results" / "quality.json"
    quality.main(
        ["--clips", str(clips), "--frames", "3", "--methods", "bicubic", "lanczos", "--out", str(target)],
    )
    table = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1:3] for line in table[2:]] == [
        [f" {kind} ", f" {method} "] for kind in ("clean", "deg") for method in ("bicubic", "lanczos")
    ]
    found = json.loads(target.read_text())
    assert found["schema"] == 1 and len(found["clips"]) == len(found["means"]) == 4
    by_case = {(row["kind"], row["method"]): row["scores"] for row in found["means"]}
    assert all(scores.keys() == METRICS.keys() for scores in by_case.values())
    assert by_case["clean", "lanczos"]["psnr_y"] > by_case["deg", "lanczos"]["psnr_y"]


def test_the_mean_is_taken_over_the_clips_of_one_kind_and_method() -> None:
    def row(kind: str, clip: str, value: float) -> quality.Row:
        return quality.Row(method="m", kind=kind, clip=clip, seconds=value, scores=dict.fromkeys(METRICS, value))

    means = quality.mean_rows([row("deg", "a", 9), row("clean", "a", 1), row("clean", "b", 2)])
    assert [(mean.kind, mean.scores["psnr_y"], mean.seconds) for mean in means] == [("clean", 1.5, 1.5), ("deg", 9, 9)]
    assert np.isfinite(float(quality.table(means).splitlines()[-1].split("|")[3]))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--clips", "no such folder"], id="missing folder"),
        pytest.param(["--frames", "0"], id="no frames"),
        pytest.param(["--scale", "4"], id="scale"),
    ],
)
def test_wrong_options_are_usage_errors(arguments: list[str], clips: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        quality.main(["--clips", str(clips), *arguments])
    assert refused.value.code == 2
