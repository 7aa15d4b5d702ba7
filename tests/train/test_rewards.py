"""Rewards: their preferences, gradients that reach the pixels, and rewards from
plug-ins."""

from dataclasses import replace
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.made import write_likeness_package
from ultraflash_cli.errors import UsageError
from ultraflash_cli.metrics import lpips
from ultraflash_cli.metrics.lpips import PACKAGE, Trunk, learned_distance
from ultraflash_cli.train import perception, rewards
from ultraflash_cli.train.recipes import RECIPES
from ultraflash_cli.train.rewards import TemporalConsistency, TextureLikeness, load_reward, reward_of
from ultraflash_cli.train.run import TrainJob
from ultraflash_cli.train.settings import parse_settings


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
        ("nobody", "choose from texture, temporal, lpips, mine"),
        ("broken", "cannot be loaded"),
        ("odd", "score"),
    ):
        with pytest.raises(UsageError, match=message):
            load_reward(name)


OWN_REWARDS = """
import torch

SPOILED = 3

def sharp(frames_bcthw):
    return frames_bcthw.diff(dim=-1).abs().mean((1, 3, 4))

def near(frames_bcthw, truth_bcthw, power=2):
    return -(frames_bcthw - truth_bcthw).abs().pow(power).mean((1, 3, 4))

def flat(frames_bcthw):
    return frames_bcthw.mean()

class Bright:
    def __init__(self):
        self.weight = 2.0
    def score(self, frames_bcthw, truth_bcthw):
        return self.weight * frames_bcthw.mean((1, 3, 4))

bright = Bright()
"""


def test_a_function_of_a_module_is_a_reward_with_or_without_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_rewards.py").write_text(OWN_REWARDS)
    monkeypatch.chdir(tmp_path)
    frames, truth = clip().requires_grad_(True), clip(2)
    expected = {
        "sharp": truth.diff(dim=-1).abs().mean((1, 3, 4)),
        "near": torch.zeros(2, 4),
        "Bright": 2 * truth.mean((1, 3, 4)),
        "bright": 2 * truth.mean((1, 3, 4)),
    }
    for name, scores in expected.items():
        torch.testing.assert_close(load_reward(f"own_rewards:{name}").score(truth, truth), scores)
    terms = reward_of(frames, truth, (("own_rewards:sharp", 0.5), ("own_rewards:near", 1.0)))
    sum(terms.values(), start=torch.zeros(())).backward()
    assert frames.grad is not None and frames.grad.abs().sum() > 0

    with pytest.raises(UsageError, match=r"returned \[\], expected one score per frame"):
        load_reward("own_rewards:flat").score(truth, truth)
    for name, message in (("own_rewards:SPOILED", "is not a reward"), ("own_rewards:gone", "cannot be loaded")):
        with pytest.raises(UsageError, match=message):
            load_reward(name)
    with pytest.raises(UsageError, match="No module named"):
        load_reward("nowhere:sharp")


def test_a_recipe_takes_a_reward_of_a_module_by_option_and_by_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more_rewards.py").write_text(OWN_REWARDS)
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES["causal_dmd"].load()
    named = TrainJob(
        recipe="causal_dmd", data=tmp_path, out=tmp_path, steps=1, toy=True, rewards=(("more_rewards:sharp", 0.1),)
    )
    changes = parse_settings([("rewards", '[["more_rewards:sharp", 0.1]]')])
    setting = replace(named, rewards=(), changes=tuple(changes.items()))
    assert named.configure(recipe) == setting.configure(recipe)
    assert named.configure(recipe).rewards == (("more_rewards:sharp", 0.1),)


def test_rewards_are_weighed_and_those_without_weight_not_computed() -> None:
    scores = reward_of(clip(), clip(), (("texture", 0.5), ("temporal", 0.0)))
    assert scores.keys() == {"texture"}
    torch.testing.assert_close(scores["texture"], torch.tensor(0.5), rtol=0, atol=1e-3)


@pytest.fixture
def made_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name with random weights."""
    write_likeness_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("made_weights")
@pytest.mark.parametrize("size", [(24, 32), (10, 14)], ids=["whole", "padded"])
def test_the_learned_reward_looks_at_each_frame_and_gradients_reach_the_pixels(size: tuple[int, int]) -> None:
    learned, truth = perception.LearnedLikeness(every=1), clip()[..., : size[0], : size[1]]
    torch.testing.assert_close(learned.score(truth, truth), torch.ones(2, 4))
    frames = truth.clone()
    frames[1, :, 2] = blurred(truth)[1, :, 2]
    frames.requires_grad_(True)
    score = learned.score(frames, truth)
    assert score[1, 2] < 1 and (score.flatten().sort().values[1:] > 1 - 1e-5).all()
    score.sum().backward()
    assert frames.grad is not None and frames.grad.isfinite().all() and frames.grad[1, :, 2].abs().sum() > 0
    torch.testing.assert_close(load_reward("lpips").score(truth, truth), torch.ones(2, 1))


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="stlpips-pytorch is not installed")
@pytest.mark.parametrize(
    ("trunk", "expected"), [("alex", (0.00371384, 0.00310440)), ("vgg", (0.00643736, 0.00661163))], ids=["alex", "vgg"]
)
def test_the_learned_distance_is_what_its_package_measures(trunk: Trunk, expected: tuple[float, float]) -> None:
    """The values come from stlpips_pytorch 0.0.2 for `LPIPS(net=trunk,
    variant="shift_tolerant")`."""
    rng = torch.Generator().manual_seed(5)
    a = torch.rand(2, 3, 40, 52, generator=rng)
    b = (a + 0.1 * torch.randn(a.shape, generator=rng)).clamp(0, 1)
    distance = learned_distance(a[:, :, None], b[:, :, None], trunk)
    torch.testing.assert_close(distance.flatten(), torch.tensor(expected), rtol=1e-3, atol=1e-6)
    score = perception.LearnedLikeness(tolerance=1.0, trunk=trunk).score(a[:, :, None], b[:, :, None])
    torch.testing.assert_close(score, torch.exp(-distance))


def test_a_network_first_used_for_a_measurement_teaches_later() -> None:
    lpips._network.cache_clear()
    a, b = clip(1)[:, :, :1], clip(2)[:, :, :1].requires_grad_(True)
    with torch.inference_mode():
        measured = learned_distance(a, b)
    distance = learned_distance(a, b)
    torch.testing.assert_close(distance.detach(), measured.clone())
    (gradient,) = torch.autograd.grad(distance.sum(), b)
    assert gradient.abs().sum() > 0


def test_without_its_package_the_learned_reward_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install --no-deps stlpips-pytorch"):
        load_reward("lpips")
