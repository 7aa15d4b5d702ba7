"""The decoder is tuned on latents as the cascade makes them, against the renderer's own
frames; the learned distance is measured on random views."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.train.made import random_cascade, write_likeness_package
from ultraflash_cli.errors import ConfigError, InputError, UsageError
from ultraflash_cli.main import main
from ultraflash_cli.train.latents import EncodeScenesJob, SceneLatents, draw_scene, encode_scenes
from ultraflash_cli.train.loop import Prefetcher, generator_of, run_loop
from ultraflash_cli.train.perception import random_views
from ultraflash_cli.train.recipes import cascade_decoder
from ultraflash_cli.train.recipes.cascade_decoder import CascadeDecoderConfig, Windows
from ultraflash_cli.train.roles import TOY, TOY_WORDS, CascadeRoles
from ultraflash_cli.train.scene_pairs import AnswerScenesJob, answer_scenes
from ultraflash_cli.weights.load import read_tensors

LOW = (32, 48)
HIGH = (64, 96)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights of the whole cascade."""
    return random_cascade()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    plain = EncodeScenesJob(out=folder, weights=weights, count=3, latents=4, shard=2, profile=TOY)
    encode_scenes(replace(plain, out=folder / "high", size=HIGH))
    encode_scenes(replace(plain, out=folder / "low", size=LOW))
    roles = CascadeRoles(TOY, ("generator", "text_encoder", "upsamplers", "sr_dit"), words=TOY_WORDS)
    roles.load(weights)
    job = AnswerScenesJob(scenes=folder / "low", out=folder / "high_own", roles=roles, scale=2, latents=3)
    answer_scenes(job)
    return folder


@pytest.fixture
def lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learned distance with random weights."""
    write_likeness_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def config_of(**changes: Any) -> CascadeDecoderConfig:
    return replace(cascade_decoder.configure(steps=30, seed=1, toy=True), **changes)


def test_what_the_cascade_makes_of_a_scene_has_the_large_size_and_the_scene_s_mask(scenes: Path) -> None:
    own, low = SceneLatents(scenes / "high_own"), SceneLatents(scenes / "low")
    assert own.facts[0]["size"] == list(HIGH) and own.seed == low.seed
    made, small = (read_tensors(each.files[0]) for each in (own, low))
    assert made["latents"].shape == (2, 8, 3, 8, 12) and made["latents"].float().std() > 0
    assert torch.equal(made["covers"][:, :, ::2, 1::2], small["covers"][:, :3])


def test_the_commands_make_what_the_recipe_learns_from(weights: dict[str, Tensor], tmp_path: Path) -> None:
    start = tmp_path / "cascade.safetensors"
    save_file({name: x.contiguous() for name, x in weights.items()}, start)
    common = ["--toy", "--start-from", str(start), "--threads", "1"]
    scenes = ["train", "encode-scenes", *common, "--count", "2", "--latents", "2"]
    assert main([*scenes, "--out", str(tmp_path / "low")]) == 0
    assert main([*scenes, "--scale", "2", "--out", str(tmp_path / "high")]) == 0
    answers = ["train", "answer-scenes", *common, "--data", str(tmp_path / "low")]
    assert main([*answers, "--scale", "2", "--out", str(tmp_path / "high_own")]) == 0
    latents, shown = cascade_decoder.make(config_of(), tmp_path)(0)
    assert latents.shape == (2, 8, 2, 4, 4) and shown.shape == (2, 3, 8, 32, 32)


def test_a_window_shows_the_latents_and_the_renderer_s_frames_of_the_same_place(scenes: Path) -> None:
    windows, stored = Windows(scenes, (("high", 1.0),)), SceneLatents(scenes / "high")
    whole = torch.cat([read_tensors(path)["latents"] for path in stored.files]).float()
    frames = torch.stack([draw_scene(stored.seed, number, 4, HIGH) for number in range(3)])
    for number in range(12):
        latents, shown = windows.draw(2, 2, 4, np.random.default_rng(number))
        assert latents.shape == (2, 8, 2, 4, 4) and shown.shape == (2, 3, 8, 32, 32)
        for one, picture in zip(latents, shown, strict=True):
            places = [
                (scene, first, top, left)
                for scene in range(3)
                for first in range(3)
                for top in range(5)
                for left in range(9)
                if torch.equal(whole[scene, :, first : first + 2, top : top + 4, left : left + 4], one)
            ]
            expected = [
                frames[i, :, 4 * t : 4 * t + 8, 8 * y : 8 * y + 32, 8 * x : 8 * x + 32] for i, t, y, x in places
            ]
            assert any(torch.equal(picture, each) for each in expected)


def test_both_pictures_get_the_same_view_and_another_one_each_time() -> None:
    frames = torch.rand(2, 3, 40, 40, generator=generator_of("frames"))
    rng = generator_of("views")
    a, b = random_views(frames, frames, rng, side_px=24, zoom=(-0.2, 0.5))
    c, _ = random_views(frames, frames, rng, side_px=24, zoom=(-0.2, 0.5))
    assert a.shape == (2, 3, 24, 24) and torch.equal(a, b) and not torch.allclose(a, c, atol=0.05)
    flat, _ = random_views(torch.full_like(frames, 0.3), frames, rng, side_px=24, zoom=(0.0, 0.0))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.3))


def test_views_are_turned_and_mirrored_but_not_stretched() -> None:
    """A disc stays a disc of the zoomed size, and its mark appears in every quarter."""
    y, x = torch.meshgrid(*2 * [torch.arange(64) - 31.5], indexing="ij")
    disc = (x.square() + y.square() < 20**2).float()
    mark = disc * ((x > 4) & (y > 2 * x)).float()
    frame = torch.stack([disc, mark, 0 * disc])[None]
    rng, quarters = generator_of("turns"), set[tuple[bool, bool]]()
    for _ in range(40):
        view, _ = random_views(frame, frame, rng, side_px=64, zoom=(0.0, 0.0))
        across, down = (view[0, 0].sum(axis) for axis in (0, 1))
        assert abs(float((across > 1).sum() - (down > 1).sum())) <= 2
        assert float(view[0, 0].sum()) == pytest.approx(float(disc.sum()), rel=0.02)
        middle = [(view[0, 1] * where).sum() / view[0, 1].sum() for where in (x, y)]
        quarters.add((bool(middle[0] > 0), bool(middle[1] > 0)))
    assert len(quarters) == 4


@pytest.mark.usefixtures("lpips")
def test_the_decoder_learns_from_the_cascade_s_latents_and_the_encoder_is_not_touched(
    scenes: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    config = config_of(perception=0.02)
    roles = cascade_decoder.start(config, [], weights)
    assert {name.split(".")[0] for name in roles.state_dict()} == {"decoder"}
    make = cascade_decoder.make(config, scenes)

    def error(decoder: CascadeRoles) -> float:
        """Return the pixel error on a batch that the run does not learn from."""
        latents, truth = make(10_000)
        with torch.no_grad():
            return float((decoder.decode(latents) - truth).square().mean())

    before = error(roles)
    made = run_loop(roles, cascade_decoder.learners(config), Prefetcher(make, workers=0), config.loop, tmp_path / "run")
    assert isinstance(made, CascadeRoles) and error(made) < 0.9 * before
    assert cascade_decoder.pictures(config, made, make(0), generator_of("pictures")).ndim == 3


@pytest.mark.usefixtures("lpips")
def test_its_critic_learns_with_it_and_is_not_exported(scenes: Path, weights: dict[str, Tensor]) -> None:
    config = config_of(adversarial=0.1)
    roles = cascade_decoder.start(config, [], weights)
    (learner,) = cascade_decoder.learners(config)
    terms = learner.loss(roles, cascade_decoder.make(config, scenes)(0), generator_of(1))
    torch.stack(list(terms.values())).sum().backward()
    for role in ("decoder", "critic"):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in roles.get_submodule(role).parameters())
    assert learner.roles == ("decoder", "critic") and cascade_decoder.NETWORKS == ("decoder",)


def test_data_that_does_not_suit_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scenes at two sizes"):
        cascade_decoder.make(config_of(), tmp_path)
    with pytest.raises(InputError, match="has no folder low_own"):
        Windows(scenes, (("high", 0.5), ("low_own", 0.5)))
    with pytest.raises(InputError, match="do not fit"):
        Windows(scenes, (("high", 1.0),)).draw(1, 9, 4, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="at least 1 latent"):
        config_of(latents=0)
    with pytest.raises(UsageError, match="--start-from"):
        cascade_decoder.start(config_of(perception=0.0), [], None)
