"""Gates folded into matmuls that add to the residual stream, on a GPU: against gates that are not."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig, SrDitInputs

if TYPE_CHECKING:
    from benchmarks.gpu.here import Here

__all__ = ["off"]


def off(here: "Here") -> float:
    """Return the relative error of the second group of an SR transformer of two blocks with folded gates, in the
    dtype of the device; without folding, roundings are as large."""
    tiny: dict[str, Any] = {"dim": 32, "num_heads": 2, "ffn_dim": 48, "text_dim": 24, "text_len": 8, "block": (2, 2, 2)}
    config = SrDitConfig(num_layers=2, **(tiny if here.dry else {}))
    height, width = (8, 12) if here.dry else (96, 128)
    network = SrDit(config).requires_grad_(False).eval()
    torch.nn.init.normal_(network.head.head.weight, std=0.02)
    network = network.to(here.device, here.dtype)
    shape = (2, 2, 1, config.latent_channels, config.group_latents, height, width)
    groups = torch.randn(shape, device=here.device).to(here.dtype)
    context = torch.randn(1, max(1, config.text_len // 4), config.text_dim, device=here.device)

    def last(network: SrDit) -> Tensor:
        state = network.init_state(batch=1, height=height, width=width, context=context)
        made = groups[0, 0]
        for noise, cond in groups:
            state, clean = network.step(state, SrDitInputs(noise, cond))
            made = noise - clean
        return made.double()

    plain, folded = last(network), last(copy.deepcopy(network).fold_gates())
    return float((folded - plain).norm() / plain.norm())
