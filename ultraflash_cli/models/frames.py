"""The engine's interface for jobs: pictures in, pictures out, and states that can be
saved and loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from ultraflash_cli.buffers import StateContent
from ultraflash_cli.engine.gpu_streams import PendingPicture

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ultraflash_cli.engine.clock import StageClock
    from ultraflash_cli.engine.gpu_streams import PictureCopier
    from ultraflash_cli.engine.guard import Counting
    from ultraflash_cli.engine.pictures import Picture, YuvFormat
    from ultraflash_cli.engine.snapshot import Snapshot
    from ultraflash_cli.engine.text_to_video import TextToVideo, TextToVideoState
    from ultraflash_cli.engine.upscaler import Upscaler, UpscalerState

__all__ = [
    "FrameGenerator",
    "FrameUpscaler",
    "GeneratedFrames",
    "Pictures",
    "UpscaledFrames",
    "as_frame_generator",
    "as_frame_upscaler",
    "finished_picture",
    "saving_bytes",
]

Pictures = Sequence[np.ndarray | PendingPicture]
"""Pictures, finished or still being copied from the device."""

StateT = TypeVar("StateT")

_GPU_WEIGHT = 12
"""Weight of a byte of a state on a GPU: frames are produced much faster there, and the
thread that encodes them also hashes and writes the state."""


class FrameUpscaler(Protocol):
    """A model's interface for upscaling jobs: pictures in, pictures out, with the state
    held by the job."""

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Time spent so far by stage."""
        ...

    def guarded(self) -> "Counting | None":
        """Return the number of pixels so far that departed from the source and were
        blended back, and the number of all; None without a guard."""
        ...

    def group_frames(self, first: bool) -> int:
        """Return the number of frames in a group, either the first one of a scene or a
        later one."""
        ...

    def init_state(self, *, seed: int, first_frame: int) -> Any:
        """Return the state before a scene that begins at frame `first_frame` of the clip."""
        ...

    def step(self, state: Any, frames: "list[np.ndarray]") -> "tuple[Any, Pictures]":
        """Process frames `[H, W, 3]`; return the new state and the finished frames."""
        ...

    def held(self, state: Any) -> int:
        """Return the number of frames whose results are pending after a whole group."""
        ...

    def end(self, state: Any, frames: "list[np.ndarray]") -> "Pictures":
        """End the scene with its last, shorter group, which may be empty; return all
        pending frames."""
        ...

    def state_bytes(self, state: Any) -> int:
        """Return the cost of saving the state in bytes, which depends only on its size.
        Bytes of a state on a GPU count several times.
        """
        ...

    def save_state(self, state: Any) -> StateContent:
        """Return the state as safetensors content, possibly still being copied; the
        state may be overwritten meanwhile."""
        ...

    def load_state(self, content: bytes, *, seed: int, first_frame: int) -> Any:
        """Return the state that `save_state` saved in the scene that begins at `first_frame`."""
        ...


class FrameGenerator(Protocol):
    """A model's interface for generating one clip: pictures out, group by group."""

    @property
    def group_frames(self) -> tuple[int, ...]:
        """Frames of each group of the clip."""
        ...

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Time spent so far by stage."""
        ...

    def init_state(self, *, seed: int, clip: "list[np.ndarray] | None" = None) -> Any:
        """Return the state before the first group; `clip` are frames `[H, W, 3]` of the base size to continue from."""
        ...

    def step(self, state: Any) -> "tuple[Any, Pictures, Pictures]":
        """Generate the next group; return the new state, its pictures and, if
        requested, those at the base size."""
        ...

    def counters(self, state: Any) -> dict[str, int]:
        """Return counts of computed and skipped operations up to this state, by
        name."""
        ...

    def state_bytes(self, state: Any) -> int:
        """Return the cost of saving the state in bytes, like
        ``FrameUpscaler.state_bytes``."""
        ...

    def save_state(self, state: Any) -> StateContent:
        """Return the state as safetensors content, possibly still being copied; the
        state may be overwritten meanwhile."""
        ...

    def load_state(self, content: bytes, *, seed: int) -> Any:
        """Return the state that `save_state` saved."""
        ...


def as_frame_upscaler(upscaler: "Upscaler", timer: "StageClock") -> FrameUpscaler:
    """Return the engine's upscaler with the interface for jobs."""
    return UpscaledFrames(upscaler, timer)


def as_frame_generator(
    video: "TextToVideo", context: "Tensor", base_size: tuple[int, int], timer: "StageClock"
) -> FrameGenerator:
    """Return the engine's text-to-video cascade with the interface for jobs."""
    return GeneratedFrames(video, context, None, base_size, timer, shows_low=video.refiner is None)


def finished_picture(picture: np.ndarray | PendingPicture) -> np.ndarray:
    """Return a picture, waiting for it if it is still being copied."""
    return picture if isinstance(picture, np.ndarray) else picture.result()


class UpscaledFrames:
    """The engine's upscaler, with states as bytes and timed stages."""

    def __init__(self, upscaler: "Upscaler", timer: "StageClock") -> None:
        from ultraflash_cli.engine.snapshot import snapshots_for

        self._upscaler = upscaler
        self._timer = timer
        self._snapshots = snapshots_for(upscaler.cascade.device)

    @property
    def stage_seconds(self) -> dict[str, float]:
        return self._timer.seconds

    def guarded(self) -> "Counting | None":
        guard = self._upscaler.guard
        return None if guard is None else guard.counting()

    def group_frames(self, first: bool) -> int:
        return self._upscaler.group_frames(first=first)

    def init_state(self, *, seed: int, first_frame: int) -> "UpscalerState":
        return self._upscaler.init_state(seed=seed, first_frame=first_frame)

    def step(self, state: "UpscalerState", frames: "list[Picture]") -> "tuple[UpscalerState, Pictures]":
        return self._upscaler.launch(state, frames)

    def end(self, state: "UpscalerState", frames: "list[Picture]") -> "Pictures":
        return self._upscaler.launch(state, frames)[1]

    def held(self, state: "UpscalerState") -> int:
        return self._upscaler.held(state)

    def state_bytes(self, state: "UpscalerState") -> int:
        return saving_bytes(_kept_bytes(state), self._upscaler.cascade.device.type)

    def save_state(self, state: "UpscalerState") -> "Snapshot":
        return self._snapshots.take(_tensors(state))

    def load_state(self, content: bytes, *, seed: int, first_frame: int) -> "UpscalerState":
        from safetensors.torch import load

        return _filled(self.init_state(seed=seed, first_frame=first_frame), load(content))


def saving_bytes(state_bytes: int, device: str) -> int:
    """Return the cost of saving a state of this many bytes on a device, see
    ``FrameUpscaler.state_bytes``."""
    return state_bytes * (_GPU_WEIGHT if device.startswith("cuda") else 1)


def _kept_bytes(state: object) -> int:
    """Return the bytes of a state's tensors without contexts, which are not saved."""
    from torch import Tensor

    from ultraflash_cli.engine.layers.context import without_context
    from ultraflash_cli.engine.stage import state_leaves

    leaves = without_context(state_leaves(state)).values()
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


def _tensors(state: object) -> "dict[str, Tensor]":
    """Return the leaves of a state on their devices."""
    from ultraflash_cli.engine.cache import without_spares
    from ultraflash_cli.engine.layers.context import without_context
    from ultraflash_cli.engine.stage import as_tensor, state_leaves

    leaves = without_context(without_spares(state_leaves(state))).items()
    return {name: as_tensor(leaf) for name, leaf in leaves if leaf is not None}


def _filled(fresh: "StateT", kept: "dict[str, Tensor]") -> "StateT":
    """Return a state structured like a fresh one, from the tensors of `_tensors`."""
    from ultraflash_cli.engine.cache import with_spares
    from ultraflash_cli.engine.layers.context import with_context
    from ultraflash_cli.engine.stage import state_from_tensors, state_leaves

    leaves = state_leaves(fresh)
    return state_from_tensors(fresh, with_context(with_spares(kept, leaves), leaves))


class GeneratedFrames:
    """The engine's text-to-video cascade, with pictures as output, states as bytes and
    timed stages. With ``yuv`` the pictures are planes, with ``low_yuv`` those at the
    base size.
    """

    def __init__(
        self,
        video: "TextToVideo",
        context: "Tensor",
        encoder: "nn.Module | None",
        base_size: tuple[int, int],
        timer: "StageClock",
        *,
        shows_low: bool,
        yuv: "YuvFormat | None" = None,
        low_yuv: "YuvFormat | None" = None,
    ) -> None:
        from ultraflash_cli.engine.gpu_streams import copier_for
        from ultraflash_cli.engine.snapshot import snapshots_for

        self._video = video
        self._context = context
        self._encoder = encoder
        self._base_size = base_size
        self._timer = timer
        self._shows_low = shows_low
        self._yuv, self._low_yuv = yuv, low_yuv
        self._copier, self._low_copier = (copier_for(video.frames_device) for _ in range(2))
        self._snapshots = snapshots_for(video.device, video.frames_device)

    @property
    def cascade(self) -> "tuple[TextToVideo, Tensor]":
        """The cascade, and the embedding of its prompt."""
        return self._video, self._context

    @property
    def group_frames(self) -> tuple[int, ...]:
        return self._video.plan.pixel_frames

    @property
    def stage_seconds(self) -> dict[str, float]:
        return self._timer.seconds

    def init_state(self, *, seed: int, clip: "list[Picture] | None" = None) -> "TextToVideoState":
        from ultraflash_cli.engine.schedule import LATENT_PX

        height, width = (side // LATENT_PX for side in self._base_size)
        prefix = self._encode(clip) if clip else None
        return self._video.init_state(height=height, width=width, seed=seed, context=self._context, prefix_bcthw=prefix)

    def step(self, state: "TextToVideoState") -> "tuple[TextToVideoState, Pictures, Pictures]":
        state, group = self._video.step(state)
        with self._timer("finish"):
            low = self._pictures(group.low_frames_bcthw, self._low_copier, self._low_yuv) if self._shows_low else []
            if group.frames_bcthw is None:
                return state, low, []
            return state, self._pictures(group.frames_bcthw, self._copier, self._yuv), low

    def counters(self, state: "TextToVideoState") -> dict[str, int]:
        generator = state.generator
        counters = {
            "groups": state.groups,
            "chunks": generator.chunks,
            "generator_passes": generator.passes,
            "refreshes_skipped": generator.refreshes_skipped,
        }
        sr_dit = getattr(state.refiner, "sr_dit", None)
        if sr_dit is not None:
            counters["sr_blocks_remembered"] = sr_dit.caches[0].fill
        return counters

    def state_bytes(self, state: "TextToVideoState") -> int:
        return saving_bytes(_kept_bytes(state), self._video.device.type)

    def save_state(self, state: "TextToVideoState") -> "Snapshot":
        self._video.settle()
        return self._snapshots.take(_tensors(state))

    def load_state(self, content: bytes, *, seed: int) -> "TextToVideoState":
        from safetensors.torch import load

        return _filled(self.init_state(seed=seed), load(content))

    def _encode(self, clip: "list[Picture]") -> "Tensor":
        """Return the latents of a clip of 1 + 4k frames of the base size."""
        import torch

        from ultraflash_cli.engine.pictures import to_tensor
        from ultraflash_cli.engine.stages.encoder import Encoder

        encoder, profile = self._encoder, self._video.profile
        assert isinstance(encoder, Encoder), "a clip to go on from comes with an encoder"
        height, width = self._base_size
        device = next(encoder.parameters()).device
        frames = torch.stack([to_tensor(picture) for picture in clip], dim=1)[None].to(device)
        padded = profile.alignment.pad(frames, first=True)
        with torch.inference_mode(), self._timer("encoder"):
            return encoder.step(encoder.init_state(batch=1, height=height, width=width), padded)[1]

    @staticmethod
    def _pictures(
        frames_bcthw: "Tensor | None", copier: "PictureCopier", yuv: "YuvFormat | None"
    ) -> "Sequence[PendingPicture]":
        from ultraflash_cli.engine.pictures import quantise, to_planes

        if frames_bcthw is None:
            return []
        if yuv is not None:
            return copier.copy(to_planes(frame, yuv) for frame in frames_bcthw[0].unbind(1))
        return copier.copy(quantise(frame, deep=False) for frame in frames_bcthw[0].unbind(1))
