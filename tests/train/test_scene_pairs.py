"""Rendered scenes at two sizes, and clips that a generator makes from their
captions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.train.made import random_cascade
from ultraflash_cli.errors import ConfigError, InputError
from ultraflash_cli.main import main
from ultraflash_cli.train.latents import EncodeScenesJob, SceneLatents, encode_scenes
from ultraflash_cli.train.loop import generator_of
from ultraflash_cli.train.recipes import cascade_dpo, causal_dmd, tv2v_flow_matching
from ultraflash_cli.train.roles import TOY, TOY_WORDS, CascadeRoles
from ultraflash_cli.train.run_log import RunLog
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
    """Random weights of the whole cascade."""
    return random_cascade()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    plain = EncodeScenesJob(out=folder, weights=weights, count=3, latents=4, shard=2, profile=TOY)
    encode_scenes(replace(plain, out=folder / "high", size=HIGH))
    encode_scenes(replace(plain, out=folder / "low", size=LOW))
    roles = CascadeRoles(TOY, ("generator", "text_encoder"), words=TOY_WORDS)
    roles.load(weights)
    answer_scenes(AnswerScenesJob(scenes=folder / "low", out=folder / "low_own", roles=roles))
    with torch.autocast("cpu", torch.bfloat16):
        answer_scenes(AnswerScenesJob(scenes=folder / "low", out=folder / "low_kept", roles=roles, level=0.05))
    return folder


def test_generated_scenes_keep_more_of_a_scene_the_less_noise_they_start_from(pairs: Path) -> None:
    scene, own, kept = (
        read_tensors(pairs / name / "scenes_000000.safetensors")["latents"].float()
        for name in ("low", "low_own", "low_kept")
    )
    far, near = ((each - scene).square().mean() for each in (own, kept))
    assert near < 0.1 * far


def test_windows_of_both_sizes_show_the_same_position(pairs: Path) -> None:
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
    """Return the part of a scene that WINDOW selects there."""
    rows = slice(top // shrink, (top + WINDOW.rows) // shrink)
    columns = slice(left // shrink, (left + WINDOW.columns) // shrink)
    return latents[scene, :, first : first + WINDOW.latents, rows, columns]


def test_folders_that_do_not_go_together_are_refused(pairs: Path, tmp_path: Path) -> None:
    assert holds_scene_pairs(pairs) and not holds_scene_pairs(tmp_path)
    (tmp_path / "high").symlink_to(pairs / "high")
    with pytest.raises(InputError, match="has no folder low"):
        ScenePairs(tmp_path)
    (tmp_path / "low").mkdir()
    source = pairs / "low" / "scenes_000000.safetensors"
    (tmp_path / "low" / source.name).write_bytes(source.read_bytes())
    with pytest.raises(InputError, match="does not contain the scenes of"):
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


def test_generated_scenes_are_kept_by_the_command_and_a_level_out_of_range_is_refused(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(pairs / "low"), "--out", str(tmp_path / "own"), "--start-from", "none"]
    assert main(["train", "answer-scenes", *common, "--level", "0"]) == 2
    assert "--level must be above 0 and at most 1" in capsys.readouterr().err


def test_a_validation_scores_held_out_batches_and_a_resumed_run_keeps_its_rows(
    pairs: Path, weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(causal_dmd.configure(steps=4, seed=1, toy=True), window=WINDOW, matching=0.0, guidance=0.0)
    monkeypatch.setattr(causal_dmd, "configure", lambda **_: replace(small, loop=replace(small.loop, save_every=2)))
    monkeypatch.setattr("ultraflash_cli.host.keep_freed_memory", lambda: None)
    save_file({name: x.contiguous() for name, x in weights.items()}, tmp_path / "start.safetensors")
    command = ["train", "run", "causal_dmd", "--toy", "--data", str(pairs), "--steps", "4", "--threads", "1"]
    command += ["--workers", "0", "--out", str(tmp_path / "run"), "--start-from", str(tmp_path / "start.safetensors")]
    assert main([*command, "--validate-every", "2"]) == 0
    rows = RunLog(tmp_path / "run", name="validation.jsonl").rows()
    assert [row["step"] for row in rows] == [2, 4]
    assert all({"psnr", "edges", "change"} <= row.keys() and row["psnr"] > 0 for row in rows)
    assert main([*command, "--validate-every", "4"]) == 0  # already at its end
    assert RunLog(tmp_path / "run", name="validation.jsonl").rows() == rows
    assert main(["train", "run", "bottleneck", *command[3:], "--validate-every", "1"]) == 2


@torch.no_grad()
def test_preference_pairs_are_made_once_by_the_first_student_and_count_where_the_truth_has_the_higher_reward(
    pairs: Path, weights: dict[str, Tensor]
) -> None:
    config = cascade_dpo.configure(steps=4, seed=1, toy=True)
    config = replace(config, window=WINDOW, better="truth", distinct=2, rewards=(("texture", 1.0),))
    config = replace(config, loop=replace(config.loop, batch=1))
    given = cascade_dpo.merge([weights, weights])
    roles = cascade_dpo.start(config, [], given)
    make = cascade_dpo.make(config, pairs)
    assert make(0)[-1] == make(2)[-1] == 0 and make(cascade_dpo.FIRST_SHOWN + 1)[-1] > 2
    terms = cascade_dpo.loss(config, roles, make(0), generator_of(1))
    assert terms["preference"].item() == pytest.approx(0.6931, abs=1e-3) and terms["counting"] == 1
    assert terms["implicit_better"] == terms["implicit_own"] == 0
    kept = roles.kept[0]
    roles.sr_dit.head.head.weight.data.add_(0.1)
    again = cascade_dpo.loss(config, roles, make(2), generator_of(1))
    assert roles.kept[0] is kept and again["implicit_own"] != 0
    none = replace(config, least_margin=2.0)
    assert cascade_dpo.loss(none, cascade_dpo.start(none, [], given), make(1), generator_of(1))["preference"] == 0
