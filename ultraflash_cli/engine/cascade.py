"""The cascade: encode, upsample, refine, decode, group by group."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, group_frames, group_noise
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderInputs, DecoderState
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderState
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler, LatentUpsamplerState
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitInputs, SrDitState

__all__ = ["Cascade", "CascadeState"]

StageTimer = Callable[[str], AbstractContextManager[object]]
"""Given a stage's name, a context that is open while the stage computes."""


@dataclass(frozen=True)
class CascadeState:
    """The states of all stages, the frames that wait for their group, and the noise's coordinates."""

    encoder: EncoderState
    upsampler: LatentUpsamplerState
    sr_dit: SrDitState | None
    decoder: DecoderState
    queue_bcthw: Tensor
    queued: int
    groups: int
    seed: int
    first_frame: int


class Cascade:
    """A stage made of stages: frames [B, 3, T, H, W] in [0, 1] to [B, 3, T, scale * H, scale * W], one for one."""

    def __init__(
        self,
        profile: Profile,
        encoder: Encoder,
        upsampler: LatentUpsampler,
        sr_dit: SrDit | None,
        decoder: Decoder,
        *,
        timer: StageTimer | None = None,
    ) -> None:
        self.profile = profile
        self.encoder = encoder
        self.upsampler = upsampler
        self.sr_dit = sr_dit
        self.decoder = decoder
        self.timer: StageTimer = timer or (lambda stage: nullcontext())

    @property
    def scale(self) -> int:
        """Growth per side."""
        return self.upsampler.config.scale

    def init_state(
        self, *, batch: int = 1, height: int, width: int, seed: int = 0, first_frame: int = 0
    ) -> CascadeState:
        """Return the state before a scene's first frame.

        ``height`` and ``width`` are the frames', multiples of the profile's ``multiple_px``; ``first_frame`` is
        the scene's place in the clip, which its noise depends on.
        """
        multiple = self.profile.multiple_px
        assert height % multiple == 0 and width % multiple == 0, f"the caller pads frames to multiples of {multiple}"
        high, wide = height * self.scale // 8, width * self.scale // 8
        weight = next(self.encoder.parameters())
        longest = group_frames(self.profile.group_latents, self.profile.pad_front, first=False)
        return CascadeState(
            encoder=self.encoder.init_state(batch=batch, height=height, width=width),
            upsampler=self.upsampler.init_state(batch=batch, height=height // 8, width=width // 8),
            sr_dit=self.sr_dit.init_state(batch=batch, height=high, width=wide) if self.sr_dit else None,
            decoder=self.decoder.init_state(batch=batch, height=high, width=wide),
            queue_bcthw=torch.zeros((batch, 3, longest, height, width), device=weight.device),
            queued=0,
            groups=0,
            seed=seed,
            first_frame=first_frame,
        )

    @torch.inference_mode()
    def step(self, state: CascadeState, inputs: Tensor) -> tuple[CascadeState, Tensor]:
        """Take in frames; return the frames of all groups that are complete. Consumes ``state``."""
        frames = torch.cat([state.queue_bcthw[:, :, : state.queued], inputs], dim=2)
        out = [state.decoder.empty_bcthw]
        while frames.shape[2] >= (size := self._group_frames(state)):
            state, sharp = self._run_group(state, frames[:, :, :size])
            out.append(sharp)
            frames = frames[:, :, size:]
        state.queue_bcthw[:, :, : frames.shape[2]] = frames.clone()
        whole = out[-1] if len(out) <= 2 else torch.cat(out, dim=2)
        return replace(state, queued=frames.shape[2]), whole

    @torch.inference_mode()
    def flush(self, state: CascadeState) -> Tensor:
        """Return the frames that still wait, as the end of the scene; the last one is repeated to fill a latent."""
        if state.queued == 0:
            return state.decoder.empty_bcthw
        return self._run_group(state, state.queue_bcthw[:, :, : state.queued])[1]

    def _group_frames(self, state: CascadeState) -> int:
        return group_frames(self.profile.group_latents, self.profile.pad_front, first=state.groups == 0)

    def _run_group(self, state: CascadeState, frames: Tensor) -> tuple[CascadeState, Tensor]:
        """Run a group of frames (a short one only at a scene's end) through all stages."""
        count = frames.shape[2]
        front = self.profile.pad_front if state.groups == 0 else 0
        back = -(count + front) % FRAMES_PER_LATENT
        frames = torch.cat(
            [frames[:, :, :1].expand(-1, -1, front, -1, -1), frames, frames[:, :, -1:].expand(-1, -1, back, -1, -1)],
            dim=2,
        )
        with self.timer("encoder"):
            encoder, low = self.encoder.step(state.encoder, frames)
        with self.timer("upsampler"):
            upsampler, latents = self.upsampler.step(state.upsampler, low)
        sr_dit = state.sr_dit
        if self.sr_dit is not None and sr_dit is not None:
            with self.timer("sr_dit"):
                noise = group_noise(
                    tuple(latents.shape),
                    seed=state.seed,
                    stage="sr_dit",
                    first_frame=state.first_frame,
                    group=state.groups,
                ).to(latents)
                sr_dit, clean = self.sr_dit.step(sr_dit, SrDitInputs(noise, latents))
                short = clean.shape[2] < latents.shape[2]
                latents = torch.cat([clean, self.sr_dit.flush(sr_dit)], dim=2) if short else clean
        with self.timer("decoder"):
            skip = frames if self.profile.decoder.skip else None
            decoder, sharp = self.decoder.step(state.decoder, DecoderInputs(latents, skip))
        after = replace(
            state, encoder=encoder, upsampler=upsampler, sr_dit=sr_dit, decoder=decoder, groups=state.groups + 1
        )
        return after, sharp[:, :, front : front + count]
