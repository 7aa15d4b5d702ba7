"""The cascade of a clip, group by group: encode, upsample, refine, decode; or the pixel
path alone."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.pixel_refiner import PixelRefiner, PixelRefinerState
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.refiner import Refiner, RefinerState
from ultraflash_cli.engine.stages.encoder import Encoder
from ultraflash_cli.engine.stages.wan_vae import WanVaeEncoder

__all__ = ["Cascade", "CascadeState"]


@dataclass(frozen=True)
class CascadeState:
    """The states of all stages."""

    encoder: Any
    """The encoder's state; None without an encoder."""
    refiner: RefinerState | PixelRefinerState
    last_bcthw: Tensor | None
    """The latest frame, kept if the encoder runs ahead to pad the end of a scene."""
    late_bcthw: Tensor | None = None
    """The frames by which the decoder lags behind the encoder, if it reads frames."""

    @property
    def is_first(self) -> bool:
        """Whether the next group is the scene's first."""
        return self.refiner.groups == 0


class Cascade:
    """A composite stage: frames [B, 3, T, H, W] in [0, 1] to [B, 3, T, scale * H, scale
    * W], one for one.

    A step returns the frames of its group, except for the last ``delay`` of the
    alignment, which the next step returns. If the refiner reads frames, there is no
    encoder.
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
        """Device of the networks."""
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

        ``height`` and ``width`` are those of the frames, multiples of the profile's
        ``multiple_px``; ``first_frame`` is the scene's position in the clip, on which
        its noise depends; ``context`` is the prompt's embedding.
        """
        multiple = self.profile.multiple_px
        assert height % multiple == 0 and width % multiple == 0, (
            f"the caller pads frames to multiples of {multiple}"
        )

        delay = self.profile.alignment.delay
        last = torch.zeros((batch, 3, 1, height, width), device=self.device)
        late = last.repeat(1, 1, delay, 1, 1) if delay and self._reads_frames else None
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
            last_bcthw=last if delay else None,
            late_bcthw=late,
        )

    def group_size(self, state: CascadeState) -> int:
        """Return the frames of the next group; the first of a scene is shorter."""
        profile = self.profile
        return profile.alignment.group_frames(profile.group_latents, first=state.is_first)

    def held(self, state: CascadeState) -> int:
        """Return the number of input frames whose results are pending."""
        return 0 if state.is_first else self.profile.alignment.delay

    @torch.inference_mode()
    def step(self, state: CascadeState, group: Tensor) -> tuple[CascadeState, Tensor]:
        """Return the frames completed by a group; consumes ``state``.

        A shorter group, which may be empty, ends the scene: all remaining frames are
        returned.
        """
        size = self.group_size(state)
        assert group.shape[2] <= size, f"a group has {size} frames, got {group.shape[2]}"
        if group.shape[2] == size:
            return self._run_group(state, group)
        return self._end(state, group)

    def _end(self, state: CascadeState, rest: Tensor) -> tuple[CascadeState, Tensor]:
        """Run the rest of a scene; its last frame is repeated to compensate for the
        encoder's lead."""
        batch, _, count, height, width = rest.shape
        if not count + self.held(state):
            return state, rest.new_empty(
                batch, 3, 0, self.scale * height, self.scale * width
            )
        if state.last_bcthw is not None:
            last = rest[:, :, -1:] if count else state.last_bcthw
            copies = last.expand(-1, -1, self.profile.alignment.delay, -1, -1)
            rest = torch.cat([rest, copies], dim=2)

        sharp: list[Tensor] = []
        while rest.shape[2]:
            size = self.group_size(state)
            state, frames = self._run_group(state, rest[:, :, :size])
            sharp.append(frames)
            rest = rest[:, :, size:]
        return state, torch.cat(sharp, dim=2)

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
        alignment = self.profile.alignment
        first = state.is_first

        with self.timer("encoder"):
            padded = alignment.pad(frames, first=first)
            graphs = self.refiner.graphs
            encoder, low = graphs.step("encoder", self.encoder.step, state.encoder, padded)
        shown, late = self._shown(state, frames) if self._reads_frames else (None, None)
        refiner, (_, raw) = self.refiner.run_group(state.refiner, low, shown)

        last = None if state.last_bcthw is None else frames[:, :, -1:].clone()
        after = replace(
            state, encoder=encoder, refiner=refiner, last_bcthw=last, late_bcthw=late
        )
        return after, alignment.trim(raw, first=first, frames=frames.shape[2])

    @property
    def _reads_frames(self) -> bool:
        """Whether the decoder reads low-resolution frames next to latents."""
        refiner = self.refiner
        return isinstance(refiner, Refiner) and refiner.decoder.config.reads_low_frames

    def _shown(self, state: CascadeState, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the source frames of a group's raw frames, and those at the start of
        the next group."""
        alignment = replace(self.profile.alignment, copy_front=True)
        padded = alignment.pad(frames, first=state.is_first)
        if state.late_bcthw is None:
            return padded, None
        late, delay = state.late_bcthw, alignment.delay
        if state.is_first:
            late = frames[:, :, :1].expand(-1, -1, delay, -1, -1)
        behind = torch.cat([late.to(padded), padded], dim=2)
        return behind[:, :, :-delay], behind[:, :, -delay:].clone()
