"""Weights of training runs become those of the built-in model, with their rows in the
list of weights."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.built_in import main
from ultraflash_cli.weights.load import read_tensors
from ultraflash_cli.weights.manifest import read_manifest
from ultraflash_cli.weights.verify import sha256_of


def test_roles_become_files_with_rows_and_what_is_known_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, lite, listing = tmp_path / "runs", tmp_path / "lite", tmp_path / "weights.toml"
    runs.mkdir()
    kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    names = ("decoder.1.weight", "upsamplers.2.a.weight", "upsamplers.3.a.weight", "helper.weight")
    save_file({name: kernel.clone() for name in names}, runs / "a.safetensors", metadata={"steps": "900"})
    save_file({"sr_dit.head.weight": kernel.clone()}, runs / "b.safetensors")
    arguments = [str(runs), "--out", str(lite), "--list", str(listing)]
    assert main([*arguments, "--metric", "sr_dit", "lpips=0.08", "--metric", "upsamplers", "db=30"]) == 0
    assert "all of it" in capsys.readouterr().out

    rows = read_manifest(listing)
    assert set(rows) == {"lite/decoder", "lite/sr_dit", "lite/upsampler_x2", "lite/upsampler_x3"}
    told: dict[str, dict[str, str] | None] = {}
    for name, row in rows.items():
        path = tmp_path / row.file
        assert (row.bytes, row.sha256) == (path.stat().st_size, sha256_of(path))
        with safe_open(str(path), framework="pt") as file:
            told[name] = file.metadata()
    assert told["lite/decoder"] == {"steps": "900"} and told["lite/sr_dit"] == {"lpips": "0.08"}
    assert told["lite/upsampler_x3"] == {"steps": "900", "db": "30"}
    back = read_tensors(lite / "upsampler_x2.safetensors")["a.weight"]
    assert (back - kernel).abs().max() <= 1.02 * kernel.abs().max() / 127


def test_a_folder_without_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path), "--out", str(tmp_path / "lite"), "--list", str(tmp_path / "weights.toml")]
    assert main(arguments) == 2
    assert "no weights of encoder, decoder" in capsys.readouterr().err
