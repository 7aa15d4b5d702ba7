"""The page of `make cascade`: every part of a model beside what is left without it, at tiny sizes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import cascade
from benchmarks.candidates import FolderShelf, taken_from
from ultraflash_cli.engine.profiles import LITE, LITE2, TINY_LITE, Profile
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsamplerConfig
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoder
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.models.shelf import Shelf

assert TINY_LITE.generator is not None and TINY_LITE.low_decoder is not None
REFINING = replace(
    TINY_LITE,
    name="tiny-refining",
    upsampler=LatentUpsamplerConfig(width=8, blocks=1),
    decoder=TINY_LITE.low_decoder,
    low_decoder=None,
    sr_dit=SrDitConfig(
        dim=32,
        num_heads=2,
        num_layers=1,
        ffn_dim=48,
        freq_dim=16,
        text_dim=TINY_LITE.generator.text_dim,
        text_len=TINY_LITE.generator.text_len,
        block=(2, 2, 2),
        local_range=3,
        ref_spatial_tokens=None,
        top_k_ratio=0.5,
        kv_len=1,
        group_latents=2,
        prediction="residual",
    ),
)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "CROP_PX", (0, 0, 64, 64))
    monkeypatch.setattr(cascade, "keep_freed_memory", lambda: None)


@pytest.mark.parametrize(
    ("profile", "arms"),
    [
        (TINY_LITE, ["480p, lanczos", "as it serves"]),
        (REFINING, ["480p, lanczos", "without SR transformer", "with SR transformer", "with it, dense"]),
    ],
    ids=["pixels", "latents"],
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


def test_weights_of_a_folder_serve_as_the_next_model_and_without_an_sr_transformer_it_has_none(tmp_path: Path) -> None:
    assert taken_from(None)[1] is LITE
    with pytest.raises(WeightsError, match="no safetensors files"):
        FolderShelf(tmp_path)
    words = PromptEncoder(LITE2.prompt_encoder)
    tensors = {f"text_encoder.{name}": x.contiguous() for name, x in words.state_dict().items()}
    save_file(tensors, tmp_path / "words.safetensors")
    shelf, profile = taken_from(tmp_path)
    assert profile.sr_dit is None and shelf.has(profile, "text_encoder") and not shelf.has(profile, "decoder")
    taken = shelf.take(profile, "text_encoder", LITE2.prompt_encoder, device=torch.device("cpu"), dtype=torch.float32)
    assert all(torch.equal(a, words.state_dict()[name]) for name, a in taken.state_dict().items())
