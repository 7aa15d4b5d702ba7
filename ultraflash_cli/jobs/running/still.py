"""One frame of a clip, enlarged by a Lanczos filter and by the model, as two PNG
files."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from ultraflash_cli.errors import InputError, UsageError
from ultraflash_cli.jobs.planning.target import check_folder, followed
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.jobs.running.prepare import prepare
from ultraflash_cli.video.color import resize_rgb
from ultraflash_cli.video.cuts import CutDetector
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.partial import output_errors
from ultraflash_cli.video.stills import write_png

__all__ = ["StillReport", "run_still"]

_BEFORE = 9
"""Number of preceding frames to process, so that the model's state is close to that of
a whole run."""


@dataclass(frozen=True, kw_only=True)
class StillReport:
    """Paths of the two pictures."""

    input: str
    output: str
    plain_output: str
    """The same frame, enlarged by a Lanczos filter."""
    time_s: float
    """Time of the frame, relative to the clip's first one."""
    width: int
    height: int
    model: str


def run_still(job: UpscaleJob, say: Callable[[str], None]) -> StillReport:
    """Write the two pictures. Raises UsageError, InputError, OutputError and the errors
    of loading the model."""
    assert job.preview is not None, "a still is a preview"
    if job.stdout is not None or job.pipe is not None:
        raise UsageError("--preview frame reads a file and writes two; use files instead of -")
    _, _, place = job.preview.partition("@")
    named = job.output
    if named is not None and (named.suffix.lower() != ".png" or re.search(r"%\d*d", named.name)):
        raise UsageError(f"--preview frame writes PNG images, but {named} is not one; use -o FRAME.png")
    # A second from there contains at least one frame in every clip that moves.
    prepared = prepare(replace(job, output=None, preview=f"1s@{place or 0}"), to_write=False)
    output = (
        followed(named)
        if named is not None
        else (job.folder or job.source.parent) / (f"{job.source.stem}_{prepared.res}_frame.png")
    )
    plain = output.with_stem(f"{output.stem}_lanczos")
    for path in (output, plain):
        check_folder(path)
        if path.exists() and not job.overwrite:
            raise UsageError(f"{path} exists; use -y to replace it, or -o for another file")

    say(f"{job.source.name}: one frame with model {prepared.model}")
    frames, time_s = _frames_up_to(prepared)
    height_px, width_px = prepared.plan.target
    made = _upscaled(prepared, frames)
    with output_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    for path, picture in ((plain, resize_rgb(frames[-1], width_px, height_px)), (output, made)):
        write_png(path, _turned(picture, prepared))
    turned = prepared.info.rotation_deg in (90, 270)
    return StillReport(
        input=str(job.source),
        output=str(output),
        plain_output=str(plain),
        time_s=float(time_s),
        width=height_px if turned else width_px,
        height=width_px if turned else height_px,
        model=prepared.model,
    )


def _frames_up_to(prepared: Prepared) -> tuple[list[np.ndarray], Fraction]:
    """Return the frame shown at the position, preceded by earlier frames of its scene,
    and its time."""
    assert prepared.window is not None, "a place was asked for"
    info, at_s = prepared.info, prepared.window[0]
    detector = CutDetector() if prepared.job.cuts == "auto" else None
    frames: list[np.ndarray] = []
    starts: list[bool] = []
    time_s = Fraction(0)
    for frame in read_frames(info, warn=lambda message: None):
        if frames and frame.pts * info.time_base > at_s:
            break
        frames = [*frames[-_BEFORE:], frame.rgb_hwc]
        starts += detector.push(frame.rgb_hwc) if detector is not None else [False]
        time_s = (frame.pts - (info.start_pts or 0)) * info.time_base
    if not frames:
        raise InputError(f"{info.path}: no frame at that time")
    starts += detector.flush() if detector is not None else []
    recent = starts[-len(frames) :]
    last_cut = max((index for index, starts_scene in enumerate(recent) if starts_scene), default=0)
    return frames[last_cut:], time_s


def _upscaled(prepared: Prepared, frames: list[np.ndarray]) -> np.ndarray:
    """Return the last of some frames as enlarged by the model."""
    # Side by side, so that pictures are returned as RGB.
    as_rgb = replace(prepared, job=replace(prepared.job, side_by_side=True))
    model = Models().upscaler(as_rgb).model
    state = model.init_state(seed=prepared.job.seed, first_frame=0)
    done: list[object] = []
    size, rest = model.group_frames(True), list(frames)
    while len(rest) >= size:
        state, pictures = model.step(state, rest[:size])
        done += pictures
        size, rest = model.group_frames(False), rest[size:]
    done += model.end(state, rest)
    last = done[-1]
    result = getattr(last, "result", None)
    picture = last if result is None else result()
    assert isinstance(picture, np.ndarray), "pictures are arrays"
    return picture


def _turned(rgb_hwc: np.ndarray, prepared: Prepared) -> np.ndarray:
    info = prepared.info
    shown = np.fliplr(rgb_hwc) if info.mirrored else rgb_hwc
    return np.ascontiguousarray(np.rot90(shown, -(info.rotation_deg // 90)))
