"""Every stored vector set passes, and a set with one wrong number does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden import find_sets, main, run_set
from tests.procedural import procedural_tensor

HERE = Path(__file__).parent
VECTORS = HERE / "vectors"
REFERENCE = HERE.parent.parent / "shared" / "reference"
PUBLISHED = tuple(REFERENCE / name for name in ("golden", "golden_next"))


def sets_in(folder: Path) -> list[Path]:
    return list(find_sets(folder)) if folder.is_dir() else []


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in sets_in(VECTORS)])
def test_a_vector_set_of_the_repository_passes(path: Path) -> None:
    result = run_set(path)
    assert result.status == "ok", result.reason


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the full vectors are not on this machine")
@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for folder in PUBLISHED for path in sets_in(folder)])
def test_a_full_vector_set_passes(path: Path) -> None:
    result = run_set(path)
    assert result.status == "ok", result.reason


def test_the_report_has_a_line_a_set_and_success_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(VECTORS)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == sorted(path.name for path in VECTORS.iterdir() if path.name != "README.md")
    for name, max_abs, masks, status in lines:
        assert float(max_abs) <= (0.0625 if "bf16" in name else 1e-3)
        assert masks in ("True", "-")
        assert status == "ok"


def corrupt_tensors(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "io.safetensors"
        tensors = load_file(file)
        changed = change(tensors.pop(name).clone())
        save_file(tensors if changed is None else {**tensors, name: changed}, file)

    return apply


def set_first(value: float) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x.view(-1)[0] = value
        return x

    return change


def flip_last(x: Tensor) -> Tensor:
    x.view(-1)[-1] = 1 - x.view(-1)[-1]
    return x


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewrite_config(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return apply


@pytest.mark.parametrize(
    ("name", "corrupt"),
    [
        pytest.param("sr_dit_two_groups", corrupt_tensors("g1.flow", lambda x: x + 1e-3), id="a shifted output"),
        pytest.param("sr_dit_two_groups", corrupt_tensors("g1.flow", set_first(float("nan"))), id="a NaN"),
        pytest.param("sr_dit_two_groups", corrupt_tensors("g1.mask.layer1", flip_last), id="one bit of a mask"),
        pytest.param("sr_dit_two_groups", corrupt_tensors("g0.cond", lambda x: x.flip(1)), id="frames in reverse"),
        pytest.param("sr_dit_two_groups", corrupt_tensors("g1.flow", lambda _: None), id="a missing tensor"),
        pytest.param("sr_dit_two_groups", rewrite_config(num_heads=1), id="a wrong size"),
        pytest.param("sr_dit_two_groups", rewrite_config(top_k_per_group=[5, 6]), id="a wrong derived fact"),
        pytest.param("sr_dit_two_groups", remove("weights.safetensors"), id="no weights"),
        pytest.param("wan_vae", corrupt_tensors("decoded", lambda x: x[:, :, 1:].contiguous()), id="a lost frame"),
        pytest.param("wan_vae", corrupt_tensors("latent", lambda x: x + 1e-4), id="a latent off by a ten-thousandth"),
        pytest.param("umt5", corrupt_tensors("mask", lambda x: x.flip(1)), id="a mask the wrong way round"),
        pytest.param("scheduler", corrupt_tensors("bf16.x0", set_first(0.5)), id="a wrong bf16 number"),
        pytest.param("scheduler", rewrite_config(warped=[1000.0, 750.0, 500.0, 250.0]), id="steps not warped"),
        pytest.param("cascade", rewrite_config(condition_noise_scale=0.0), id="no condition noise"),
        pytest.param("cascade", corrupt_tensors("draw.lr0", lambda x: x.flip(0)), id="draws in reverse"),
        pytest.param("lr_generator_first_frame", rewrite_config(sink_size=1), id="a smaller sink"),
        pytest.param("ultra_decoder_released_small", rewrite_config(value_range=[0.0, 1.0]), id="values not signed"),
        pytest.param("sr_dit_bf16_small", corrupt_tensors("g2.flow", lambda x: x + 4e-3), id="a mean off in bfloat16"),
        pytest.param("sr_dit_bf16_small", rewrite_config(dtype="float32"), id="float32 in bfloat16's place"),
        pytest.param("block_masks", corrupt_tensors("causal1.mask", flip_last), id="a bit of a causal mask"),
        pytest.param("block_masks", remove("config.json"), id="no config"),
        pytest.param("tiny_decoder_small", corrupt_tensors("g1.raw", lambda x: x.flip(2)), id="red and blue swapped"),
        pytest.param("upsampler_v1_x2", corrupt_tensors("final_memory.1", set_first(9.0)), id="a wrong memory"),
        pytest.param("upsampler_v1_x2", rewrite_config(group_frames=[3, 3]), id="a wrong group"),
    ],
)
def test_a_set_with_something_wrong_fails_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, corrupt: Callable[[Path], None]
) -> None:
    folder = tmp_path / name
    shutil.copytree(VECTORS / name, folder, copy_function=shutil.copyfile)
    shutil.copytree(VECTORS / "upsampler_v1_x2", tmp_path / "upsampler_v1_fine", copy_function=shutil.copyfile)
    corrupt(folder)
    assert main([str(tmp_path)]) == 1
    status = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert status == {name: "FAIL", "upsampler_v1_fine": "ok"}
    assert main([str(folder)]) == 1


def test_the_longest_known_prefix_tells_the_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sr_dit", "sr_dance", "upsampler_v4_x2", "deeper/upsampler_v1_x2_wide"):
        source = VECTORS / ("sr_dit_two_groups" if name.startswith("sr_") else "upsampler_v1_x2")
        shutil.copytree(source, tmp_path / name, copy_function=shutil.copyfile)
    assert main([str(tmp_path)]) == 0
    status = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert status == {"sr_dit": "ok", "sr_dance": "skip", "upsampler_v4_x2": "skip", "upsampler_v1_x2_wide": "ok"}


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "nothing")])
    assert stopped.value.code == 2


def test_procedural_weights_follow_from_name_salt_and_gain() -> None:
    shape = (64, 3, 3, 3)
    weight = procedural_tensor("encoder.0.weight", shape, salt=1, gain=1.1)
    expected = torch.tensor([0.012669014744460583, -0.27046236395835876, -0.19192861020565033])
    assert torch.equal(weight.flatten()[:3], expected)
    bound = 1.1 * (3 / 27) ** 0.5
    assert bound * 0.99 < weight.abs().max() <= bound
    assert procedural_tensor("encoder.0.bias", (64,), salt=1, gain=9.0).abs().max() <= 0.05
    assert not torch.equal(weight, procedural_tensor("encoder.0.weight", shape, salt=2, gain=1.1))
