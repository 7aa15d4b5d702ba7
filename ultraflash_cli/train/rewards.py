"""Rewards on decoded frames: texture statistics, temporal consistency, and installed
learned scorers."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.errors import UsageError
from ultraflash_cli.train.losses import luma
from ultraflash_cli.train.perception import LearnedLikeness

__all__ = [
    "BUILT_IN",
    "ENTRY_POINTS",
    "Reward",
    "TemporalConsistency",
    "TextureLikeness",
    "function_reward",
    "load_reward",
    "reward_of",
]

ENTRY_POINTS = "ultraflash.rewards"
"""Group of entry points under which a package offers a reward: a function without arguments that returns one."""

FLAT = 0.01
"""Standard deviation of luma below which there is no texture."""


@runtime_checkable
class Reward(Protocol):
    """Scores frames; higher is better, and gradients reach the frames."""

    def score(self, frames_bcthw: Tensor, truth_bcthw: Tensor) -> Tensor:
        """Return scores ``[B, T]`` of RGB clips in [0, 1], or scores of some frames
        only; scorers that need no ground truth ignore it."""
        ...


@dataclass(frozen=True)
class TextureLikeness:
    """Similarity of a frame's local contrast to that of the ground truth, at several
    scales; 1 is equal. It rewards the right amount of texture, regardless of its exact
    position, which a pixel error would penalise.
    """

    scales: int = 3
    window_px: int = 5

    def score(self, frames_bcthw: Tensor, truth_bcthw: Tensor) -> Tensor:
        """Return ``[B, T]`` in (0, 1]."""
        batch, frames = frames_bcthw.shape[0], frames_bcthw.shape[2]
        a, b = (luma(clip.float()).transpose(1, 2).flatten(0, 1) for clip in (frames_bcthw, truth_bcthw))
        away = a.new_zeros(len(a))
        for scale in range(self.scales):
            if scale:
                a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
            away = away + (self._contrast(a) - self._contrast(b)).abs().mean((1, 2, 3)) / self.scales
        return torch.exp(-away).unflatten(0, (batch, frames))

    def _contrast(self, planes_n1hw: Tensor) -> Tensor:
        """Return the logarithm of the local deviation."""
        window = min(self.window_px, *planes_n1hw.shape[2:])
        mean = F.avg_pool2d(planes_n1hw, window, 1)
        variance = F.avg_pool2d(planes_n1hw.square(), window, 1) - mean.square()
        return 0.5 * (variance.clamp_min(0) + FLAT**2).log()


@dataclass(frozen=True)
class TemporalConsistency:
    """Similarity of the change between frames to that of the ground truth; 1 is equal,
    flicker lowers it."""

    tolerance: float = 0.02
    """Mean error of the change at which the score falls to 1/e."""

    def score(self, frames_bcthw: Tensor, truth_bcthw: Tensor) -> Tensor:
        """Return ``[B, T]`` in (0, 1]; the first frame scores 1."""
        out, truth = luma(frames_bcthw.float()), luma(truth_bcthw.float())
        away = (out.diff(dim=2) - truth.diff(dim=2)).abs().mean((1, 3, 4))
        return torch.exp(-F.pad(away, (1, 0)) / self.tolerance)


BUILT_IN: dict[str, type[TextureLikeness] | type[TemporalConsistency] | type[LearnedLikeness]] = {
    "texture": TextureLikeness,
    "temporal": TemporalConsistency,
    "lpips": LearnedLikeness,
}
"""Built-in rewards by name; the last one needs weights from a separate package."""


def load_reward(name: str) -> Reward:
    """Return a reward: a built-in one, one provided by an installed package, or
    ``module:name``, see ``function_reward``. Raises UsageError if it cannot be
    loaded."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if ":" in name:
        return _of_module(name)
    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        known = ", ".join([*BUILT_IN, *offered])
        raise UsageError(f"unknown reward {name!r}; choose from {known}, or give MODULE:FUNCTION")
    try:
        reward = offered[name].load()()
    except Exception as error:  # whatever a package raises for its missing weights
        raise UsageError(
            f"the reward {name!r} cannot be loaded ({error}); reinstall its package, or choose another"
        ) from error
    if not isinstance(reward, Reward):
        raise UsageError(f"the reward {name!r} has no method `score`, expected a Reward; choose another")
    return reward


@dataclass(frozen=True)
class FunctionReward:
    """A function used as a reward, with or without the ground truth as an argument."""

    name: str
    function: Callable[..., Tensor]
    needs_truth: bool

    def score(self, frames_bcthw: Tensor, truth_bcthw: Tensor) -> Tensor:
        """Call the function. Raises UsageError if the result is not ``[B, T]``."""
        given = (frames_bcthw, truth_bcthw) if self.needs_truth else (frames_bcthw,)
        scores = self.function(*given)
        if scores.ndim != 2 or len(scores) != len(frames_bcthw):
            raise UsageError(
                f"the reward {self.name!r} returned {list(scores.shape)}, expected one score per frame: "
                f"[{len(frames_bcthw)}, frames]"
            )
        return scores


def function_reward(name: str, found: Any) -> Reward:
    """Return an object of a module as a reward. It may be a reward, a reward class, or
    a function: one without arguments returns a reward; one of ``frames_bcthw``, or of
    ``frames_bcthw`` and ``truth_bcthw``, returns scores. Raises UsageError for anything
    else.
    """
    if isinstance(found, Reward) and not isinstance(found, type):
        return found
    if callable(found):
        function = cast("Callable[..., Any]", found)
        needed = [p for p in signature(found).parameters.values() if p.default is p.empty and p.kind not in _OPEN]
        if len(needed) in (1, 2) and not isinstance(found, type):
            return FunctionReward(name, function, needs_truth=len(needed) == 2)
        made = function() if not needed else None
        if isinstance(made, Reward):
            return made
    raise UsageError(
        f"{name!r} is not a reward; expected a function of frames, or of frames and truth, or a function "
        "that returns an object with `score` (docs/training.md)"
    )


_OPEN = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@cache
def _of_module(name: str) -> Reward:
    """Return the reward ``module:name``; modules in the working directory are found as
    well."""
    module, _, attribute = name.partition(":")
    path = list(sys.path)
    sys.path.append(str(Path.cwd()))
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # whatever the module raises on import
        raise UsageError(f"the reward {name!r} cannot be loaded ({error}); check module and name") from error
    finally:
        sys.path[:] = path
    return function_reward(name, found)


def reward_of(frames_bcthw: Tensor, truth_bcthw: Tensor, weights: tuple[tuple[str, float], ...]) -> dict[str, Tensor]:
    """Return the mean score under each named reward, times its weight."""
    return {
        name: weight * load_reward(name).score(frames_bcthw, truth_bcthw).mean() for name, weight in weights if weight
    }
