"""The list of weights and strict loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ultraflash_cli.errors import ConfigError, WeightsError
from ultraflash_cli.weights.convert import RULES
from ultraflash_cli.weights.load import load_strictly, read_tensors, stored_in_8_bits
from ultraflash_cli.weights.manifest import WeightEntry, WeightSet, manifest_text, read_manifest, read_sets
from ultraflash_cli.weights.verify import sha256_of, verify


def test_every_listed_file_is_there_and_is_what_the_list_says() -> None:
    entries = read_manifest()
    assert {"lite/encoder", "lite/pixels", "lite/pixels_detail", "lite/decoder", "lite/sr_dit"} <= entries.keys()
    for entry in entries.values():
        if entry.packaged:
            assert verify(entry).exists()


def test_the_built_in_model_fits_in_16_megabytes() -> None:
    lite = [entry for name, entry in read_manifest().items() if name.startswith("lite/")]
    assert sum(entry.bytes or 0 for entry in lite) <= 16_000_000


def test_every_file_of_the_hub_has_rules_and_every_member_of_a_set_is_listed() -> None:
    entries = read_manifest()
    for entry in entries.values():
        assert entry.packaged or entry.architecture in {*RULES, "tokenizer"}, entry.name
    for each in read_sets().values():
        assert set(each.members) <= entries.keys(), each.name
        assert each.name not in entries


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="a packaged file without hash"),
        pytest.param({"repository": "a/b", "sha256": "0" * 64}, id="half a lock"),
        pytest.param({"repository": "a/b", "sha256": "0", "bytes": 1, "revision": "main"}, id="a branch"),
    ],
)
def test_an_entry_says_enough_or_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        WeightEntry(name="a", architecture="sr_dit", file="a.pth", licence="MIT", **fields)


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    entry = WeightEntry(
        name="b/c",
        architecture="lora",
        repository="a/b",
        file="d/c.pt",
        revision="0" * 40,
        sha256="1" * 64,
        bytes=7,
        licence="not confirmed",
        note='A "quoted" note.',
    )
    sets = {"b": WeightSet(name="b", about="one", members=("b/c",))}
    (tmp_path / "weights.toml").write_text(manifest_text({"b/c": entry}, sets))
    assert read_manifest(tmp_path / "weights.toml") == {"b/c": entry}
    assert read_sets(tmp_path / "weights.toml") == sets


def entry_for(file: Path, *, size: int | None = None, sha256: str | None = None) -> WeightEntry:
    return WeightEntry(
        name="test",
        architecture="decoder",
        file=str(file),
        sha256=sha256 or sha256_of(file),
        bytes=file.stat().st_size if size is None else size,
        licence="Apache-2.0",
    )


def test_a_changed_file_is_refused_with_what_was_found_and_expected(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    assert verify(entry_for(file)) == file
    with pytest.raises(WeightsError, match="has 7 bytes, expected 9"):
        verify(entry_for(file, size=9))
    with pytest.raises(WeightsError, match=r"starts with [0-9a-f]{12}, expected 000000000000"):
        verify(entry_for(file, sha256="0" * 64))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    entry = WeightEntry(
        name="gone", architecture="decoder", file=str(tmp_path / "no"), sha256="0", bytes=1, licence="MIT"
    )
    with pytest.raises(WeightsError, match="missing"):
        verify(entry)


def test_a_broken_list_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "weights.toml"
    for text in ("[[weights", "[other]", '[[weights]]\nname = "x"\n'):
        broken.write_text(text)
        with pytest.raises(WeightsError, match="not a readable list"):
            read_manifest(broken)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "nan.safetensors"
    save_file({"a": torch.tensor([1.0, float("nan")])}, file)
    with pytest.raises(WeightsError, match="a contains NaN or infinite values"):
        read_tensors(file)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.safetensors"
    file.write_text("no tensors here")
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        read_tensors(file)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, r"1 keys are missing \(bias\)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, r"1 unexpected \(more\)"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"has shape \(2, 4\), expected \(2, 3\)"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_nothing_is_left_at_random_values(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load_strictly(torch.nn.Linear(3, 2), tensors, name="net")


def test_matrices_stored_in_8_bits_come_back_within_half_a_step_of_their_row(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    gains = torch.tensor([1e-6, 1.0, 300.0])[:, None]
    tensors = {
        "a.weight": torch.randn(3, 40, generator=draw) * gains,
        "a.bias": torch.randn(7, generator=draw),
        "a.kernel": torch.randn(2, 3, 3, 3, generator=draw),
    }
    stored = stored_in_8_bits(tensors)
    assert {stored[name].dtype for name in ("a.weight", "a.kernel")} == {torch.int8}
    assert all(value.abs().max() <= 127 for value in stored.values() if value.dtype == torch.int8)
    save_file(stored, tmp_path / "a.safetensors")
    back = read_tensors(tmp_path / "a.safetensors")
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        step = value.flatten(1).abs().amax(1) / 127 if value.ndim > 1 else value.abs() / 2**10
        step = step.clamp_min(2**-14)
        error = (back[name] - value).flatten(1).abs().amax(1) if value.ndim > 1 else (back[name] - value).abs()
        assert (error <= (1.02 if value.ndim > 2 else 0.51) * step).all(), name
    lost = (back["a.kernel"] - tensors["a.kernel"]).sum((2, 3)).abs().amax(1)
    assert (lost <= 0.52 * tensors["a.kernel"].flatten(1).abs().amax(1) / 127).all(), "taps make up for each other"
    kept = stored_in_8_bits(tensors, exact=("a.kernel",))["a.kernel"]
    assert kept.dtype == torch.float16
    assert read_tensors(tmp_path / "a.safetensors", dtype=torch.bfloat16)["a.weight"].dtype == torch.bfloat16
