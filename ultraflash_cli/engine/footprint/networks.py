"""Parameters and states of networks, counted exactly on meta networks."""

from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ultraflash_cli.engine.networks import NETWORKS
from ultraflash_cli.engine.sampling import Sampler
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig

__all__ = ["initial_state", "parameters"]

_SMALL_WIDTH = 256
"""Width up to which transformers are built directly, as torch's first use of the meta
device takes a second."""


@lru_cache(maxsize=32)
def _network(config: Any, *, fp8: bool = False) -> nn.Module:
    """Return a network without storage, a transformer in 8 bits if ``fp8``."""
    if fp8:
        network = deepcopy(_network(config))
        assert isinstance(network, (SrDit, Generator)), "only transformers run in 8 bits"
        return network.to_fp8()
    is_large = isinstance(config, WanVaeConfig) or getattr(config, "dim", 0) > _SMALL_WIDTH
    with torch.device("meta" if is_large else "cpu"):
        return NETWORKS[type(config)](config).to("meta")


@lru_cache(maxsize=64)
def initial_state(
    config: Any,
    dtype: torch.dtype,
    batch: int,
    height: int,
    width: int,
    *,
    fp8: bool = False,
) -> Any:
    """Return a stage's state before the first frame, without storage; with ``fp8`` that
    of a transformer in 8 bits. Prompts have the maximum length."""
    network: Any = _network(config, fp8=fp8).to(dtype)
    stage = Sampler(network) if isinstance(config, GeneratorConfig) else network
    given: dict[str, Any] = {}
    if getattr(config, "text_len", 0):
        shape = (1, config.text_len, config.text_dim)
        given["context"] = torch.empty(shape, dtype=dtype, device="meta")
    return stage.init_state(batch=batch, height=height, width=width, **given)


def parameters(config: Any) -> int:
    """Return the number of parameters."""
    if isinstance(config, SrDitConfig):
        # One network serves for all sizes of groups and caches, which share weights.
        config = replace(config, kv_len=1, kv_schedule=(), group_latents=1)
    return sum(parameter.numel() for parameter in _network(config).parameters())
