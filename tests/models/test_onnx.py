"""The exported model computes the same as torch, over a whole clip and at sizes other
than the traced one."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ultraflash_cli.main import main
from ultraflash_cli.models.build import take_pixel_path
from ultraflash_cli.models.profile import find_profile
from ultraflash_cli.models.shelf import Shelf

FRAMES = 6
AGREEMENT = 2e-5
"""Half a hundredth of a level, for sums in a different order."""


@pytest.fixture(scope="module")
def runtime() -> Any:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="the extra [onnx] is not installed")
    return pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")


def test_lite_in_onnxruntime_is_lite_in_torch_over_a_clip(
    runtime: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lite.onnx"
    assert main(["export", "onnx", "-o", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["scale"], told["bytes"]) == ("lite", 2, file.stat().st_size)
    assert [path.name for path in tmp_path.iterdir()] == ["lite.onnx"], "one file, and nothing beside it"
    assert main(["export", "onnx", "-o", str(file)]) == 2, "an existing model is kept without -y"

    profile = find_profile("lite").at_scale(2)
    path = take_pixel_path(Shelf(None), profile, device=torch.device("cpu"), dtype=torch.float32, detail=1.0)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == told["inputs"]
    for height, width in ((34, 50), (24, 18)):
        clip = torch.rand(FRAMES, 3, height, width, generator=torch.Generator().manual_seed(height))
        state = path.init_state(batch=1, height=height, width=width)
        shape = (1, path.config.width, height // 2, width // 2)
        states = [np.full(shape, 7.0, np.float32)] * path.config.blocks  # values that are never read
        for number, frame in enumerate(clip.split(1)):
            first = np.full((1, 1, 1, 1), float(number == 0), np.float32)
            given = dict(zip(told["inputs"], [frame.numpy(), first, *states], strict=True))
            enlarged, *states = session.run(None, given)
            with torch.inference_mode():
                state, expected = path.step(state, frame.unsqueeze(2))
            assert np.abs(enlarged - expected[:, :, 0].numpy()).max() < AGREEMENT

    page = (Path(__file__).parents[2] / "docs" / "guides" / "onnx.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/guides/onnx.md", "exec"), {})


@pytest.mark.parametrize("wrong", [["--scale", "4"], ["--detail", "2"], ["-o", "model.pt"]], ids=" ".join)
def test_wrong_options_are_refused(wrong: list[str]) -> None:
    assert main(["export", "onnx", *wrong]) == 2
