"""Turn low-resolution latents into sharp frames: upsample, refine in one step and
decode, group by group. A model without a high-resolution latent path uses a
``PixelRefiner`` instead.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ultraflash_cli.engine.clock import StageTimer, untimed
from ultraflash_cli.engine.gpu_streams import HostCopy, to_device, to_host
from ultraflash_cli.engine.graphs import EAGER, Graphs
from ultraflash_cli.engine.layers.low_frames import by_latent
from ultraflash_cli.engine.layers.memory_block import MemoryState
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import NoiseSource, group_noise
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderInputs
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitInputs, SrDitState

__all__ = ["RefinedGroup", "Refiner", "RefinerState"]


@dataclass(frozen=True)
class RefinerState:
    """The states of the three stages, and the coordinates of the noise."""

    upsampler: MemoryState
    sr_dit: SrDitState | None
    """State of the SR transformer; None without one."""
    decoder: MemoryState
    groups: int
    """Number of groups refined."""
    seed: int
    """Seed of the noise."""
    first_frame: int
    """The scene's position in the clip, on which its noise depends."""


class RefinedGroup(NamedTuple):
    """The result of a group."""

    latents_bcthw: Tensor | None
    """High-resolution latents ``[B, C, T, scale * H, scale * W]``; None if the model
    has none."""
    frames_bcthw: Tensor
    """All raw frames ``[B, 3, 4T, H', W']``, unclamped; the caller drops a stream's
    first ones. On the host if they are decoded in pieces."""


class Refiner:
    """The part of the cascade shared by upscaling and generation (reference/cascade.md
    3 to 6, 8).

    Takes latents, not frames.

    ``decode_latents`` limits how many latents are decoded at a time and moves their
    frames to host memory; the result is the same. ``graphs`` runs the stage steps.
    """

    def __init__(
        self,
        profile: Profile,
        upsampler: LatentUpsampler,
        sr_dit: SrDit | None,
        decoder: Decoder,
        *,
        decode_latents: int | None = None,
        timer: StageTimer = untimed,
        noise: NoiseSource = group_noise,
        graphs: Graphs = EAGER,
    ) -> None:
        self.reads_frames = False
        self.profile = profile
        self.decode_latents = decode_latents
        self.upsampler = upsampler
        self.sr_dit = sr_dit
        self.decoder = decoder
        self.timer = timer
        self.noise = noise
        self.graphs = graphs

    @property
    def scale(self) -> int:
        """Growth per side."""
        return self.upsampler.config.scale

    def init_state(
        self,
        *,
        batch: int = 1,
        height: int,
        width: int,
        seed: int = 0,
        first_frame: int = 0,
        context: Tensor | None = None,
    ) -> RefinerState:
        """Return the state before a scene's first group, for low-resolution latents of
        ``height`` x ``width``.

        ``context [B or 1, tokens, text width]`` is the prompt's embedding (None: no
        prompt); the noise depends on ``seed`` and ``first_frame``, the scene's position
        in the clip.
        """
        high, wide = height * self.scale, width * self.scale
        if self.sr_dit is not None and not self.sr_dit.config.text_len:
            context = None  # the prompt is only for the generator
        return RefinerState(
            upsampler=self.upsampler.init_state(batch=batch, height=height, width=width),
            sr_dit=self.sr_dit.init_state(
                batch=batch, height=high, width=wide, context=context
            )
            if self.sr_dit
            else None,
            decoder=self.decoder.init_state(batch=batch, height=high, width=wide),
            groups=0,
            seed=seed,
            first_frame=first_frame,
        )

    @torch.inference_mode()
    def run_group(
        self, state: RefinerState, low_bcthw: Tensor, shown_bcthw: Tensor | None = None
    ) -> tuple[RefinerState, RefinedGroup]:
        """Run one group of low-resolution latents through all stages; consumes
        ``state``.

        A group is at most the profile's ``group_latents`` long. ``shown_bcthw`` are the
        corresponding low-resolution frames [B, 3, 4T, 8H, 8W] in [0, 1], for a decoder
        that reads them.
        """
        with self.timer("upsampler"):
            upsampler, latents = self.graphs.step(
                "upsampler", self.upsampler.step, state.upsampler, low_bcthw
            )
        state = replace(state, upsampler=upsampler)
        if self.sr_dit is not None and state.sr_dit is not None:
            with self.timer("sr_dit"):
                sr_dit, latents = self._sharpen(self.sr_dit, state.sr_dit, latents, state)
            state = replace(state, sr_dit=sr_dit)
        with self.timer("decoder"):
            decoder, frames = self._decode(state.decoder, latents, shown_bcthw)
        return replace(state, decoder=decoder, groups=state.groups + 1), RefinedGroup(
            latents, frames
        )

    def _decode(
        self, state: MemoryState, latents: Tensor, shown: Tensor | None
    ) -> tuple[MemoryState, Tensor]:
        count = self.decode_latents or latents.shape[2]
        parts: list[Tensor | DecoderInputs] = list(latents.split(count, dim=2))
        if shown is not None and self.decoder.config.reads_low_frames:
            low = by_latent(shown).split(count, dim=2)
            pairs = zip(latents.split(count, dim=2), low, strict=True)
            parts = [DecoderInputs(*pair) for pair in pairs]
        if self.decode_latents is None:
            return self.graphs.step("decoder", self.decoder.step, state, parts[0])

        pieces: list[HostCopy] = []
        for piece in parts:
            state, frames = self.graphs.step("decoder", self.decoder.step, state, piece)
            pieces.append(to_host(frames))
        return state, torch.cat([piece.result() for piece in pieces], dim=2)

    def _sharpen(
        self, sr_dit: SrDit, before: SrDitState, cond: Tensor, state: RefinerState
    ) -> tuple[SrDitState, Tensor]:
        """Take the one step from noise to clean latents."""
        share = self.profile.condition_noise
        if share > 0:
            cond = (1 - share) * cond + share * self._draw("sr_condition", cond, state)
        group = SrDitInputs(self._draw("sr_dit", cond, state), cond)
        remembered = sr_dit.config.kv_len_after(before.groups)
        return self.graphs.step("sr_dit", sr_dit.step, before, group, key=remembered)

    def _draw(self, stage: str, like: Tensor, state: RefinerState) -> Tensor:
        noise = self.noise(
            tuple(like.shape),
            seed=state.seed,
            stage=stage,
            first_frame=state.first_frame,
            group=state.groups,
        )
        return to_device(noise, like.device).to(like.dtype)
