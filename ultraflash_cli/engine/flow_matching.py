"""Flow-matching schedules: noise levels, shifted steps, and conversion between flow and
clean latents."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ultraflash_cli.errors import ConfigError

__all__ = ["TRAIN_STEPS", "FlowSchedule", "fewer_steps"]

T = TypeVar("T")

TRAIN_STEPS = 1000
"""Number of entries in the tables; the step with this number is pure noise."""


class FlowSchedule:
    """Tables of noise levels, and the transitions between them (reference/cascade.md
    1.7).

    ``sigmas`` and ``timesteps`` are float32 ``[1000]`` on the CPU, from pure noise
    downwards. A flow is noise minus clean latent; a timestep has the noise level of the
    nearest entry in the table, so that 0 is not entirely clean.
    """

    def __init__(self, shift: float = 5.0) -> None:
        if not shift > 0:
            raise ConfigError(f"flow schedule: shift must be positive, got {shift}")
        linear = torch.linspace(
            1.0, 0.0, TRAIN_STEPS + 1, dtype=torch.float32, device="cpu"
        )[:-1]
        self.sigmas = shift * linear / (1 + (shift - 1) * linear)
        self.timesteps = self.sigmas * TRAIN_STEPS

    def warp(self, steps: Sequence[int]) -> tuple[float, ...]:
        """Return the shifted timesteps for a list of steps (1000 is pure noise, 0 is
        clean)."""
        wrong = [step for step in steps if not 0 <= step <= TRAIN_STEPS]
        if wrong:
            raise ConfigError(
                f"flow schedule: steps must be within 0..{TRAIN_STEPS}, got {wrong[0]}"
            )
        return tuple(
            self.timesteps[TRAIN_STEPS - step].item() if step else 0.0 for step in steps
        )

    def sigma(self, timestep: float) -> float:
        """Return the noise level of the table's entry nearest to ``timestep``, a
        float32 value."""
        return self.sigmas[(self.timesteps.double() - timestep).abs().argmin()].item()

    def clean(self, x_t: Tensor, flow: Tensor, timestep: float) -> Tensor:
        """Return the clean latents of ``x_t``, computed in float64, in the dtype of
        ``flow``."""
        return (x_t.double() - self.sigma(timestep) * flow.double()).to(flow.dtype)

    def renoise(self, clean: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """Return clean latents noised to ``timestep``, evaluated in float32, in the
        dtype of ``noise``."""
        sigma = self.sigma(timestep)
        return ((1 - sigma) * clean.float() + sigma * noise.float()).to(noise.dtype)


def fewer_steps(steps: tuple[T, ...], count: int) -> tuple[T, ...]:
    """Return ``count`` of the steps, evenly spaced from the first to the last; a single
    step is the first. Indices are rounded half to even (reference/cascade.md 9.1).
    """
    if not 1 <= count <= len(steps):
        raise ConfigError(f"the number of steps must be 1 to {len(steps)}, got {count}")
    if count == 1:
        return steps[:1]
    return tuple(steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count))
