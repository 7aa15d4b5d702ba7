"""Refine low-resolution frames with the pixel path, for models without high-resolution
latents."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ultraflash_cli.engine.clock import StageTimer, untimed
from ultraflash_cli.engine.graphs import EAGER, Graphs
from ultraflash_cli.engine.layers.memory_block import MemoryState
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.refiner import RefinedGroup
from ultraflash_cli.engine.schedule import LATENT_PX
from ultraflash_cli.engine.stages.pixel_path import PixelPath

__all__ = ["PixelRefiner", "PixelRefinerState"]


@dataclass(frozen=True)
class PixelRefinerState:
    """The state of the pixel path."""

    path: MemoryState
    groups: int
    """Number of groups processed."""


class PixelRefiner:
    """Replaces ``Refiner`` for models that refine frames instead of latents; it uses no
    noise."""

    def __init__(
        self,
        profile: Profile,
        path: PixelPath,
        *,
        timer: StageTimer = untimed,
        graphs: Graphs = EAGER,
    ) -> None:
        self.reads_frames = True
        self.profile = profile
        self.path = path
        self.timer = timer
        self.graphs = graphs

    @property
    def scale(self) -> int:
        """Scale factor per side."""
        return self.path.config.scale

    def init_state(
        self,
        *,
        batch: int = 1,
        height: int,
        width: int,
        seed: int = 0,
        first_frame: int = 0,
        context: Tensor | None = None,
    ) -> PixelRefinerState:
        """Return the state before a scene's first frame, for low-resolution latents of
        ``height`` x ``width``."""
        path = self.path.init_state(
            batch=batch, height=LATENT_PX * height, width=LATENT_PX * width
        )
        return PixelRefinerState(path, 0)

    @torch.inference_mode()
    def run_group(
        self, state: PixelRefinerState, low_bcthw: Tensor
    ) -> tuple[PixelRefinerState, RefinedGroup]:
        """Upscale the frames of a group, one for one; consumes ``state``."""
        with self.timer("pixels"):
            path, frames = self.graphs.step("pixels", self.path.step, state.path, low_bcthw)
        return replace(state, path=path, groups=state.groups + 1), RefinedGroup(
            None, frames
        )
