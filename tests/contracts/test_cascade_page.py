"""The page of `make cascade`: results with and without each part of a model, at tiny
sizes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import cascade
from benchmarks.candidates import FolderShelf, taken_from
from ultraflash_cli.engine.profiles import LITE, TINY_LITE, Profile
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoder
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.models.shelf import Shelf


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "CROP_PX", (0, 0, 64, 64))
    monkeypatch.setattr(cascade, "keep_freed_memory", lambda: None)


@pytest.mark.parametrize(
    ("profile", "arms"),
    [
        (replace(TINY_LITE, sr_dit=None), ["480p, lanczos", "as it serves"]),
        (TINY_LITE, ["480p, lanczos", "without SR transformer", "with SR transformer", "with it, dense"]),
    ],
    ids=["without", "with"],
)
def test_the_page_shows_every_arm_of_a_model_and_a_stream(
    profile: Profile,
    arms: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cascade, "taken_from", lambda folder: (Shelf(), profile))
    page = tmp_path / "cascade.html"
    arguments = ["--page", str(page), "--count", "1", "--latents", "3", "--seconds", "0.5", "1"]
    assert cascade.main(arguments) == 0
    text, printed = page.read_text(), capsys.readouterr().out
    assert text.count("data:image/webp") == len(arms) + 1 and "http" not in text
    for name in arms:
        assert name in text and f"| {name} |" in printed
    assert "first frames of the stream after" in printed and printed.count("MB in use") == 2


def test_weights_of_a_folder_serve_as_the_built_in_model_whatever_they_lack(tmp_path: Path) -> None:
    assert taken_from(None)[1] is LITE
    with pytest.raises(WeightsError, match="no safetensors files"):
        FolderShelf(tmp_path)
    words = PromptEncoder(LITE.prompt_encoder)
    tensors = {f"text_encoder.{name}": x.contiguous() for name, x in words.state_dict().items()}
    save_file(tensors, tmp_path / "words.safetensors")
    shelf, profile = taken_from(tmp_path)
    assert profile.sr_dit is None and shelf.has(profile, "text_encoder") and not shelf.has(profile, "decoder")
    taken = shelf.take(profile, "text_encoder", LITE.prompt_encoder, device=torch.device("cpu"), dtype=torch.float32)
    assert all(torch.equal(a, words.state_dict()[name]) for name, a in taken.state_dict().items())
