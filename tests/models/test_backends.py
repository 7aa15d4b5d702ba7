"""Devices other than CPUs and CUDA: one with correct results is used, one with wrong
results is refused; a stand-in computes on the CPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.jobs.clips import decoded, make_clip
from ultraflash_cli import open_stream
from ultraflash_cli.errors import DeviceError, UsageError
from ultraflash_cli.main import main
from ultraflash_cli.models import backend as backends
from ultraflash_cli.models.backend import BACKENDS, Backend, backend_of
from ultraflash_cli.models.device import choose_device, choose_precision
from ultraflash_cli.models.memory import memory_budget

TINY = ["--res", "2x", "--model", "tiny-lite", "--threads", "1"]
FAKE = torch.device("cpu", 1)
"""A device that is distinct from the CPU but has CPU tensors."""
REAL = dict(BACKENDS)


def stand_in(place: Any = backends._moved) -> Backend:
    return Backend(
        name="xpu",
        title="stand-in",
        count=lambda: 1,
        device=lambda _number: FAKE,
        free_bytes=lambda _device: 4 * 10**9,
        place=place,
    )


def is_wrong_after(calls: int, by: float) -> Any:
    """Return a function that moves a network to a device whose convolutions are
    silently wrong after a number of calls."""

    def place(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
        called = 0

        def spoil(_module: nn.Module, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
            nonlocal called
            called += 1
            return out + by if called > calls else out

        moved = network.to(device=device, dtype=dtype)
        last = [each for each in moved.modules() if isinstance(each, nn.Conv2d)][-2:]
        for conv in last:
            conv.register_forward_hook(spoil)
        return moved

    return place


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=4, width=32, height=24, audio=False)


def use(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    monkeypatch.setitem(BACKENDS, "xpu", backend)


def test_a_device_that_computes_rightly_produces_the_pixels_of_the_cpu(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, stand_in())
    outputs = [tmp_path / "cpu.mkv", tmp_path / "xpu.mkv"]
    assert main(["upscale", str(clip), "-o", str(outputs[0]), "--device", "cpu", *TINY, "--precision", "fp32"]) == 0
    assert main(["upscale", str(clip), "-o", str(outputs[1]), "--device", "xpu", *TINY]) == 0
    cpu, xpu = (np.stack([np.asarray(frame) for frame in decoded(path)]) for path in outputs)
    assert np.array_equal(cpu, xpu)


@pytest.mark.parametrize(("calls", "by"), [(0, 30.0), (5, 30.0), (0, float("nan"))], ids=["always", "later", "nan"])
def test_a_device_that_computes_wrongly_is_refused(
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: int,
    by: float,
) -> None:
    use(monkeypatch, stand_in(is_wrong_after(calls, by)))
    assert main(["upscale", str(clip), "--device", "xpu", *TINY]) == 4
    assert "computes incorrect pixels" in capsys.readouterr().err
    assert [path.name for path in clip.parent.iterdir() if path.suffix == ".mkv"] == ["in.mkv"]


def test_a_stream_of_a_wrong_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, stand_in(is_wrong_after(0, 30.0)))
    with pytest.raises(DeviceError, match="incorrect pixels"):
        open_stream((48, 32), model="tiny-lite", device="xpu", threads=1)


def test_what_these_devices_do_not_run_is_refused(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, stand_in())
    assert main(["generate", "a boat", "--device", "xpu", "--res", "480p", "-o", str(clip.parent / "out.mp4")]) == 4
    assert "runs `upscale` with lite only" in capsys.readouterr().err
    assert main(["upscale", str(clip), "--device", "xpu", *TINY, "--precision", "fp8"]) == 4
    with pytest.raises(DeviceError, match="lite only"):
        choose_device("xpu", model="ultraflash")


@pytest.mark.parametrize("name", ["mps", "xpu", "xpu:3"])
def test_a_device_that_is_not_there_is_refused(name: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if REAL[name[:3]].count():
        pytest.skip(f"this machine has {name}")
    assert main(["upscale", str(clip), "--device", name, *TINY]) == 4
    assert f"error: {name}: 0 usable" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tpu", "mps:1:2", "xpu:a"])
def test_other_names_are_refused(name: str, clip: Path) -> None:
    assert main(["upscale", str(clip), "--device", name, *TINY]) == 2
    with pytest.raises(UsageError):
        choose_device(name, model="lite")


def test_memory_and_precision_are_the_devices_own(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, stand_in())
    found = backend_of(FAKE)
    assert found is not None and found.title == "stand-in"
    assert backend_of(torch.device("cpu")) is None
    assert memory_budget(FAKE, None) == 4 * 10**9
    assert memory_budget(FAKE, "1G") == 10**9
    assert choose_precision("auto", FAKE) == torch.float32


def test_doctor_names_what_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is named first")
    from ultraflash_cli.jobs import doctor

    use(monkeypatch, replace(stand_in(), title="Intel GPU"))
    found = doctor._gpu()
    assert "--device xpu runs `upscale` with lite" in found.found and found.state == "note"
