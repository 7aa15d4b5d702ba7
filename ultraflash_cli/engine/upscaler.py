"""The cascade applied to pictures: exact sizes, colour matching, strength."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ultraflash_cli.engine.cascade import Cascade, CascadeState
from ultraflash_cli.engine.gpu_streams import (
    PendingPicture,
    PictureCopier,
    copier_for,
    to_device,
)
from ultraflash_cli.engine.guard import Guard
from ultraflash_cli.engine.layers.colours import match_colours
from ultraflash_cli.engine.layers.resample import lanczos_resize, lanczos_upscale
from ultraflash_cli.engine.pictures import (
    Picture,
    YuvFormat,
    put_frames,
    quantise,
    to_planes,
)
from ultraflash_cli.engine.plan import UpscalePlan

__all__ = ["Upscaler", "UpscalerState"]


@dataclass(frozen=True)
class UpscalerState:
    """The cascade's state, and the source frames whose results are pending."""

    cascade: CascadeState
    held_tchw: Tensor | None
    """Source frames held by the cascade if its encoder runs ahead, else None."""
    deep: bool
    """Whether the scene's frames have 16 bits per sample."""

    @property
    def is_first(self) -> bool:
        """Whether the next group is the scene's first."""
        return self.cascade.is_first


class Upscaler:
    """Upscales a scene as planned; frames out = frames in.

    ``strength`` 1 is the model, 0 exactly the plain Lanczos resize; values between
    blend pixels. ``color`` "match" adjusts the low frequencies of the result to those
    of the source. ``context [1, tokens, text width]`` is the embedding of the prompt,
    for a model with a text path. ``copier`` copies pictures to the host; the default
    suits the cascade's device. With ``yuv`` the results are planes. ``guard`` limits
    how far they depart from the source.
    """

    def __init__(
        self,
        cascade: Cascade,
        plan: UpscalePlan,
        *,
        strength: float = 1.0,
        color: str = "match",
        context: Tensor | None = None,
        copier: PictureCopier | None = None,
        yuv: YuvFormat | None = None,
        guard: Guard | None = None,
    ) -> None:
        assert 0 <= strength <= 1, "strength lies between 0 and 1"
        assert color in ("match", "off"), f"color is match or off, not {color}"
        assert cascade.scale == plan.scale, "the cascade is built for the plan's scale"
        self.cascade = cascade
        self.plan = plan
        self.strength = strength
        self.color = color
        self.context = context
        self.yuv = yuv
        self.guard = guard
        self._copier = copier or copier_for(cascade.device)
        self._rows = _reflect(plan.enlarged[0], plan.padded[0]).to(cascade.device)
        self._columns = _reflect(plan.enlarged[1], plan.padded[1]).to(cascade.device)

    def group_frames(self, *, first: bool) -> int:
        """Return the number of source frames in a group; the first of a scene is
        shorter."""
        profile = self.cascade.profile
        return profile.alignment.group_frames(profile.group_latents, first=first)

    def held(self, state: UpscalerState) -> int:
        """Return the number of input frames whose results are pending."""
        return self.cascade.held(state.cascade)

    def init_state(self, *, seed: int = 0, first_frame: int = 0) -> UpscalerState:
        """Return the state before a scene's first frame, which is frame ``first_frame``
        of the clip."""
        height, width = self.plan.padded
        cascade = self.cascade.init_state(
            height=height,
            width=width,
            seed=seed,
            first_frame=first_frame,
            context=self.context,
        )
        held = None
        if delay := self.cascade.profile.alignment.delay:
            held = torch.zeros((delay, 3, *self.plan.source), device=self.cascade.device)
        return UpscalerState(cascade, held, False)

    def step(
        self, state: UpscalerState, frames: Sequence[Picture]
    ) -> tuple[UpscalerState, list[Picture]]:
        """Upscale a group of frames of the planned source size; return the finished
        frames, in the bit depth of the input.

        A shorter group, which may be empty, ends the scene. All frames of a scene have
        one depth. Consumes ``state``.
        """
        state, done = self.launch(state, frames)
        return state, [picture.result() for picture in done]

    def launch(
        self, state: UpscalerState, frames: Sequence[Picture]
    ) -> tuple[UpscalerState, Sequence[PendingPicture]]:
        """Like ``step``, but without waiting for a GPU: the pictures are still being
        copied."""
        if not len(frames) + self.held(state):
            return state, []
        deep = frames[-1].dtype == np.uint16 if len(frames) else state.deep
        sources = self._sources(state, frames)
        new = sources[self.held(state) :]

        cascade, sharp = self.cascade.step(state.cascade, self._prepare(new))
        done = sharp.shape[2]
        pictures = self._finish(sources[:done], sharp, deep=deep)

        held = state.held_tchw
        if held is not None and done < len(sources):
            held = sources[done:].clone()
        return UpscalerState(cascade, held, deep), pictures

    def warm_up(self) -> None:
        """Upscale and discard one group, so that kernels are compiled and memory is
        allocated before the first frame."""
        black = np.zeros((*self.plan.source, 3), np.uint8)
        self.step(self.init_state(), [black] * self.group_frames(first=True))
        if self.guard is not None:
            self.guard.clear()

    def _sources(self, state: UpscalerState, frames: Sequence[Picture]) -> Tensor:
        """Return the held source frames followed by the new ones, as [T, 3, h, w]."""
        for frame in frames:
            assert frame.shape == (*self.plan.source, 3), (
                f"planned for {self.plan.source}, got {frame.shape}"
            )
        held = self.held(state)
        shape = (held + len(frames), 3, *self.plan.source)
        sources = torch.empty(shape, device=self.cascade.device)
        if held and state.held_tchw is not None:
            sources[:held] = state.held_tchw
        if len(frames):
            put_frames(sources[held:], frames)
        return sources

    def _prepare(self, sources_tchw: Tensor) -> Tensor:
        """Resize as planned and pad by reflection: [T, 3, h, w] to [1, 3, T, H,
        W]."""
        x = sources_tchw
        if not len(x):
            return x.new_empty((1, 3, 0, *self.plan.padded))
        if self.plan.enlarged != self.plan.source:
            x = lanczos_resize(x, *self.plan.enlarged).clamp(0, 1)
        if self.plan.padded != self.plan.enlarged:
            x = x.index_select(2, self._rows).index_select(3, self._columns)
        return x.transpose(0, 1).unsqueeze(0)

    @torch.inference_mode()
    def _finish(
        self, sources_tchw: Tensor, sharp_bcthw: Tensor, *, deep: bool
    ) -> Sequence[PendingPicture]:
        """Crop, reduce, match colours, blend and quantise, frame by frame."""
        with self.cascade.timer("finish"):
            pairs = zip(
                sources_tchw.split(1), sharp_bcthw[0].transpose(0, 1).split(1), strict=True
            )
            blended = (
                self._blend(source, to_device(sharp, source.device))[0]
                for source, sharp in pairs
            )
            if self.yuv is not None:
                form = self.yuv
                return self._copier.copy(to_planes(picture, form) for picture in blended)
            return self._copier.copy(quantise(picture, deep=deep) for picture in blended)

    def _blend(self, source_nchw: Tensor, sharp_nchw: Tensor) -> Tensor:
        if self.strength == 0:
            return self.plain(source_nchw)
        height, width = self.plan.model_size
        picture = sharp_nchw[..., :height, :width]
        if (height, width) != self.plan.target:
            picture = lanczos_resize(picture, *self.plan.target)
        if self.color == "match":
            picture = match_colours(picture, source_nchw)
        if self.strength != 1:
            picture = torch.lerp(self.plain(source_nchw), picture, self.strength)
        if self.guard is None:
            return picture
        return self.guard.hold(picture, source_nchw, lambda: self.plain(source_nchw))

    def plain(self, source_nchw: Tensor) -> Tensor:
        """Return the plain Lanczos resize of source frames to the target, the result at
        strength 0."""
        scale = self.plan.scale
        if self.plan.target == (self.plan.source[0] * scale, self.plan.source[1] * scale):
            return lanczos_upscale(source_nchw, scale)
        return lanczos_resize(source_nchw, *self.plan.target)


def _reflect(size: int, padded: int) -> Tensor:
    """Return source indices for ``padded`` positions, mirrored beyond the last one as
    often as needed."""
    period = max(1, 2 * size - 2)
    return torch.tensor(
        [min(i % period, (period - i % period) if size > 1 else 0) for i in range(padded)]
    )
