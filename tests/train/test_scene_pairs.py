"""Drawn scenes at two sizes, and a generator's answers to their captions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ultraflash_cli.errors import ConfigError, InputError
from ultraflash_cli.main import main
from ultraflash_cli.train.latents import EncodeScenesJob, SceneLatents, encode_scenes
from ultraflash_cli.train.loop import generator_of
from ultraflash_cli.train.recipes import cascade_dpo, causal_dmd, tv2v_flow_matching
from ultraflash_cli.train.roles import TOY, TOY_WORDS, CascadeRoles
from ultraflash_cli.train.scene_pairs import (
    AnswerScenesJob,
    ScenePairs,
    SceneWindow,
    answer_scenes,
    holds_scene_pairs,
    scene_pair_batch,
)
from ultraflash_cli.weights.load import read_tensors

LOW = (32, 48)
HIGH = (64, 96)
WINDOW = SceneWindow(latents=2, rows=4, columns=6, step=2)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random ones of the whole cascade."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        parts = ("encoder", "upsamplers", "decoder", "sr_dit", "generator", "text_encoder")
        return dict(CascadeRoles(TOY, parts, words=TOY_WORDS).state_dict())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    plain = EncodeScenesJob(out=folder, weights=weights, count=3, latents=4, shard=2, profile=TOY, pace="free")
    encode_scenes(replace(plain, out=folder / "high", size=HIGH))
    encode_scenes(replace(plain, out=folder / "low", size=LOW))
    roles = CascadeRoles(TOY, ("generator", "text_encoder"), words=TOY_WORDS)
    roles.load(weights)
    answer_scenes(AnswerScenesJob(scenes=folder / "low", out=folder / "low_own", roles=roles))
    with torch.autocast("cpu", torch.bfloat16):
        answer_scenes(AnswerScenesJob(scenes=folder / "low", out=folder / "low_kept", roles=roles, level=0.05))
    return folder


def test_answers_keep_more_of_a_scene_the_less_noise_they_start_from(pairs: Path) -> None:
    scene, own, kept = (
        read_tensors(pairs / name / "scenes_000000.safetensors")["latents"].float()
        for name in ("low", "low_own", "low_kept")
    )
    far, near = ((each - scene).square().mean() for each in (own, kept))
    assert near < 0.1 * far


def test_windows_of_both_sizes_show_the_same_place(pairs: Path) -> None:
    scenes = ScenePairs(pairs)
    high, low = SceneLatents(pairs / "high"), SceneLatents(pairs / "low")
    whole_high = torch.cat([read_tensors(path)["latents"] for path in high.files]).float()
    whole_low = torch.cat([read_tensors(path)["latents"] for path in low.files]).float()
    found = set[tuple[int, ...]]()
    own = 0
    for number in range(40):
        small, large, caption = scenes.draw(WINDOW, np.random.default_rng(number))
        assert small.shape == (8, 2, 2, 3) and large.shape == (8, 2, 4, 6) and caption
        places = [
            (scene, first, top, left)
            for scene in range(3)
            for first in (0, 2)
            for top in (0, 2, 4)
            for left in (0, 2, 4, 6)
            if torch.equal(window(whole_high, scene, first, top, left, 1), large)
        ]
        assert places, "what is drawn is a part of a scene"
        found.update(places)
        own += any(torch.equal(window(whole_low, *place, 2), small) for place in places)
    assert 0 < own < 40, "scenes themselves and answers turn up"
    assert len({scene for scene, *_ in found}) == 3 and len(found) > 20


def window(latents: Tensor, scene: int, first: int, top: int, left: int, shrink: int) -> Tensor:
    """The part of a scene that WINDOW shows there."""
    rows = slice(top // shrink, (top + WINDOW.rows) // shrink)
    columns = slice(left // shrink, (left + WINDOW.columns) // shrink)
    return latents[scene, :, first : first + WINDOW.latents, rows, columns]


def test_folders_that_do_not_go_together_are_refused(pairs: Path, tmp_path: Path) -> None:
    assert holds_scene_pairs(pairs) and not holds_scene_pairs(tmp_path)
    (tmp_path / "high").symlink_to(pairs / "high")
    with pytest.raises(InputError, match="no folder low"):
        ScenePairs(tmp_path)
    (tmp_path / "low").mkdir()
    source = pairs / "low" / "scenes_000000.safetensors"
    (tmp_path / "low" / source.name).write_bytes(source.read_bytes())
    with pytest.raises(InputError, match="no scenes of"):
        ScenePairs(tmp_path)
    with pytest.raises(InputError, match="are needed"):
        ScenePairs(pairs).draw(replace(WINDOW, latents=9), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="must be positive"):
        SceneWindow(rows=0)


@pytest.mark.parametrize("recipe", [tv2v_flow_matching, causal_dmd, cascade_dpo])
def test_recipes_learn_from_latents_as_from_frames(recipe: Any, pairs: Path, weights: dict[str, Tensor]) -> None:
    assert recipe in (tv2v_flow_matching, causal_dmd, cascade_dpo)
    config = recipe.configure(steps=2, seed=1, toy=True)
    config = replace(config, window=WINDOW, loop=replace(config.loop, batch=2))
    if recipe is causal_dmd:
        config = replace(config, decoded=(2, 4))
    given = weights if recipe is not cascade_dpo else cascade_dpo.merge([weights, weights])
    roles = recipe.start(config, [], given)
    batch = recipe.make(config, pairs)(0)
    for learner in recipe.learners(config):
        terms = learner.loss(roles, batch, generator_of("test"))
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        assert total.isfinite()
    learned = [p.grad for p in roles.sr_dit.parameters() if p.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in learned)
    assert recipe.pictures(config, roles, batch, generator_of("pictures")).ndim == 3


def test_the_batch_of_a_number_is_always_the_same(pairs: Path) -> None:
    one, other, third = (scene_pair_batch(pairs, WINDOW, 1, 2, number) for number in (4, 4, 5))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and one[2:] == other[2:]
    assert not torch.equal(one[1], third[1])


def test_answers_are_kept_by_the_command_and_a_level_out_of_range_is_refused(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(pairs / "low"), "--out", str(tmp_path / "own"), "--start-from", "none"]
    assert main(["train", "answer-scenes", *common, "--level", "0"]) == 2
    assert "--level is above 0 and at most 1" in capsys.readouterr().err
