"""`bench` reports a complete and consistent measurement."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bench.toys import CHANNELS, PEAK_BYTES, die, prepare_toy, refuse
from ultraflash_cli.bench.cases import BenchCase, drifting_frames, parse_size
from ultraflash_cli.bench.timing import count_flops, measure, measure_in_fresh_process
from ultraflash_cli.errors import ConfigError, DeviceError, OutOfMemory
from ultraflash_cli.main import main

CASE = BenchCase(model="toy", width_px=32, height_px=16, frames=7)


def test_a_report_is_complete_and_its_shares_sum_to_one() -> None:
    report = measure(CASE, prepare_toy)
    assert (report.source, report.output, report.frames) == ((32, 16), (64, 32), 9)
    assert sum(stage.share for stage in report.stages) == pytest.approx(1)
    assert [stage.name for stage in report.stages] == ["decoder", "other"]
    assert sum(stage.seconds for stage in report.stages) == pytest.approx(report.seconds)
    assert report.fps > 0 and report.limit_flops_per_second > 0 and report.peak_rss_bytes == PEAK_BYTES
    again = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert again["schema"] == 1 and again["fps"] == pytest.approx(report.fps)
    assert any("frames a second" in line for line in report.lines())


def test_arithmetic_is_counted_with_a_multiply_add_as_two() -> None:
    assert measure(CASE, prepare_toy).flops_per_output_pixel == 2 * 9 * CHANNELS**2


def test_attention_on_a_cpu_is_counted() -> None:
    query = torch.zeros(1, 2, 64, 32)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(query, query, query)) == 2 * 2 * 2 * 64 * 64 * 32


def test_a_fresh_process_gives_the_report_or_the_error_itself() -> None:
    report = measure_in_fresh_process(replace(CASE, frames=1), prepare_toy)
    assert report.frames == 3
    with pytest.raises(DeviceError, match="no device for toy"):
        measure_in_fresh_process(CASE, refuse)
    with pytest.raises(OutOfMemory, match="code 9"):
        measure_in_fresh_process(CASE, die)


def test_the_made_clip_moves_two_pixels_a_frame() -> None:
    first, second = islice(drifting_frames(40, 24), 2)
    assert first.shape == (24, 40, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(second, np.roll(first, 2, axis=1))


@pytest.mark.parametrize("text", ["832", "832x", "x480", "-832x480", "832x480x3", "wide"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="WIDTHxHEIGHT"):
        parse_size(text)


@pytest.mark.parametrize(
    "change", [{"scale": 4}, {"frames": 0}, {"width_px": 8}, {"height_px": 10_000}], ids=lambda change: str(change)
)
def test_a_case_that_cannot_be_measured_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        replace(CASE, **change)


def test_the_installed_command_measures_the_built_in_model() -> None:
    command = [str(Path(sys.executable).with_name("ultraflash")), "bench", "--size", "48x32", "--scale", "3"]
    options = ["--frames", "1", "--threads", "1", "--device", "cpu", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert (report["model"], report["source"], report["output"]) == ("lite", [48, 32], [144, 96])
    assert {"encoder", "upsampler", "decoder", "other"} <= {stage["name"] for stage in report["stages"]}
    assert sum(stage["share"] for stage in report["stages"]) == pytest.approx(1)
    assert report["flops_per_output_pixel"] > 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        pytest.param(["--size", "832"], 2, "WIDTHxHEIGHT", id="size"),
        pytest.param(["--scale", "4"], 2, "--scale is 2 or 3", id="scale"),
        pytest.param(["--frames", "0"], 2, "--frames", id="frames"),
    ],
)
def test_wrong_options_of_the_command_are_one_line(
    options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and words in said[0]
