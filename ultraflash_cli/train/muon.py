"""Muon, an optimiser for convolution kernels that orthogonalises the momentum."""

import torch
from torch import Tensor, nn

from ultraflash_cli.train.shards import part_like, whole

__all__ = ["KernelOptimiser"]


class KernelOptimiser(torch.optim.Optimizer):
    """Muon for convolution kernels: Nesterov momentum, orthogonalised as a matrix by
    Newton-Schulz steps.

    A kernel [out, in, h, w] is treated as a matrix [out, in * h * w]. Source: Jordan et
    al., 2024 (including the coefficients of the quintic).
    """

    def __init__(self, kernels: list[nn.Parameter], rate: float, momentum: float = 0.95) -> None:
        super().__init__(kernels, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step along the orthogonalised momentum of every kernel that has a gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                memory = self.state[kernel].setdefault("momentum", torch.zeros_like(kernel))
                memory.mul_(group["momentum"]).add_(kernel.grad)
                ahead = kernel.grad + group["momentum"] * memory
                ahead = whole(ahead)  # a shard of a matrix cannot be orthogonalised
                step = _orthogonal(ahead.reshape(ahead.shape[0], -1)).reshape(kernel.shape)
                kernel.add_(part_like(step, kernel), alpha=-group["lr"])


def _orthogonal(matrix: Tensor) -> Tensor:
    x = matrix / (matrix.norm() + 1e-12)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T
