"""`bench` reports a complete and consistent measurement."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bench.toys import CHANNELS, PEAK_BYTES, die, prepare_toy, prepare_toy_clip, press_ctrl_c, refuse
from ultraflash_cli.bench.cases import BenchCase, drifting_frames, parse_size
from ultraflash_cli.bench.kernels import OPERATIONS, OTHERS, measure_operation, rows_of
from ultraflash_cli.bench.limits import Limits
from ultraflash_cli.bench.models import clip_plan, generator_of, prepare
from ultraflash_cli.bench.report import WallTime, kernel_lines
from ultraflash_cli.bench.timing import in_fresh_process, measure, stage_times
from ultraflash_cli.commands.bench import about_duration
from ultraflash_cli.commands.wall import measure_wall, predict, rate
from ultraflash_cli.engine.counts import CountingClock, Work, counting, counting_flops
from ultraflash_cli.engine.profiles import LITE, TINY_RANDOM, ULTRAFLASH
from ultraflash_cli.errors import ConfigError, DeviceError, OutOfMemory, UsageError
from ultraflash_cli.main import main
from ultraflash_kernels.measure import Measured

CPU = torch.device("cpu")
CASE = BenchCase(model="toy", width_px=32, height_px=16, frames=7)
TINY = BenchCase(model="tiny-random", width_px=32, height_px=32, frames=20)
LIMITS = Limits(
    precision="bf16", product_flops_per_second=8e14, copy_bytes_per_second=4e12, convolution_flops_per_second=5e14
)


def test_a_report_is_complete_and_its_shares_sum_to_one() -> None:
    report = measure(CASE, prepare_toy)
    assert (report.source, report.output, report.frames) == ((32, 16), (64, 32), 9)
    assert sum(stage.share for stage in report.stages) == pytest.approx(1)
    assert [stage.name for stage in report.stages] == ["decoder", "other"]
    assert sum(stage.seconds for stage in report.stages) == pytest.approx(report.seconds)
    assert report.fps > 0 and report.peak_rss_bytes == PEAK_BYTES and not report.whole_clip
    assert report.first_frame_seconds > report.load_seconds > 0
    assert report.limits.product_flops_per_second > 0 < report.limits.copy_bytes_per_second
    again = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert again["schema"] == 2 and again["fps"] == pytest.approx(report.fps)
    assert again["of_product"] == pytest.approx(report.flops_per_second / report.limits.product_flops_per_second)
    assert any("model frames per second (9 frames" in line for line in report.lines())


def test_a_clip_that_ends_is_timed_as_a_whole() -> None:
    report = measure(CASE, prepare_toy_clip, LIMITS)
    assert report.frames == 7 and report.whole_clip and report.warm_first_frame_seconds is not None
    assert report.flops_per_output_pixel == 2 * 9 * CHANNELS**2
    assert "a whole clip, 7 frames" in report.lines()[1]


def test_arithmetic_is_counted_with_a_multiply_add_as_two() -> None:
    report = measure(CASE, prepare_toy, LIMITS)
    assert report.flops_per_output_pixel == 2 * 9 * CHANNELS**2
    (decoder,) = (stage for stage in report.stages if stage.name == "decoder")
    assert decoder.flops_per_second * decoder.seconds == pytest.approx(2 * 9 * CHANNELS**2 * 9 * 64 * 32)


def test_traffic_is_what_operations_read_and_write_without_views() -> None:
    with counting() as so_far:
        x = torch.ones(4, 8)  # 128 bytes written
        x.t().unsqueeze(0)
        (x + x).relu_()  # 3 tensors, then an input that is the output
        assert so_far() == Work(0, 128 + 3 * 128 + 2 * 128)


def test_a_clock_counts_by_stage_while_it_is_enabled() -> None:
    clock, a = CountingClock(CPU), torch.ones(8, 8)
    with clock("early"):
        torch.mm(a, a)
    with counting() as clock.so_far:
        for _ in range(2):
            with clock("product"):
                torch.mm(a, a)
    assert clock.work == {"product": Work(2 * 2 * 8**3, 2 * 3 * 256)}
    assert clock.seconds.keys() == {"early", "product"}
    clock.clear()
    assert clock.seconds == {}


def test_the_rates_of_stages_follow_from_their_time_and_work() -> None:
    first, other = stage_times({"sr_dit": 2.0}, 2.5, {"sr_dit": (8e12, 4e9)})
    assert (first.flops_per_second, first.bytes_per_second, first.share) == (4e12, 2e9, 0.8)
    assert (other.name, other.seconds, other.flops_per_second) == ("other", 0.5, 0)
    beside = stage_times({"generator": 2.0, "sr_dit": 2.0}, 2.5, {})
    assert [stage.share for stage in beside] == [0.5, 0.5, 0.0], "stages overlap, so they add up to more than the total"


def test_implementations_are_compared_with_each_other_and_with_the_limits() -> None:
    def timed(impl: str, seconds: float, name: str = "attention 1K") -> Measured:
        return Measured(name, impl, "bfloat16", "toy", seconds, 0.0, 4e9 / seconds, 2e12 / seconds)

    impls = {"reference": 0.1, "dense": 0.02, "flex": 0.008, "triton": 0.005}
    found = [timed(impl, seconds) for impl, seconds in impls.items()]
    *slow, fast = rows_of([*found, timed("reference", 9.0, "another")], LIMITS)[:4]
    assert fast.of_product == pytest.approx(0.5) and fast.of_copy == pytest.approx(0.2)
    assert fast.speedups == pytest.approx({"reference": 20, "dense": 4, "flex": 1.6})
    assert all(row.speedups == {} for row in slow)
    line = kernel_lines([fast], OTHERS)[0]
    assert "400.000 TFLOP/s  50% of a matmul" in line and "4.00 x dense SDPA" in line and "1.60 x FlexAttention" in line


def test_every_operation_is_found_and_one_is_measured() -> None:
    assert {"block_sparse_attention", "block_topk", "fp8_linear", "memory_conv"} <= set(OPERATIONS)
    rows = measure_operation("block_topk", CPU, LIMITS)
    assert rows and all(row.seconds > 0 and row.impl == "reference" for row in rows)


def test_a_model_with_random_weights_is_built_from_the_engine_alone() -> None:
    report = measure(replace(TINY, untrained=True), prepare, LIMITS)
    assert report.weights == "random" and report.output == (64, 64) and report.frames == 24
    assert {"encoder", "upsampler", "sr_dit", "decoder", "finish", "other"} == {stage.name for stage in report.stages}
    assert all(stage.flops_per_second > 0 for stage in report.stages if stage.name in ("encoder", "sr_dit", "decoder"))
    with pytest.raises(DeviceError, match="fp8"):
        prepare(replace(TINY, precision="fp8"))
    with pytest.raises(UsageError, match="unknown model"):
        prepare(replace(TINY, model="none"))


@pytest.mark.parametrize(
    ("changes", "output", "frames"),
    [
        pytest.param({"scale": 1, "seconds": 0.5}, (32, 32), 9, id="base size"),
        pytest.param({"scale": 2, "seconds": 0.7}, (64, 64), 21, id="enlarged"),
        pytest.param(
            {"scale": 2, "long": True, "frames": 24, "cache_management": "steps=2,kv"}, (64, 64), 24, id="long"
        ),
    ],
)
def test_generation_is_measured_for_every_profile_that_generates(
    changes: dict[str, object], output: tuple[int, int], frames: int
) -> None:
    case = replace(TINY, kind="generate", **changes)
    report = measure(case, prepare, LIMITS)
    assert (report.output, report.frames) == (output, frames)
    assert report.whole_clip == (not case.long) and report.weights == "random"
    stages = {stage.name for stage in report.stages}
    assert {"generator", "finish", "low_decoder" if case.scale == 1 else "decoder"} <= stages


def test_five_seconds_are_the_published_clip_and_other_lengths_follow_the_window() -> None:
    def frames(**changes: object) -> int:
        case = replace(TINY, kind="generate", **changes)
        return clip_plan(case, generator_of(ULTRAFLASH, long=case.long)).total_frames

    assert frames() == frames(seconds=5) == 81
    assert frames(seconds=1) == 21
    assert frames(long=True, frames=48) > 6 * 24 + 48
    with pytest.raises(ConfigError, match="at most 21 latent frames"):
        frames(seconds=6)
    with pytest.raises(ConfigError, match="cannot generate"):
        generator_of(replace(LITE, generator=None), long=False)
    assert TINY_RANDOM.generator is not None
    # A shorter window than the published length: as much as there is room for.
    assert clip_plan(replace(TINY, kind="generate"), TINY_RANDOM.generator).total_latents == 9


def test_the_command_itself_is_timed_from_file_to_file() -> None:
    wall = measure_wall(replace(TINY, model="lite", width_px=48, height_px=32, frames=8))
    assert wall.frames == 24 and wall.fps > 0 and wall.codec == "h264"
    assert wall.first_frame_seconds is not None and 0 < wall.first_frame_seconds < wall.seconds
    report = replace(measure(CASE, prepare_toy, LIMITS), wall=WallTime(**vars(wall)))
    assert "from file to file" in report.lines()[-1]


def test_attention_on_a_cpu_is_counted() -> None:
    query = torch.zeros(1, 2, 64, 32)
    attend = torch.nn.functional.scaled_dot_product_attention
    with counting_flops() as so_far:
        attend(query, query, query)
        assert so_far() == 2 * 2 * 2 * 64 * 64 * 32


def test_what_a_library_fuses_into_matmuls_and_convolutions_on_a_gpu_is_counted() -> None:
    rows, weight, bias = (torch.empty(shape, device="meta") for shape in ((3, 40, 48), (96, 48), (96,)))
    frames, filters = (torch.empty(shape, device="meta") for shape in ((2, 16, 9, 11), (24, 16, 3, 3)))
    with counting_flops() as so_far:
        torch.ops.ultraflash.linear_gelu(rows, weight, bias)
        assert so_far() == 2 * 3 * 40 * 48 * 96
        torch.ops.ultraflash.fused_conv(frames, filters, None, None)
        assert so_far() == 2 * 3 * 40 * 48 * 96 + 2 * 2 * 9 * 11 * 24 * 16 * 3 * 3


def test_attention_to_a_prompt_is_counted() -> None:
    q, k = (torch.empty(shape, device="meta") for shape in ((2, 40, 64), (2, 4, 24, 16)))
    with counting_flops() as so_far:
        torch.ops.ultraflash.text_attention(q, q[0, 0], k, k, None, 1e-6)
        assert so_far() == 2 * 2 * 2 * 40 * 24 * 64
        torch.ops.ultraflash.text_attention_fp8(q, q[0, 0], k, k, None, 1e-6)
        assert so_far() == 2 * 2 * 2 * 2 * 40 * 24 * 64


def test_dense_attention_in_8_bits_is_counted() -> None:
    q, k = (torch.empty(1, 2, n, 32, dtype=torch.float8_e4m3fn, device="meta") for n in (64, 96))
    scales = [torch.empty(1, 2, n, 1, device="meta") for n in (64, 96)]
    with counting_flops() as so_far:
        torch.ops.ultraflash.dense_attention_fp8(q, k, k.mT, *scales, scales[1].mT, torch.bfloat16)
        assert so_far() == 4 * 2 * 64 * 96 * 32


def test_a_fresh_process_gives_the_report_or_the_error_itself() -> None:
    report = in_fresh_process(measure, replace(CASE, frames=1), prepare_toy, LIMITS)
    assert report.frames == 3
    with pytest.raises(DeviceError, match="no device for toy"):
        in_fresh_process(measure, CASE, refuse)
    with pytest.raises(OutOfMemory, match="code 9"):
        in_fresh_process(measure, CASE, die)


def test_ctrl_c_ends_a_measurement_without_a_word_of_the_measuring_process(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts without
    try:
        with pytest.raises(KeyboardInterrupt):
            in_fresh_process(press_ctrl_c, os.getpid())
    finally:
        signal.signal(signal.SIGINT, before)
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


def test_the_made_clip_moves_two_pixels_a_frame() -> None:
    first, second = islice(drifting_frames(40, 24), 2)
    assert first.shape == (24, 40, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(second, np.roll(first, 2, axis=1))


@pytest.mark.parametrize("text", ["832", "832x", "x480", "-832x480", "832x480x3", "wide"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="WIDTHxHEIGHT"):
        parse_size(text)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 4},
        {"scale": 1},
        {"kind": "generate", "scale": 4},
        {"seconds": 0},
        {"frames": 0},
        {"width_px": 8},
        {"height_px": 10_000},
    ],
    ids=lambda change: str(change),
)
def test_a_case_that_cannot_be_measured_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        replace(CASE, **change)


def test_the_installed_command_measures_the_built_in_model() -> None:
    command = [str(Path(sys.executable).with_name("ultraflash")), "bench", "--size", "48x32", "--scale", "3"]
    options = ["upscale", "--frames", "1", "--threads", "1", "--device", "cpu", "--wall", "off", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^bench: 1 measurement, about \d+ s$", done.stderr, re.MULTILINE), "before it starts"
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["schema"], found["kernels"]) == (2, [])
    (report,) = found["cases"]
    assert report["weights"] == "built in" and report["limits"]["copy_bytes_per_second"] > 0
    assert (report["model"], report["source"], report["output"]) == ("lite", [48, 32], [144, 96])
    assert {"pixels", "finish", "other"} == {stage["name"] for stage in report["stages"]}
    assert sum(stage["share"] for stage in report["stages"]) == pytest.approx(1)
    assert report["flops_per_output_pixel"] > 0


def test_a_benchmark_that_cannot_be_predicted_is_announced_all_the_same(tmp_path: Path) -> None:
    case = replace(CASE, model="ultraflash", store=tmp_path, threads=1)
    assert predict([case], True) is None
    assert (
        about_duration(2, None, kernels=True)
        == "bench: 2 measurements, their time cannot be predicted, then the kernels"
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        pytest.param(["--size", "832"], 2, "WIDTHxHEIGHT", id="size"),
        pytest.param(["--scale", "4"], 2, "--scale must be 2 or 3", id="scale"),
        pytest.param(["--res", "4k"], 2, "--res must be a comma-separated list of", id="res"),
        pytest.param(["--res", "480p", "upscale"], 2, "480p applies to generate only", id="nothing left"),
        pytest.param(["speed"], 2, "choose from upscale, generate, kernels", id="what"),
        pytest.param(["--frames", "0"], 2, "--frames", id="frames"),
    ],
)
def test_wrong_options_of_the_command_are_one_line(
    options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and words in said[0]


def test_the_speed_from_file_to_file_leaves_the_first_group_out_unless_it_is_all_there_is() -> None:
    assert rate(24, 5.0, first_frames=9, first_s=2.0) == 5.0
    assert rate(9, 4.5, first_frames=9, first_s=4.4) == 2.0
