"""The cascade of a clip, group by group: encode, upsample, refine, decode; or the pixel
path alone."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.pixel_refiner import PixelRefiner, PixelRefinerState
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.refiner import Refiner, RefinerState
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, group_frames
from ultraflash_cli.engine.stages.encoder import Encoder
from ultraflash_cli.engine.stages.wan_vae import WanVaeEncoder

__all__ = ["Cascade", "CascadeState"]


@dataclass(frozen=True)
class CascadeState:
    """The states of all stages, and frames that wait for their group."""

    encoder: Any
    """The encoder's own state; None without one."""
    refiner: RefinerState | PixelRefinerState
    queue_bcthw: Tensor
    queued: int
    last_bcthw: Tensor | None
    """The latest frame, if the encoder runs ahead and the end of a scene must be
    padded."""


class Cascade:
    """A stage made of stages: frames [B, 3, T, H, W] in [0, 1] to [B, 3, T, scale * H,
    scale * W], one for one.

    The frames of a group are returned with it, except for the profile's ``delay``,
    which come with the next one. There is no encoder if the refiner reads frames.
    """

    def __init__(
        self,
        profile: Profile,
        encoder: Encoder | WanVaeEncoder | None,
        refiner: Refiner | PixelRefiner,
    ) -> None:
        assert (encoder is None) == refiner.reads_frames, (
            "latents come from an encoder, frames do without"
        )
        self.profile = profile
        self.encoder: Any = encoder
        self.refiner = refiner
        self.timer = refiner.timer

    @property
    def scale(self) -> int:
        """Growth per side."""
        return self.refiner.scale

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        network: nn.Module = (
            self.refiner.path
            if isinstance(self.refiner, PixelRefiner)
            else self.refiner.decoder
        )
        return next(network.parameters()).device

    def init_state(
        self,
        *,
        batch: int = 1,
        height: int,
        width: int,
        seed: int = 0,
        first_frame: int = 0,
        context: Tensor | None = None,
    ) -> CascadeState:
        """Return the state before a scene's first frame.

        ``height`` and ``width`` are the frames', multiples of the profile's
        ``multiple_px``; ``first_frame`` is the scene's place in the clip, which its
        noise depends on; ``context`` is the prompt's embedding.
        """
        multiple = self.profile.multiple_px
        assert height % multiple == 0 and width % multiple == 0, (
            f"the caller pads frames to multiples of {multiple}"
        )
        longest = group_frames(
            self.profile.group_latents, self.profile.pad_front, first=False
        )
        queue = torch.zeros((batch, 3, longest, height, width), device=self.device)
        return CascadeState(
            encoder=self.encoder
            and self.encoder.init_state(batch=batch, height=height, width=width),
            refiner=self.refiner.init_state(
                batch=batch,
                height=height // 8,
                width=width // 8,
                seed=seed,
                first_frame=first_frame,
                context=context,
            ),
            queue_bcthw=queue,
            queued=0,
            last_bcthw=queue[:, :, :1].clone() if self.profile.delay else None,
        )

    @torch.inference_mode()
    def step(self, state: CascadeState, inputs: Tensor) -> tuple[CascadeState, Tensor]:
        """Take in frames; return the frames of all groups that are complete. Consumes
        ``state``."""
        frames = torch.cat([state.queue_bcthw[:, :, : state.queued], inputs], dim=2)
        out = [state.refiner.empty_bcthw]
        while frames.shape[2] >= (size := self._group_frames(state)):
            state, sharp = self._run_group(state, frames[:, :, :size])
            out.append(sharp)
            frames = frames[:, :, size:]
        state.queue_bcthw[:, :, : frames.shape[2]] = frames.clone()
        whole = out[-1] if len(out) <= 2 else torch.cat(out, dim=2)
        return replace(state, queued=frames.shape[2]), whole

    @torch.inference_mode()
    def flush(self, state: CascadeState) -> Tensor:
        """Return the remaining frames as the end of the scene; the last one is repeated
        as padding."""
        if state.queued == 0 and (state.refiner.groups == 0 or self.profile.delay == 0):
            return state.refiner.empty_bcthw
        frames = state.queue_bcthw[:, :, : state.queued]
        if state.last_bcthw is not None:
            last = frames[:, :, -1:] if state.queued else state.last_bcthw
            frames = torch.cat(
                [frames, last.expand(-1, -1, self.profile.delay, -1, -1)], dim=2
            )
        out: list[Tensor] = []
        while frames.shape[2]:
            size = self._group_frames(state)
            state, sharp = self._run_group(state, frames[:, :, :size])
            out.append(sharp)
            frames = frames[:, :, size:]
        return torch.cat(out, dim=2)

    def _group_frames(self, state: CascadeState) -> int:
        profile = self.profile
        return group_frames(
            profile.group_latents, profile.pad_front, first=state.refiner.groups == 0
        )

    def _run_group(
        self, state: CascadeState, frames: Tensor
    ) -> tuple[CascadeState, Tensor]:
        """Run a group of frames through all stages; only the last of a scene may be
        short."""
        if isinstance(self.refiner, PixelRefiner):
            assert isinstance(state.refiner, PixelRefinerState)
            refiner, (_, sharp) = self.refiner.run_group(state.refiner, frames)
            return replace(state, refiner=refiner), sharp
        assert isinstance(state.refiner, RefinerState)
        profile, is_first, count = self.profile, state.refiner.groups == 0, frames.shape[2]
        front = profile.pad_front if is_first else 0
        drop = profile.drop_front if is_first else 0
        back = -(count + front) % FRAMES_PER_LATENT
        copies = front if profile.copy_front else 0
        last = frames[:, :, -1:]
        frames = torch.cat(
            [
                frames[:, :, :1].expand(-1, -1, copies, -1, -1),
                frames,
                last.expand(-1, -1, back, -1, -1),
            ],
            dim=2,
        )
        with self.timer("encoder"):
            encoder, low = self.refiner.graphs.step(
                "encoder", self.encoder.step, state.encoder, frames
            )
        refiner, (_, sharp) = self.refiner.run_group(state.refiner, low)
        after = replace(state, encoder=encoder, refiner=refiner)
        if state.last_bcthw is not None:
            after = replace(after, last_bcthw=last.clone())
        return after, sharp[:, :, drop : front + count]
