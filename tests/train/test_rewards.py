"""Rewards: what they prefer, that gradients reach the pixels, and how others join."""

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

from ultraflash_cli.errors import UsageError
from ultraflash_cli.train import rewards
from ultraflash_cli.train.rewards import TemporalConsistency, TextureLikeness, load_reward, reward_of


def clip(seed: int = 1) -> Tensor:
    return torch.rand(2, 3, 4, 24, 32, generator=torch.Generator().manual_seed(seed))


def blurred(frames: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool3d(frames, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)


@pytest.mark.parametrize("reward", [TextureLikeness(), TemporalConsistency()], ids=["texture", "temporal"])
def test_the_truth_scores_one_and_a_score_is_per_frame_and_differentiable(reward: rewards.Reward) -> None:
    truth = clip()
    torch.testing.assert_close(reward.score(truth, truth), torch.ones(2, 4), rtol=0, atol=1e-3)
    frames = blurred(truth).requires_grad_(True)
    score = reward.score(frames, truth)
    assert score.shape == (2, 4)
    score.sum().backward()
    assert frames.grad is not None and frames.grad.isfinite().all() and frames.grad.abs().sum() > 0


def test_texture_likes_as_much_contrast_as_there_should_be_wherever_it_lies() -> None:
    truth = clip()
    same_kind, soft, loud = clip(2), blurred(truth), (truth - 0.5) * 3 + 0.5
    like = TextureLikeness()
    scores = [like.score(frames, truth).mean() for frames in (same_kind, soft, loud)]
    assert scores[0] > 0.8 > max(scores[1:])


def test_flicker_costs_consistency_from_its_frame_on() -> None:
    truth = clip()
    flicker = truth.clone()
    flicker[:, :, 2] += 0.1
    score = TemporalConsistency().score(flicker, truth)
    assert (score[:, :2] > 0.999).all()
    assert (score[:, 2:] < 0.1).all()


def test_a_package_offers_a_reward_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("mine", "ultraflash_cli.train.rewards:TextureLikeness", rewards.ENTRY_POINTS),
        EntryPoint("broken", "ultraflash_cli.train.rewards:gone", rewards.ENTRY_POINTS),
        EntryPoint("odd", "builtins:dict", rewards.ENTRY_POINTS),
    ]
    monkeypatch.setattr(rewards, "entry_points", lambda group: points)
    assert isinstance(load_reward("mine"), TextureLikeness)
    for name, message in (
        ("nobody", "there are texture, temporal, mine"),
        ("broken", "cannot be had"),
        ("odd", "score"),
    ):
        with pytest.raises(UsageError, match=message):
            load_reward(name)


def test_rewards_are_weighed_and_those_without_weight_not_computed() -> None:
    scores = reward_of(clip(), clip(), (("texture", 0.5), ("temporal", 0.0)))
    assert scores.keys() == {"texture"}
    torch.testing.assert_close(scores["texture"], torch.tensor(0.5), rtol=0, atol=1e-3)
