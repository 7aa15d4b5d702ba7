"""A run from prepared material to exported weights, through the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.train.made import CLEAN, made_materials, soft_materials, write_materials
from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.engine.stages.pixel_path import PixelPath
from ultraflash_cli.main import main
from ultraflash_cli.train.data import PairConfig, data_hash
from ultraflash_cli.train.export import networks_of
from ultraflash_cli.train.loop import LoopConfig
from ultraflash_cli.train.recipes import pixels
from ultraflash_cli.train.record import read_record
from ultraflash_cli.weights.load import load_strictly, read_tensors
from ultraflash_cli.weights.manifest import manifest_text, read_manifest, read_sets
from ultraflash_cli.weights.verify import sha256_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_materials(tmp_path_factory.mktemp("data"), made_materials(2, side=192))


@pytest.fixture(autouse=True)
def tiny_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the built-in networks on crops so small that a step takes no time."""

    def configure(*, steps: int, seed: int, toy: bool = False) -> pixels.PixelsConfig:
        loop = LoopConfig(steps=steps, seed=seed, warmup=1, save_every=2, batch=1)
        return pixels.PixelsConfig(loop=loop, pairs=PairConfig(crop_px=16, degradation=CLEAN))

    monkeypatch.setattr(pixels, "configure", configure)
    monkeypatch.setattr("ultraflash_cli.host.keep_freed_memory", lambda: None)


def train(data: Path, out: Path, *more: str, steps: int = 2) -> int:
    arguments = ["--data", str(data), "--out", str(out), "--steps", str(steps), "--threads", "1", "--workers", "0"]
    return main(["train", "run", "pixels", *arguments, *more])


def test_a_run_leaves_averages_a_record_and_a_state_and_exports_what_the_engine_loads(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, lite, listing = tmp_path / "run", tmp_path / "lite", tmp_path / "weights.toml"
    assert train(data, out) == 0
    record = json.loads((out / "run.json").read_text())
    assert (record["recipe"], record["steps"], record["seed"]) == ("pixels", 2, 1)
    assert record["data_hash"] == data_hash(made_materials(2, side=192))
    with safe_open(str(out / "average.safetensors"), framework="pt") as opened:
        told = opened.metadata()
    assert {name: told[name] for name in ("recipe", "recipe_hash", "data_hash", "steps", "seed")} == {
        name: str(record[name]) for name in ("recipe", "recipe_hash", "data_hash", "steps", "seed")
    }
    assert float(told["luma"]) > 0  # the last logged losses become the metrics
    listing.write_text(manifest_text({"lite/other": replace(read_manifest()["lite/encoder"], name="lite/other")}, {}))

    export = ["train", "export", str(out), "--out", str(lite), "--list", str(listing)]
    assert main([*export, "--metric", "psnr_y=31.4"]) == 0
    entries = read_manifest(listing)
    assert list(entries) == ["lite/other", "lite/pixels"]
    assert entries["lite/pixels"].architecture == "pixels"
    for name in ("pixels",):
        file, entry = lite / f"{name}.safetensors", entries[f"lite/{name}"]
        assert (entry.file, entry.licence) == (f"lite/{name}.safetensors", "Apache-2.0")
        assert (entry.sha256, entry.bytes) == (sha256_of(file), file.stat().st_size)
        with safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata()
            assert {opened.get_tensor(key).dtype for key in opened.keys()} == {torch.float16}  # noqa: SIM118
        assert metadata == {
            "recipe": "pixels",
            "recipe_hash": record["recipe_hash"],
            "data_hash": record["data_hash"],
            "steps": "2",
            "seed": "1",
            "psnr_y": "31.4",
        }
    assert LITE.pixels is not None
    load_strictly(PixelPath(LITE.pixels), read_tensors(lite / "pixels.safetensors"), name="pixels")
    assert "lite/pixels" in capsys.readouterr().out


def test_a_run_leaves_its_losses_and_samples_as_pictures(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path, "--save-every", "1") == 0
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["000001.png", "000002.png"]
    for path in (tmp_path / "losses.png", *(tmp_path / "samples").iterdir()):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_stages_of_the_paper_run_one_after_the_other_from_their_commands(tmp_path: Path) -> None:
    data = tmp_path / "material"
    data.mkdir()
    write_materials(data, soft_materials(2))

    def stage(name: str, *starts: str, material: bool = True) -> None:
        arguments = ["--toy", "--steps", "2", "--batch", "1", "--workers", "0", "--threads", "1", "--device", "cpu"]
        arguments += ["--data", str(data)] if material else []
        for start in starts:
            arguments += ["--start-from", str(tmp_path / start / "average.safetensors")]
        assert main(["train", "run", name, "--out", str(tmp_path / name), *arguments]) == 0, name

    stage("decoder")
    stage("latent_upsampler", "decoder")
    stage("tv2v_flow_matching", "latent_upsampler")
    stage("causal_dmd", "tv2v_flow_matching")
    stage("cascade_dpo", "tv2v_flow_matching", "causal_dmd")
    stage("sr_dit", "latent_upsampler")
    stage("generator", "decoder", material=False)
    stage("generator_distil", "generator", material=False)
    kept = {name.split(".")[0] for name in read_tensors(tmp_path / "cascade_dpo" / "average.safetensors")}
    assert kept == {"encoder", "upsamplers", "decoder", "sr_dit", "text_encoder"}
    assert read_record(tmp_path / "generator_distil").recipe == "generator_distil"


def test_a_run_resumes_only_with_the_same_settings(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path) == 0
    average = {name: value.clone() for name, value in read_tensors(tmp_path / "average.safetensors").items()}
    assert train(data, tmp_path) == 0
    again = read_tensors(tmp_path / "average.safetensors")
    assert again.keys() == average.keys() and all(torch.equal(again[name], average[name]) for name in again)
    assert train(data, tmp_path, "--seed", "2") == 2
    assert "other settings" in capsys.readouterr().err


def test_the_seed_fixes_the_weights(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert train(data, tmp_path / name, "--seed", seed, steps=1) == 0
    # The whitened filters are eigenvectors, whose signs LAPACK chooses by rounding:
    # they are not compared.
    a, b, c = (
        {key: value for key, value in tensors.items() if not key.startswith("pixels.embed.")}
        for tensors in (read_tensors(tmp_path / name / "average.safetensors") for name in "abc")
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_run_starts_from_the_weights_of_another(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "first", steps=1) == 0
    first = tmp_path / "first" / "average.safetensors"
    assert train(data, tmp_path / "second", "--start-from", str(first), "--seed", "9", steps=1) == 0
    before, after = read_tensors(first), read_tensors(tmp_path / "second" / "average.safetensors")
    moved = max((before[name] - after[name]).abs().max() for name in before)
    assert 0 < moved < 0.05


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["pixels", "--steps", "0"], 2, "must be at least 1", id="no steps"),
        pytest.param(["pixels", "--steps", "1", "--data", "gone"], 3, "prepare the data first", id="no data"),
        pytest.param(["pixels", "--steps", "1", "--start-from", "gone"], 8, "no such weights", id="no weights"),
        pytest.param(["sr_dit", "--steps", "1"], 2, "--start-from", id="sr_dit from nothing"),
        pytest.param(["pixels", "--steps", "1", "--accumulate", "0"], 2, "--accumulate", id="no accumulation"),
        pytest.param(["pixels", "--steps", "1", "--shard"], 2, "torchrun", id="shards of one"),
        pytest.param(["pixels", "--steps", "1", "--reward", "texture=1"], 2, "does not use rewards", id="no rewards"),
        pytest.param(["causal_dmd", "--steps", "1", "--reward", "texture=x"], 2, "NAME=NUMBER", id="no number"),
        pytest.param(["causal_dmd", "--steps", "1", "--reward", "gone=1"], 2, "unknown reward", id="no such reward"),
        pytest.param(["causal_dmd", "--toy", "--steps", "1"], 2, "tv2v_flow_matching", id="a stage from nothing"),
    ],
)
def test_a_run_that_cannot_start_says_why(
    data: Path, tmp_path: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = arguments
    assert main(["train", "run", name, "--data", str(data), "--out", str(tmp_path / "out"), *rest]) == code
    assert message in capsys.readouterr().err


def test_an_export_of_no_run_and_options_without_two_parts_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["train", "export", str(tmp_path), "--out", str(tmp_path / "o"), "--list", str(tmp_path / "l")]
    assert main(export) == 3
    assert "no finished part" in capsys.readouterr().err
    assert main([*export, "--metric", "psnr"]) == 2
    assert main(["train", "prepare", "--out", str(tmp_path / "o"), "--photos", "folder"]) == 2
    assert main(["train", "prepare", "--out", str(tmp_path / "o")]) == 2
    assert "nothing to prepare" in capsys.readouterr().err


def test_only_the_networks_that_a_recipe_trains_are_taken() -> None:
    tensors = {"sr_dit.a": torch.ones(1), "upsamplers.2.final.bias": torch.ones(2), "decoder.b": torch.ones(3)}
    networks = networks_of(tensors, ("upsamplers", "sr_dit"))
    assert {name: list(parts) for name, parts in networks.items()} == {"sr_dit": ["a"], "upsampler_x2": ["final.bias"]}


def test_the_list_of_weights_is_written_as_it_is_read(repository: Path) -> None:
    listing = repository / "weights.toml"
    assert manifest_text(read_manifest(listing), read_sets(listing)) == listing.read_text()


def test_a_recipe_that_needs_material_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run", "pixels", "--out", str(tmp_path), "--steps", "1"]) == 2
    assert "--data" in capsys.readouterr().err
