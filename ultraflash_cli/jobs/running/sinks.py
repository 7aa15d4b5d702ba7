"""Write finished pictures to a segment: repeated or dropped as needed, with
transparency, optionally side by side."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.jobs.running.upscaling import SourceFrame
from ultraflash_cli.video.color import Picture, as_picture, resize_rgb
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.grain import GrainMaker
from ultraflash_cli.video.segment import SegmentWriter
from ultraflash_cli.video.segment_file import SegmentFile, SegmentSink

__all__ = ["ThinnedSegment", "writer_of"]


class ThinnedSegment:
    """A segment that may contain no frame, in which case no encoder is opened and no
    file is created."""

    def __init__(self, path: Path, spec: EncodeSpec) -> None:
        self._path = path
        self._spec = spec
        self._writer: SegmentWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)

    def write(self, frame: Frame) -> None:
        if self._writer is None:
            self._writer = SegmentWriter(self._path, self._spec)
        self._writer.write(frame)

    def close(self) -> SegmentFile | None:
        return self._writer.close() if self._writer is not None else None


def writer_of(prepared: Prepared) -> Callable[[SegmentSink, SourceFrame, Picture], None]:
    """Return the function that writes a finished picture to a segment, once for each
    time it is shown."""
    compose = _side_by_side(prepared) if prepared.job.side_by_side else None

    maker = _grain_maker(prepared)

    def write(sink: SegmentSink, source: SourceFrame, sharp_hwc: Picture) -> None:
        frame = source.frame
        times = ((frame.pts, frame.duration),) if source.times is None else source.times
        if not times:
            return
        if maker is not None:
            sharp_hwc = maker.add(sharp_hwc, source.number)
        picture = compose(frame.rgb_hwc, sharp_hwc) if compose is not None else sharp_hwc
        alpha_hw = None
        if frame.alpha_hw is not None:
            alpha_hw = _enlarged(frame.alpha_hw, sharp_hwc)
            alpha_hw = compose(frame.alpha_hw, alpha_hw) if compose is not None else alpha_hw
        for pts, duration in times:
            sink.write(Frame(pts, duration, picture, alpha_hw))

    return write


def _grain_maker(prepared: Prepared) -> GrainMaker | None:
    reading, plan = prepared.reading, prepared.plan
    if reading.grain is None or not reading.grain_is_kept:
        return None
    (source_h, source_w), (target_h, target_w) = plan.source, plan.target
    return GrainMaker(
        reading.grain, seed=prepared.job.seed, source_wh=(source_w, source_h), target_wh=(target_w, target_h)
    )


def _side_by_side(prepared: Prepared) -> Callable[[Picture, Picture], Picture]:
    """Return the function that puts plain resampling on the left and the result on the
    right, also for transparency."""
    rotation = prepared.info.rotation_deg
    axis = 0 if rotation in (90, 270) else 1
    left_first = rotation in (0, 270)

    def compose(source: Picture, sharp: Picture) -> Picture:
        plain = _enlarged(source, sharp)
        return as_picture(np.concatenate([plain, sharp] if left_first else [sharp, plain], axis=axis))

    return compose


def _enlarged(source: Picture, sharp: Picture) -> Picture:
    """Resample a picture `[H, W, 3]`, or its transparency `[H, W]`, to the size of the
    result."""
    height_px, width_px = sharp.shape[:2]
    if source.ndim == 3:
        return resize_rgb(source, width_px, height_px)
    return as_picture(resize_rgb(as_picture(np.dstack([source] * 3)), width_px, height_px)[:, :, 0])
