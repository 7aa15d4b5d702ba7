"""The list of weights and strict loading."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ultraflash_cli.errors import WeightsError
from ultraflash_cli.weights.load import load_strictly, read_tensors
from ultraflash_cli.weights.manifest import WeightEntry, read_manifest
from ultraflash_cli.weights.verify import sha256_of, verify


def test_every_listed_file_is_there_and_is_what_the_list_says() -> None:
    entries = read_manifest()
    assert {"lite/encoder", "lite/decoder", "lite/upsampler_x2", "lite/upsampler_x3"} <= entries.keys()
    for entry in entries.values():
        assert verify(entry).exists()


def test_the_built_in_model_fits_in_12_megabytes() -> None:
    assert sum(entry.bytes for name, entry in read_manifest().items() if name.startswith("lite/")) <= 12_000_000


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
    with pytest.raises(WeightsError, match=r"starts [0-9a-f]{12}, expected 000000000000"):
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
    with pytest.raises(WeightsError, match="a holds values that are not finite"):
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
