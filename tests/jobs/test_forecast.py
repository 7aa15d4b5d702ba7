"""The forecast of a job, by counted work, is close to the actual job; its basis is
reported."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.videos import CONTEXT, video
from tests.jobs.clips import make_clip
from ultraflash_cli.engine.bridge import Bridge, HostStream
from ultraflash_cli.engine.counts import counting_flops
from ultraflash_cli.engine.profiles import TINY_LITE, TINY_RANDOM
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.sampling import Sampler
from ultraflash_cli.engine.schedule import plan_generation
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.engine.text_to_video import TextToVideo
from ultraflash_cli.jobs.running import loader
from ultraflash_cli.jobs.running.forecast import Forecast, describe_forecast
from ultraflash_cli.main import main
from ultraflash_cli.models import forecast
from ultraflash_cli.models.forecast import GenerationRates, GenerationWork, generation_rates

NEAR = 1.5


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the speed measurement, so that only the job itself is counted."""
    monkeypatch.setattr(loader, "foretold_frame_seconds", lambda upscaler: 0.01)


def foretold(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, float]:
    assert main([*map(str, arguments), "--dry-run", "--json", "-q"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)["forecast"]


def counted(*arguments: object) -> int:
    with counting_flops() as so_far:
        assert main([*map(str, arguments), "-q", "-y"]) == 0
        return so_far()


@pytest.mark.usefixtures("untimed")
def test_the_work_of_an_upscaling_is_predicted_within_a_factor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=14)
    command = ("upscale", clip, "--res", "2x", "-o", tmp_path / "out.mp4", "--threads", 1, "--model", "lite")
    forecast = foretold(capsys, *command)
    done = counted(*command)
    assert done / NEAR < forecast["flops"] < done * NEAR
    assert forecast["seconds"] == pytest.approx(0.14, abs=0.011), "frames times the time of one"
    written = (tmp_path / "out.mp4").stat().st_size
    assert written / 4 < forecast["output_bytes"] < written * 4
    assert "counted" in str(forecast["basis"]) and "encoded" in str(forecast["basis"])


def test_the_work_of_a_generation_is_predicted_within_a_factor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("generate", "a red balloon", "--model", "tiny-lite", "--seconds", 2, "-o", tmp_path / "out.mp4")
    forecast = foretold(capsys, *command, "--threads", 1)
    done = counted(*command, "--threads", 1)
    assert done / NEAR < forecast["flops"] < done * NEAR
    assert forecast["seconds"] > 0 and "measured here" in str(forecast["basis"])


def test_a_look_at_a_generator_of_one_size_counts_what_it_runs_and_runs_little() -> None:
    assert TINY_LITE.generator is not None
    config = replace(TINY_LITE.generator, grid=(8, 12))
    profile = replace(TINY_LITE, generator=config, base_size=(256, 384)).at_scale(2)
    assert profile.upsampler is not None and profile.sr_dit is not None
    parts = LatentUpsampler(profile.upsampler), SrDit(profile.sr_dit), Decoder(profile.base_decoder)
    video = TextToVideo(
        profile,
        plan_generation(8, chunk=2, chunks_per_group=2),
        Sampler(Generator(config).eval().requires_grad_(False)),
        refiner=Refiner(profile, *parts),
        low_decoder=Decoder(profile.base_decoder),
    )
    context = torch.zeros(1, config.text_len, config.text_dim)
    with counting_flops() as so_far:
        rates = generation_rates(video, context, clock=lambda: so_far() / 1e9)
        looked = so_far()
        video.step(video.init_state(height=32, width=48, context=context))
        group = so_far() - looked
    # Without the weights it is unknown which pairs of blocks are chosen, but their
    # number is nearly known.
    assert rates[:2] == pytest.approx((1e9, 1e9), rel=1e-3), "as many operations as the clock has counted"
    assert looked < group / 2


@pytest.mark.parametrize("second", [None, torch.device("cpu", 0)], ids=["one device", "two devices"])
def test_a_look_reads_its_clock_only_when_devices_are_idle(
    monkeypatch: pytest.MonkeyPatch, second: torch.device | None
) -> None:
    idle: set[torch.device] = set()
    reads: list[set[torch.device]] = []

    def read() -> float:
        reads.append(set(idle))
        idle.clear()
        return float(len(reads))

    monkeypatch.setattr(forecast, "wait_for", idle.add)
    bridge = None if second is None else Bridge(HostStream(), HostStream(), second)
    model = video(plan_generation(9), replace(TINY_RANDOM, base_size=(32, 32)), bridge=bridge)
    rates = generation_rates(model, CONTEXT, clock=read)
    cpu = torch.device("cpu")
    assert reads == ([{cpu}] * 2 if second is None else [{cpu, second}] * 4)
    assert rates.beside == (second is not None)


def test_two_devices_take_the_time_of_the_slower_one() -> None:
    work = GenerationWork(generator=6e9, frames=8e9)
    assert GenerationRates(2e9, 4e9).seconds(work) == pytest.approx(3 + 2)
    assert GenerationRates(2e9, 4e9, beside=True).seconds(work) == pytest.approx(3)


@pytest.mark.usefixtures("untimed")
def test_probe_says_what_the_prediction_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=3)
    assert main(["probe", str(clip), "--res", "2x"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("predicted")]
    assert "about" in line
    assert main(["probe", str(clip), "--res", "2x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forecast"]["basis"].startswith("time: ")


def test_a_speed_is_measured_once_for_a_batch_and_not_for_short_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [str(make_clip(tmp_path / f"{name}.mp4", frames=3, width=16, height=16)) for name in "ab"]
    looks: list[object] = []

    def look(upscaler: object) -> float:
        looks.append(upscaler)
        return 0.01

    monkeypatch.setattr(loader, "foretold_frame_seconds", look)
    for more, worth_px, times in (((), 1000, 0), ((), 700, 1), (("--dry-run",), 1000, 1)):
        looks.clear()
        monkeypatch.setattr(loader, "WORTH_LOOKING_PX", worth_px)
        assert main(["upscale", *clips, "--res", "2x", "--model", "lite", "--device", "cpu", "-qy", *more]) == 0
        assert len(looks) == times


def test_what_nobody_knows_is_not_guessed() -> None:
    forecast = Forecast(seconds=None, output_bytes=None, flops=None, basis="no length")
    assert describe_forecast(forecast) == ["predicted: not known", "  no length"]
    known = Forecast(seconds=3725, output_bytes=1_234_567, flops=1e12, basis="counted")
    assert describe_forecast(known)[0] == "predicted: about 1 h 02 min, about 1.2 MB"
