"""Presets: as before where the model shares the cores, and fast enough beside a GPU."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.video.clips import make_clip
from ultraflash_cli.jobs.planning.feed import expected_fps
from ultraflash_cli.jobs.planning.generate import GenerateJob
from ultraflash_cli.jobs.planning.generate import prepare_generation as plan_generation
from ultraflash_cli.jobs.planning.upscale import UpscaleJob
from ultraflash_cli.jobs.planning.upscale import prepare as plan_upscale
from ultraflash_cli.jobs.running import prepare as facts
from ultraflash_cli.video.codecs import CODECS
from ultraflash_cli.video.encode import made_spec
from ultraflash_cli.video.encoders import check_encoder
from ultraflash_cli.video.presets import choose_preset

PIXELS = {"1k": 1664 * 960, "2k": 2496 * 1440, "4k": 4992 * 2880}


class Machine(facts._Facts):
    """Facts of a machine with or without an NVIDIA GPU."""

    def __init__(self, *, has_cuda: bool) -> None:
        self._has_cuda = has_cuda

    def has_cuda(self) -> bool:
        return self._has_cuda


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        pytest.param("h264", "fast medium slow veryfast fast medium veryfast faster fast superfast superfast veryfast"),
        pytest.param(
            "hevc",
            "veryfast fast medium veryfast fast medium superfast superfast veryfast superfast superfast veryfast",
        ),
        pytest.param("av1", "9 8 6 9 9 8 9 9 8 9 9 8"),
        pytest.param("vp9", "4 3 2 5 4 3 5 5 4 5 5 4"),
        pytest.param("ffv1", ""),
    ],
)
def test_on_cores_that_run_the_model_too_the_table_decides(codec: str, expected: str) -> None:
    sizes = (832 * 480, 1664 * 960, 2496 * 1440, 4992 * 2880)
    found = [choose_preset(CODECS[codec], pixels, cores) for pixels in sizes for cores in (2, 8, 16)]
    assert found == (expected.split() or [""] * len(found))


@pytest.mark.parametrize(
    ("codec", "fps", "size", "cores", "expected"),
    [
        # veryfast is known to reach about 45 frames per second at 2K on 16 cores.
        pytest.param("h264", 43, "2k", 16, "superfast", id="h264, upscale to 2K"),
        pytest.param("h264", 96, "1k", 16, "superfast", id="h264, upscale to 1K"),
        pytest.param("h264", 31, "1k", 16, "medium", id="h264, generate at 1K"),
        pytest.param("h264", 22, "2k", 16, "faster", id="h264, generate at 2K"),
        pytest.param("h264", 39, "2k", 32, "faster", id="h264, more cores"),
        pytest.param("h264", 39, "2k", 256, "faster", id="h264, too many cores"),
        pytest.param("h264", 39, "2k", 4, "superfast", id="h264, few cores"),
        pytest.param("h264", 2, "2k", 16, "slow", id="h264, a slow model"),
        pytest.param("hevc", 39, "2k", 16, "ultrafast", id="hevc"),
        pytest.param("av1", 39, "2k", 16, "8", id="av1"),
        pytest.param("av1", 600, "1k", 16, "9", id="av1, no preset that its library warns of"),
        pytest.param("vp9", 39, "2k", 16, "5", id="vp9"),
        pytest.param("ffv1", 39, "2k", 16, "", id="no presets"),
    ],
)
def test_beside_a_gpu_the_slowest_preset_that_keeps_up_is_chosen(
    codec: str, fps: float, size: str, cores: int, expected: str
) -> None:
    assert choose_preset(CODECS[codec], PIXELS[size], cores, fed_fps=fps) == expected


@pytest.mark.parametrize("codec", [name for name, known in CODECS.items() if known.speeds])
def test_presets_beside_a_gpu_become_faster_and_the_encoder_knows_them(codec: str) -> None:
    speeds = [speed for _, speed in CODECS[codec].speeds]
    assert speeds == sorted(speeds)
    for fps in (0.0, 1e6):
        spec = made_spec(width_px=64, height_px=48, rate=Fraction(25), codec=codec, threads=1, fed_fps=fps)
        assert spec.preset == CODECS[codec].speeds[-1 if fps else 0][0]
        check_encoder(spec)


@pytest.mark.parametrize(
    ("device", "has_cuda", "is_fed"),
    [("auto", False, False), ("auto", True, True), ("cpu", True, False), ("cuda:1", False, True), ("mps", True, False)],
)
def test_frames_come_fast_where_an_nvidia_gpu_makes_them(device: str, has_cuda: bool, is_fed: bool) -> None:
    machine = Machine(has_cuda=has_cuda)
    found = expected_fps("ultraflash", device, width_px=2496, height_px=1440, facts=machine)
    assert (found is not None) == is_fed
    if found is not None:
        made = expected_fps("ultraflash", device, width_px=2496, height_px=1440, generates=True, facts=machine)
        small = expected_fps("lite", device, width_px=2496, height_px=1440, facts=machine)
        assert made is not None and small is not None
        assert round(found) == 43 and round(made) == 22 and small > 200


def test_both_commands_choose_the_preset_by_the_device(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4")
    options: dict[str, Any] = {"threads": 16, "codec": "h264"}
    for has_cuda in (False, True):
        machine = Machine(has_cuda=has_cuda)
        job = UpscaleJob(source=source, output=tmp_path / "out.mp4", res="2496x1440", **options)
        preset = plan_upscale(job, machine).spec.preset
        wish = GenerateJob(
            prompt="a boat", output=tmp_path / "boat.mp4", res="1k", save_lr=True, model="lite", **options
        )
        made = plan_generation(wish, machine)
        assert made.low_spec is not None
        if has_cuda:
            assert (preset, made.spec.preset, made.low_spec.preset) == ("superfast",) * 3
        else:
            assert (preset, made.spec.preset, made.low_spec.preset) == ("fast", "medium", "slow")
