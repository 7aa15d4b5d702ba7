"""Weights of training runs as a usable model, whose parts come from the safetensors
files of a folder."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.networks import NETWORKS, Config
from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsamplerConfig
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.weights.load import load_strictly, read_tensors

__all__ = ["FolderShelf", "taken_from"]


class FolderShelf(Shelf):
    """Networks from runs' files, in which every tensor's name begins with its role."""

    def __init__(self, folder: Path) -> None:
        """Raises WeightsError for a folder without weights."""
        super().__init__(None)
        self.tensors = {
            name: x for path in sorted(folder.glob("*.safetensors")) for name, x in read_tensors(path).items()
        }
        if not self.tensors:
            raise WeightsError(f"{folder}: no safetensors files")
        self.roles = {name.split(".")[0] for name in self.tensors}

    def has(self, profile: Profile, part: str) -> bool:
        return {"upsampler": "upsamplers"}.get(part, part) in self.roles

    def require(self, profile: Profile, parts: Iterable[str]) -> None:
        """Do nothing, because nothing has to be installed."""

    def _load(self, profile: Profile, part: str, config: Config, device: torch.device, dtype: torch.dtype) -> nn.Module:
        role = f"upsamplers.{config.scale}" if isinstance(config, LatentUpsamplerConfig) else part
        mine = {name.removeprefix(f"{role}."): x for name, x in self.tensors.items() if name.startswith(f"{role}.")}
        with torch.device("meta"):
            network = NETWORKS[type(config)](config)
        load_strictly(network, {name: x.to(device, dtype) for name, x in mine.items()}, name=role)
        return to_channels_last(network).eval().requires_grad_(False)


def taken_from(folder: Path | None) -> tuple[Shelf, Profile]:
    """Return the built-in model, or the one in a folder, possibly without an SR
    transformer."""
    if folder is None:
        return Shelf(), LITE
    shelf = FolderShelf(folder)
    return shelf, LITE if shelf.has(LITE, "sr_dit") else replace(LITE, sr_dit=None)
