"""Run a model group by group like a job: pictures are copied to the host while the next
group runs."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ultraflash_cli.bench.cases import drifting_frames
from ultraflash_cli.engine.gpu_streams import PendingPicture, copier_for
from ultraflash_cli.engine.graphs import Graphs
from ultraflash_cli.engine.pictures import quantise
from ultraflash_cli.engine.schedule import LATENT_PX
from ultraflash_cli.engine.text_to_video import TextToVideo
from ultraflash_cli.engine.upscaler import Upscaler

__all__ = ["DrawnStream", "Stream", "UpscaledStream"]


class Stream(Protocol):
    """A model that processes a clip, one group at a time."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        ...

    @property
    def graphs(self) -> Sequence[Graphs]:
        """Runner of the stages' steps."""
        ...

    def next_group(self) -> int:
        """Start the next group and return its number of frames, 0 at the end of the
        clip; waits for the previous group."""
        ...

    def finish(self) -> None:
        """Wait until every picture is on the host."""
        ...


class _Leaving:
    """Pictures of the last group, still being copied to the host."""

    def __init__(self) -> None:
        self._group: Sequence[PendingPicture] = ()

    def send(self, group: Sequence[PendingPicture]) -> None:
        before, self._group = self._group, group
        for picture in before:
            picture.result()


class UpscaledStream:
    """An endless clip of drifting frames through an upscaler; pictures are uint8 ``[height, width, 3]``."""

    def __init__(self, upscaler: Upscaler) -> None:
        height_px, width_px = upscaler.plan.source
        target = upscaler.plan.target
        self.size_px = (target[1], target[0])
        self.graphs = (upscaler.cascade.refiner.graphs,)
        self._upscaler = upscaler
        self._source: Iterator[np.ndarray] = drifting_frames(width_px, height_px)
        self._state = upscaler.init_state()
        self._leaving = _Leaving()

    def next_group(self) -> int:
        """Upscale the next group of the clip and return the number of finished
        frames."""
        size = self._upscaler.group_frames(first=self._state.is_first)
        frames = list(islice(self._source, size))
        self._state, done = self._upscaler.launch(self._state, frames)
        self._leaving.send(done)
        return len(done)

    def finish(self) -> None:
        """Wait until every picture is on the host."""
        self._leaving.send(())


class DrawnStream:
    """A generated clip with the length of the video's plan."""

    def __init__(self, video: TextToVideo, base_size: tuple[int, int], context: Tensor | None) -> None:
        height_px, width_px = base_size
        scale = video.refiner.scale if video.refiner else 1
        self.size_px = (width_px * scale, height_px * scale)
        self.graphs = (video.sampler.graphs, *([video.refiner.graphs] if video.refiner else []))
        self._video = video
        self._state = video.init_state(height=height_px // LATENT_PX, width=width_px // LATENT_PX, context=context)
        self._copier = copier_for(video.frames_device)
        self._leaving = _Leaving()

    @torch.inference_mode()
    def next_group(self) -> int:
        """Generate the next group of the plan."""
        if self._state.groups == len(self._video.plan.groups):
            return 0
        self._state, group = self._video.step(self._state)
        frames = group.low_frames_bcthw if group.frames_bcthw is None else group.frames_bcthw
        assert frames is not None, "something makes frames"
        with self._video.timer("finish"):
            done = self._copier.copy(quantise(frame, deep=False) for frame in frames[0].unbind(1))
        self._leaving.send(done)
        return len(done)

    def finish(self) -> None:
        """Wait until every picture is on the host; work started ahead must not outlive
        its buffers."""
        self._video.settle()
        self._leaving.send(())
