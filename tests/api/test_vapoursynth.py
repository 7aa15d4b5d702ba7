"""The VapourSynth filter, tested in the real VapourSynth if its wheel is installed, and
with the model in a stand-in.

The wheel needs Python 3.12. `make vapoursynth` installs it into .venv-vapoursynth; without it, and in an older Python,
the tests of the real one are skipped.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.api import pretended
from ultraflash_cli import open_stream
from ultraflash_cli.errors import UsageError
from ultraflash_cli.vapoursynth import upscale

TINY: dict[str, Any] = {"model": "tiny-lite", "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def facts(repository: Path) -> dict[str, Any]:
    """Facts reported by `tests.api.in_vapoursynth`."""
    here = repository / ".venv-vapoursynth" / "bin" / "python"
    interpreter = sys.executable if importlib.util.find_spec("vapoursynth") else str(here)
    if not Path(interpreter).exists():
        pytest.skip("VapourSynth is not installed; `make vapoursynth` installs it")
    paths = os.pathsep.join([str(repository), str(repository / "kernels")])
    done = subprocess.run(
        [interpreter, "-m", "tests.api.in_vapoursynth", sys.executable],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=repository,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_formats_sizes_rates_and_properties_are_the_source_s(facts: dict[str, Any]) -> None:
    for kind, found in facts["formats"].items():
        assert found["is_same"] and found["props"] and found["size"] == [64, 48], kind
        assert found["luma_error"] <= 1e-4, kind


def test_colours_are_read_and_written_by_the_properties_of_a_frame(facts: dict[str, Any]) -> None:
    assert len(facts["colours"]) == 8
    assert all(error <= 1 for error in facts["colours"].values()), facts["colours"]


def test_any_order_of_requests_produces_the_frames_of_playing_and_playing_reads_once(facts: dict[str, Any]) -> None:
    for threads, found in facts["orders"].items():
        assert found["alone"] and found["together"], f"{threads} threads"
        assert found["reads"] <= 70, "60 frames, a few of them twice"
    assert facts["exact"], "RGB24 is what the stream makes of the scenes"


def test_errors_are_vapoursynth_s_and_the_next_frames_are_right(facts: dict[str, Any]) -> None:
    errors = facts["errors"]
    assert "ultraflash: frame 0 is interlaced (_FieldBased is 2)" in errors["interlaced"]
    assert errors["memory"].strip().endswith("ultraflash: the model needs 9 GB, 1 GB is free; use a smaller clip")
    assert errors["after"]
    assert "changes its format or size" in errors["varying"] and "core.resize" in errors["varying"]
    assert "expected YUV" in errors["odd"]
    assert "expected a video clip, got NoneType" in errors["none"]
    assert "detail and strength must be between 0 and 1" in errors["options"]
    assert errors["source"] != "nothing"


def test_options_reach_the_stream_and_a_freed_clip_frees_it(facts: dict[str, Any]) -> None:
    asked = facts["opened"]["asked"]
    assert asked["size"] == [32, 24] and asked["detail"] == 0.25 and asked["device"] == "cpu"
    assert asked["guard"] is None and asked["scale"] == 2
    assert facts["opened"]["size"] == [64, 48]
    assert facts["opened"]["refused"] == "ultraflash: scale 9 cannot be"
    assert facts["freed"]


def test_the_example_of_the_guide_runs(facts: dict[str, Any]) -> None:
    assert facts["guide"] == [128, 96, "YUV420P10", 24]


def test_vspipe_writes_the_frames_of_a_script_and_fails_with_its_errors(facts: dict[str, Any]) -> None:
    (code, size, _), (failed, _, said) = facts["piped"]
    assert code == 0 and size > 12 * 64 * 48 * 3 // 2
    assert failed == 1 and "ultraflash: frame 0 is interlaced" in said


def test_the_module_imports_neither_torch_nor_vapoursynth(facts: dict[str, Any]) -> None:
    assert facts["imported"] == [] and not facts["torch"]


def test_the_model_in_a_real_vapoursynth_produces_the_frames_of_a_stream(facts: dict[str, Any]) -> None:
    draws = [np.random.default_rng(scene) for scene in range(3)]
    out: list[Any] = []
    stream = open_stream((32, 24), **TINY)
    for scene, draw in enumerate(draws):
        planes = [draw.random((3, 4)).repeat(8, 0).repeat(8, 1) * 120 + 60 for _ in range(3)]
        frames = np.stack([np.stack(planes, axis=-1) + n % 5 for n in range(20 * scene, 20 * scene + 20)])
        out += [stream.step(frames.astype(np.uint8)), stream.flush()]
    made = np.concatenate(out)
    expected = [hashlib.sha256(made[n].transpose(2, 0, 1).tobytes()).hexdigest() for n in (0, 19, 20, 25, 45, 50, 59)]
    assert facts["served"] == expected


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module `vapoursynth` for a Python that has none."""
    module = pretended.as_module()
    monkeypatch.setitem(sys.modules, "vapoursynth", module)
    yield module


def noise(frames: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (frames, 24, 32, 3)).astype(np.uint8)


def test_frames_of_the_model_come_in_any_order_with_their_properties(stand_in: Any) -> None:
    frames = noise(22)
    large = upscale(
        pretended.node(frames, lambda n: {"_SceneChangePrev": int(n == 13), "_Matrix": 0}), cuts=False, **TINY
    )
    with open_stream((32, 24), **TINY) as stream:
        parts = [stream.step(frames[:13]), stream.flush(), stream.step(frames[13:]), stream.flush()]
    expected = np.concatenate(parts)
    assert (large.width, large.height, len(large)) == (64, 48, 22)
    for number in (21, 13, 12, 0, 1, 14, 2, 20):
        frame = large.get_frame(number)
        assert np.array_equal(np.stack([frame[plane] for plane in range(3)], axis=-1), expected[number]), number
        assert frame.props["made"] == number and "_Matrix" in frame.props


def test_what_a_stream_refuses_is_an_error_of_vapoursynth(stand_in: Any) -> None:
    clip = pretended.node(noise(3))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"model": "best"}, "unknown model"),
        ({"seed": -1}, "seed must be at least 0"),
    ]
    for options, message in [*wrong, ({"scale": 0}, "0x")]:
        values: dict[str, Any] = TINY | options
        with pytest.raises(stand_in.Error, match=f"ultraflash: .*{message}"):
            upscale(clip, **values)
    large = upscale(pretended.node(noise(3), lambda n: {"_FieldBased": 1}), **TINY)
    with pytest.raises(stand_in.Error, match="interlaced"):
        large.get_frame(0)


def test_without_vapoursynth_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vapoursynth", None)
    with pytest.raises(UsageError, match=r"3\.12 or newer.*'\.\[vapoursynth\]'"):
        upscale(pretended.node(noise(2)))
