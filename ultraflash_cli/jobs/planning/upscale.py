"""Check and plan an upscale before a model is loaded, cheapest checks first."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ultraflash_cli.engine.plan import LARGEST_SIDE_PX, SHORT_SIDES, WORTHWHILE, UpscalePlan, plan_upscale, read_res
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.host import check_address_space, usable_cores
from ultraflash_cli.jobs.planning.feed import expected_fps
from ultraflash_cli.jobs.planning.guarding import GUARD_LEVELS, check_guard
from ultraflash_cli.jobs.planning.inputs import (
    find_input,
    first_number,
    input_bytes,
    input_identity,
    is_photo,
    made_place,
    may_be_photo,
    with_what_can_be_copied,
)
from ultraflash_cli.jobs.planning.models import ModelFacts, choose_model
from ultraflash_cli.jobs.planning.notes import content_warnings, plan_warnings
from ultraflash_cli.jobs.planning.options import ENCODERS, SharedSettings, UpscalingOptions
from ultraflash_cli.jobs.planning.outputs import asked_suffix, check_pattern, example_suffix, made_name, makes_pictures
from ultraflash_cli.jobs.planning.restoring import check_restoring, reading_of, shape_warning, with_shape
from ultraflash_cli.jobs.planning.target import (
    check_made_names,
    check_space,
    check_target,
    check_temp,
    encoded_bytes,
    followed,
    is_pictures,
    link_notes,
    output_label,
    stream_target,
    used_bytes,
)
from ultraflash_cli.jobs.planning.window import Window, choose_window
from ultraflash_cli.jobs.resume.work_folder import temp_work_folder, unfinished_work, work_folder

if TYPE_CHECKING:
    from ultraflash_cli.video.containers import StreamPlan
    from ultraflash_cli.video.encode import EncodeSpec
    from ultraflash_cli.video.mending import Mending
    from ultraflash_cli.video.pipe import Pipe
    from ultraflash_cli.video.probe import ClipInfo
    from ultraflash_cli.video.source import Source

__all__ = [
    "ENCODERS",
    "NAMELESS",
    "Prepared",
    "UpscaleJob",
    "default_res",
    "estimate_frames",
    "prepare",
]

_PARTS = ("encoder", "upsampler", "sr_dit", "decoder", "text_encoder")
_FASTEST = 240

NAMELESS = "input from stdin has no name; give an output with -o"
"""Message for a clip from stdin without an output."""


@dataclass(frozen=True, kw_only=True)
class UpscaleJob(UpscalingOptions, SharedSettings):
    """One clip to upscale, as requested."""

    source: Path
    """A file, a pattern such as `folder/%05d.png`, with `images` a folder; `-` if there is a `pipe`."""
    pipe: "Pipe | None" = None
    """Pipe to read instead of a file; such a run cannot be resumed."""
    guard: float | None = GUARD_LEVELS
    """Maximum deviation of the result from the source, in levels of 255; None for no
    limit."""
    color: Literal["match", "off"] = "match"
    cuts: Literal["auto", "off"] = "auto"
    audio: Literal["copy", "aac", "flac", "opus", "none"] = "copy"
    """aac, flac and opus: codec for audio that the container cannot hold unchanged."""
    subs: Literal["copy", "none"] = "copy"
    fps: Fraction | None = None
    """Frames per second of the output, by repeating or dropping frames; for images,
    which have no frame rate, also that of the input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.strength) and 0 <= self.strength <= 1):
            raise ConfigError(f"--strength must be between 0 and 1, got {self.strength}")
        if self.detail is not None and not (math.isfinite(self.detail) and 0 <= self.detail <= 1):
            raise ConfigError(f"--detail must be between 0 and 1, got {self.detail}")
        check_guard(self.guard)
        check_restoring(crop=self.crop, chroma_shift=self.chroma_shift, grain=self.grain)
        if self.res is not None:
            read_res(self.res)
        if self.encoder not in ENCODERS:
            raise ConfigError(f"--encoder must be one of {', '.join(ENCODERS)}, got {self.encoder!r}")
        if self.fps is not None and not 1 <= self.fps <= _FASTEST:
            raise ConfigError(f"--fps must be keep or between 1 and {_FASTEST}, got {self.fps}")
        if self.pipe is not None and self.output is None and self.stdout is None:
            raise ConfigError(NAMELESS)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job with all decisions made that do not need the model."""

    job: UpscaleJob
    info: "ClipInfo"
    reading: "Mending"
    """The measurements of the clip, and the repairs to make."""
    output: Path
    """The file to write; if a symlink was given, the file that it points to."""
    exists: bool
    """Whether the output exists and the job skips existing outputs."""
    plan: UpscalePlan
    res: str
    """The target as part of a file name: as requested, or the default."""
    model: str
    window: Window | None
    """The part of the clip to process; None for all of it."""
    fps: Fraction | None
    """Frames per second of the output, by repeating or dropping frames; None to keep
    every frame at its own time."""
    first_number: int
    """The number of the first image, if the output consists of images."""
    streams: "StreamPlan"
    spec: "EncodeSpec"
    threads: int
    warnings: tuple[str, ...]

    @property
    def shown_output(self) -> str:
        """Name of the output in reports."""
        return self.job.stdout_name if self.job.stdout is not None else str(self.job.output or self.output)


def estimate_frames(info: "ClipInfo", window: Window | None) -> int | None:
    """Estimate the number of frames to process; None if the container does not state
    it."""
    total = info.frame_count_estimate
    if window is None or total is None:
        return total
    first_s = (info.start_pts or 0) * info.time_base
    start_s, end_s = (edge_s - first_s for edge_s in window)
    if info.duration_s is not None:
        end_s = min(end_s, Fraction(info.duration_s))
    # A frame is inside if its beginning is: the first at or after the start, the last before the end.
    first, end = (math.ceil(edge_s * info.average_rate) for edge_s in (max(start_s, Fraction(0)), end_s))
    return max(0, min(total, end - first))


def default_res(width_px: int, height_px: int) -> str:
    """Return the default target: the first of `1k` and `2k` that enlarges the clip
    enough, else `2x`. Narrow strips, whose long side would become too long, get `2x`.
    """
    short_px, long_px = sorted((width_px, height_px))
    for res, target_px in SHORT_SIDES.items():
        growth = Fraction(target_px, short_px)
        if growth >= WORTHWHILE and growth * long_px <= LARGEST_SIDE_PX:
            return res
    return "2x"


def prepare(job: UpscaleJob, facts: ModelFacts, *, to_write: bool = True, encodes_here: bool = True) -> Prepared:
    """Check and plan a job without writing anything; without `to_write` the output path
    is not checked, without `encodes_here` neither is a GPU's encoder. Raises UsageError
    (an impossible target, options that the encoder rejects, an output that exists),
    InputError, DeviceError (an encoder that this machine lacks), OutputError.
    """
    from ultraflash_cli.video.color import picture_color
    from ultraflash_cli.video.encoders import check_encoder
    from ultraflash_cli.video.probe import probe, surveyed
    from ultraflash_cli.video.sequence import ImageSequence, numbered

    check_address_space()
    source = find_input(job.source, job.pipe, images=job.images, rate=job.fps)
    named = followed(job.output) if job.output is not None else None
    if to_write:
        check_temp(job.temp)
    if to_write and named is not None:
        _check_target(named, job, source, single=not isinstance(source, ImageSequence), two_fields=False)

    info, warnings = with_what_can_be_copied(probe(source), spooled=job.temp is not None)
    photo = is_photo(info)
    if photo:
        info = replace(info, frame_count_estimate=1)
        if job.output is not None and named is not None and is_pictures(named) and job.deinterlace != "field":
            # The one file of a pattern that is written.
            job, named = replace(job, output=numbered(job.output, 1)), numbered(named, 1)
    if any(each is not None for each in (job.start, job.end, job.preview)):
        info = surveyed(info)

    threads = job.threads or usable_cores()
    reading = reading_of(job, info, threads=threads)
    info = reading.info
    clip_start_s = (info.start_pts or 0) * info.time_base
    window = choose_window(
        start=job.start,
        end=job.end,
        preview=job.preview,
        clip_start_s=clip_start_s,
        duration_s=info.duration_s,
    )
    res = read_res(job.res) if job.res is not None else default_res(info.display_width_px, info.display_height_px)
    plan = plan_upscale(
        info.width_px,
        info.height_px,
        res=res,
        downscale=job.downscale,
        quarter_turn=info.rotation_deg in (90, 270),
    )
    stretch = shape_warning(info, plan) if (shaped := with_shape(info, plan)) is info else None
    info = shaped

    suffix = asked_suffix(named, job.stdout, job.codec, photo=photo)
    if photo and suffix is None and job.codec == "auto":
        suffix = ".png"
    fps = Fraction(job.fps) if job.fps is not None and (isinstance(source, Path) or job.pipe is not None) else None
    if photo and fps is not None and makes_pictures(suffix, job.codec):
        warnings += (f"{info.path.name}: a photo has no frame rate; --fps is ignored",)
        fps = None
    of_pictures = photo or isinstance(source, ImageSequence)
    seen = replace(info, color=picture_color(info.color)) if of_pictures else info
    model = choose_model(job.model, job.store, job.device, scale=plan.scale, parts=_PARTS, facts=facts)
    facts.check_upscaling(model, prompt=job.prompt, detail=job.detail)
    fed_fps = expected_fps(model, job.device, width_px=plan.target[1], height_px=plan.target[0], facts=facts)
    spec = _spec(job, seen, plan, fps=fps, threads=threads, suffix=suffix, fed_fps=fed_fps)
    streams = _kept_streams(job, info, suffix, spec.codec, fps)
    if not isinstance(source, Path):
        streams = replace(streams, reason="")

    single = photo and not info.fields
    start_s = window[0] - clip_start_s if window is not None else Fraction(0)
    output = named or _default_output(job, source, res, streams.suffix, is_part=window is not None, single=single)
    if job.stdout is not None:
        output = stream_target(input_identity(source), job.temp, streams.suffix)
    if to_write and named is None and job.stdout is None and not job.skip_existing:
        check_made_names(output)
    exists = (
        to_write
        and job.stdout is None
        and _check_target(output, job, source, single=single, two_fields=photo and info.fields)
    )
    if to_write and not exists:
        _check_space(output, job, info, spec, window)
    if not exists:
        check_encoder(spec, encodes_here=encodes_here)

    return Prepared(
        job=job,
        info=info,
        reading=reading,
        output=output,
        exists=exists,
        plan=plan,
        res=res,
        window=window,
        model=model,
        fps=fps,
        first_number=1 if job.renumber else first_number(source, start_s),
        streams=streams,
        spec=spec,
        threads=threads,
        warnings=(
            *warnings,
            *link_notes(job.output),
            *(f"{info.path.name}: {note}" for note in reading.notes),
            *plan_warnings(
                info,
                spec,
                plan,
                streams,
                stretch=stretch,
                asked_res=job.res is not None,
                name=output_label(output, job.stdout and job.stdout_name),
            ),
            *(content_warnings(info, model, facts) if job.pipe is None and not exists else ()),
        ),
    )


def _spec(
    job: UpscaleJob,
    info: "ClipInfo",
    plan: UpscalePlan,
    *,
    fps: Fraction | None,
    threads: int,
    suffix: str | None,
    fed_fps: float | None,
) -> "EncodeSpec":
    """Return the encoder settings of the clip, doubled in width if the plain resampling
    is shown next to it."""
    from ultraflash_cli.video.encode import choose_spec, made_times

    height_px, width_px = plan.target
    if job.side_by_side:
        turned = info.rotation_deg in (90, 270)
        height_px, width_px = (2 * height_px, width_px) if turned else (height_px, 2 * width_px)
    return choose_spec(
        info,
        width_px=width_px,
        height_px=height_px,
        codec=job.codec,
        crf=job.crf,
        pix_fmt=job.pix_fmt,
        enc_options=job.enc_options,
        threads=threads,
        time_base=made_times(fps)[0] if fps is not None else None,
        rate=fps,
        suffix=suffix,
        fed_fps=fed_fps,
    )


def _default_output(job: UpscaleJob, source: "Source", res: str, suffix: str, *, is_part: bool, single: bool) -> Path:
    part = "_preview" if job.preview is not None else "_part" if is_part else ""
    part += "_side_by_side" if job.side_by_side else ""
    beside, stem = made_place(source)
    return (job.folder or beside) / made_name(f"{stem}_{res}{part}", suffix, single=single)


def _kept_streams(
    job: UpscaleJob, info: "ClipInfo", suffix: str | None, codec: str, fps: Fraction | None
) -> "StreamPlan":
    """Plan the streams to keep, without those that the muxer rejects."""
    from ultraflash_cli.video.containers import plan_streams
    from ultraflash_cli.video.rehearsal import rehearse

    refused: dict[str, dict[int, str]] = {}
    while True:
        streams = plan_streams(info, suffix, audio=job.audio, subs=job.subs, codec=codec, fps=fps, refused=refused)
        found = rehearse(info, streams)
        known = refused.setdefault(streams.suffix, {})
        if not found.keys() - known.keys():
            return streams
        known.update(found)


def _check_target(output: Path, job: UpscaleJob, source: "Source", *, single: bool, two_fields: bool) -> bool:
    check_pattern(output, single=single, two_fields=two_fields)
    return check_target(
        output,
        source=source,
        overwrite=job.overwrite,
        skip_existing=job.skip_existing,
        example=example_suffix(job.codec, photo=may_be_photo(source)),
        work=unfinished_work(output, job.temp) if job.resume and job.pipe is None else None,
    )


def _check_space(output: Path, job: UpscaleJob, info: "ClipInfo", spec: "EncodeSpec", window: Window | None) -> None:
    """Raise an error if the disk lacks room for the segments and the joined file, which
    briefly coexist. Streams are not joined, and the segments of runs that cannot be
    resumed are deleted once written.
    """
    temp = job.temp
    if job.stdout is not None and (job.pipe is not None or not job.resume):
        return
    frames = estimate_frames(info, window) or 0
    encoded = encoded_bytes(spec.codec, width_px=spec.width_px, height_px=spec.height_px, frames=frames)
    joined = encoded + (input_bytes(info.source) if len(info.streams) > 1 else 0)
    if job.stdout is not None:
        joined = 0
    place = work_folder(output)
    if temp is None:
        check_space(output.parent, encoded + joined - used_bytes(place))
    else:
        check_space(temp, encoded - used_bytes(temp_work_folder(output, temp)), option="--temp-dir")
        check_space(output.parent, joined)
