"""Check and plan a clip to generate before a model is loaded, cheapest checks first."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.errors import ConfigError, Remark, UsageError
from ultraflash_cli.host import check_address_space, usable_cores
from ultraflash_cli.jobs.planning.feed import expected_fps
from ultraflash_cli.jobs.planning.models import ModelFacts, choose_model
from ultraflash_cli.jobs.planning.options import GenerationOptions, SharedSettings
from ultraflash_cli.jobs.planning.outputs import asked_suffix, check_pattern, example_suffix, low_name, made_name
from ultraflash_cli.jobs.planning.target import (
    check_made_names,
    check_space,
    check_target,
    check_temp,
    encoded_bytes,
    followed,
    link_notes,
    output_label,
    stream_target,
    used_bytes,
)
from ultraflash_cli.jobs.resume.work_folder import temp_work_folder, unfinished_work, work_folder

if TYPE_CHECKING:
    from ultraflash_cli.engine.cache_policy import CacheManagement
    from ultraflash_cli.engine.schedule import GenerationPlan
    from ultraflash_cli.engine.stages.generator import GeneratorConfig
    from ultraflash_cli.video.containers import StreamPlan
    from ultraflash_cli.video.encode import EncodeSpec
    from ultraflash_cli.video.probe import ClipInfo

__all__ = [
    "AUTO_PARTS",
    "SCALES",
    "GenerateJob",
    "PreparedGeneration",
    "name_outputs",
    "prepare_generation",
    "read_prompts",
]

SCALES = {"480p": 1, "1k": 2, "2k": 3}
"""Scale factor over the model's base size, by target."""

AUTO_PARTS = ("generator", "text_encoder", "upsampler", "sr_dit", "decoder")
"""Parts of the published model that must be installed for `auto` to choose it."""
_SLUG_CHARACTERS = 60
_LONGEST_S = 3600
_FASTEST = 240


@dataclass(frozen=True, kw_only=True)
class GenerateJob(GenerationOptions, SharedSettings):
    """One clip to generate, as requested."""

    prompt: str
    name: str | None = None
    """Default file name without extension, if several clips would otherwise share one;
    None for the usual name."""
    res: str = "1k"
    """`480p`, `1k` or `2k`: one, two or three times the model's base size per side."""
    fps: Fraction | None = None
    """Frames per second of the output, by repeating or dropping frames; None for the
    model's own rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.line:
            raise ConfigError("the prompt is empty; describe what the clip should show")
        if any("\ud800" <= character <= "\udfff" for character in self.prompt):
            raise ConfigError("the prompt is not valid UTF-8; check the locale of the terminal")
        if self.res not in SCALES:
            raise ConfigError(f"--res must be one of {', '.join(SCALES)}, got {self.res!r}")
        if self.seconds is not None and not (math.isfinite(self.seconds) and 0 < self.seconds <= _LONGEST_S):
            raise ConfigError(f"--seconds must be above 0 and at most {_LONGEST_S}, got {self.seconds:g}")
        if self.fps is not None and not 1 <= self.fps <= _FASTEST:
            raise ConfigError(f"--fps must be between 1 and {_FASTEST}, got {self.fps}")
        if self.save_lr and self.res == "480p":
            raise ConfigError("--save-lr writes the 480p clip, which --res 480p does already; remove one of them")
        if self.save_lr and self.stdout is not None:
            raise ConfigError("--save-lr writes a second file, but stdout is one stream; remove --save-lr")

    @property
    def line(self) -> str:
        """The prompt on one line."""
        return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", self.prompt).split())

    @property
    def made_name(self) -> str:
        """The default name of the output, without extension."""
        return self.name or f"{_slug(self.prompt)}_{self.res}_seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class PreparedGeneration:
    """A clip to generate, with all decisions made that do not need the model."""

    job: GenerateJob
    model: str
    long: bool
    """Whether the generator's long variant is needed."""
    generator: "GeneratorConfig"
    """The generator's config; its window slides if the long variant is not
    installed."""
    plan: "GenerationPlan"
    frames: int
    """Number of frames of the clip at the model's own rate; the plan's last group may
    yield a few more."""
    scale: int
    """1 for the base size, else the model's scale factor."""
    base_size: tuple[int, int]
    """Height and width of the generator's output in pixels."""
    notice: str
    """Notice about the model's clips; empty if there is none."""
    clip: "ClipInfo | None"
    """Facts about the clip to continue."""
    clip_lengths: tuple[int, ...]
    """Numbers of its frames that the generator can use as the past: whole chunks that
    fit its window."""
    output: Path
    low_output: Path | None
    """Output path of the clip at the base size; None if it is not requested."""
    exists: bool
    """Whether the output exists and the job skips existing outputs."""
    cache_management: "CacheManagement"
    streams: "StreamPlan"
    spec: "EncodeSpec"
    low_spec: "EncodeSpec | None"
    threads: int
    warnings: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The prompt on one line."""
        return self.job.line

    @property
    def shown_output(self) -> str:
        """Name of the output in reports."""
        return self.job.stdout_name if self.job.stdout is not None else str(self.job.output or self.output)

    @property
    def label(self) -> str:
        """Name of the clip in messages."""
        return output_label(self.output, self.job.stdout and self.job.stdout_name)


def read_prompts(lines: Iterable[str]) -> list[str]:
    """Return a prompt for each line; blank lines and lines that start with `#` are
    skipped. Raises UsageError."""
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise UsageError("no prompt found; write one per line")
    return prompts


def name_outputs(jobs: Iterable[GenerateJob]) -> Iterator[GenerateJob]:
    """Return each job with a unique name: repeated names get a number. The jobs of one
    prompt are consecutive, with increasing seeds; only the names of prompts are
    remembered.
    """
    prompts: dict[str, int] = {}
    last: GenerateJob | None = None
    number = 0
    for job in jobs:
        if last is None or job.prompt != last.prompt or job.seed <= last.seed:
            name = _slug(job.prompt)
            number = prompts[name] = prompts.get(name, 0) + 1
        last = job
        yield job if number == 1 else replace(job, name=f"{job.made_name}-{number}")


def prepare_generation(
    job: GenerateJob, facts: ModelFacts, *, to_write: bool = True, encodes_here: bool = True
) -> PreparedGeneration:
    """Check and plan a job without writing anything; without `to_write` the output path
    is not checked, without `encodes_here` neither is a GPU's encoder.

    Raises UsageError (a length the model cannot make, options the encoder refuses, an output that exists), InputError
    for the initial clip, DeviceError (an encoder that this machine lacks), OutputError.
    """
    check_address_space()
    named = followed(job.output) if job.output is not None else None
    if to_write:
        check_temp(job.temp)
    if to_write and named is not None:
        _check_target(named, job)

    from ultraflash_cli.video.containers import plan_alone
    from ultraflash_cli.video.encoders import check_encoder
    from ultraflash_cli.video.probe import probe

    clip = probe(job.init_clip) if job.init_clip is not None else None
    model = choose_model(job.model, job.store, job.device, scale=max(2, SCALES[job.res]), parts=AUTO_PARTS, facts=facts)
    made = facts.plan_clip(
        model,
        is_requested=job.model != "auto",
        decoder=job.decoder,
        seconds=job.seconds,
        continues=clip is not None,
        cache_management=job.cache_management,
        refines=SCALES[job.res] > 1,
        store=job.store,
    )

    scale, rate, suffix = (
        SCALES[job.res],
        Fraction(job.fps or made.fps),
        asked_suffix(named, job.stdout, job.codec),
    )
    threads = job.threads or usable_cores()
    fed_fps = expected_fps(
        model,
        job.device,
        width_px=scale * made.base_size[1],
        height_px=scale * made.base_size[0],
        generates=True,
        facts=facts,
    )
    spec = _spec(job, made.base_size, scale, rate=rate, threads=threads, suffix=suffix, fed_fps=fed_fps)
    low_spec = None
    if job.save_lr:
        # Both clips share the cores: the small one is encoded as fast as the large one.
        low_fps = fed_fps and fed_fps * scale**2
        low_spec = _spec(job, made.base_size, 1, rate=rate, threads=threads, suffix=suffix, fed_fps=low_fps)
    streams = plan_alone(suffix, codec=spec.codec, frame_s=1 / rate)

    output = named or (job.folder or Path()) / made_name(job.made_name, streams.suffix)
    if job.stdout is not None:
        output = stream_target(f"{job.made_name} {job.line}", job.temp, streams.suffix)
    low_output = low_name(output) if job.save_lr else None
    if to_write and job.stdout is None and not job.skip_existing:
        check_made_names(*[each for each in (None if named else output, low_output) if each is not None])
    exists = to_write and job.stdout is None and _check_target(output, job)
    if to_write and not exists:
        if low_output is not None:
            _check_target(low_output, replace(job, skip_existing=False), main=output)
        written = round(Fraction(made.frames, made.fps) * rate)
        _check_space(output, job, [each for each in (spec, low_spec) if each is not None], written)
    if not exists:
        check_encoder(spec, encodes_here=encodes_here)

    label = output_label(output, job.stdout and job.stdout_name)
    notes = (*link_notes(job.output), *streams.notes, *made.remarks)
    return PreparedGeneration(
        job=job,
        model=made.model,
        long=made.is_long,
        generator=made.generator,
        plan=made.plan,
        frames=made.frames,
        scale=scale,
        base_size=made.base_size,
        notice=made.notice,
        clip=clip,
        clip_lengths=made.prefix_frames,
        output=output,
        low_output=low_output,
        exists=exists,
        cache_management=made.cache_management,
        streams=streams,
        spec=spec,
        low_spec=low_spec,
        threads=threads,
        warnings=(
            *(f"{label}: {note}" for note in notes),
            *(Remark(f"{label}: {remark}") for remark in streams.remarks),
        ),
    )


def _spec(
    job: GenerateJob,
    base_size: tuple[int, int],
    scale: int,
    *,
    rate: Fraction,
    threads: int,
    suffix: str | None,
    fed_fps: float | None,
) -> "EncodeSpec":
    """Return the encoder settings at `scale` times the base size (height, width)."""
    from ultraflash_cli.video.encode import made_spec

    return made_spec(
        width_px=scale * base_size[1],
        height_px=scale * base_size[0],
        rate=rate,
        codec=job.codec,
        crf=job.crf,
        pix_fmt=job.pix_fmt,
        enc_options=job.enc_options,
        threads=threads,
        suffix=suffix,
        fed_fps=fed_fps,
    )


def _check_space(output: Path, job: GenerateJob, specs: "Sequence[EncodeSpec]", frames: int) -> None:
    """Raise an error if the disk lacks room for the segments and the joined file, which
    briefly coexist."""
    encoded = sum(
        encoded_bytes(each.codec, width_px=each.width_px, height_px=each.height_px, frames=frames) for each in specs
    )
    if job.temp is None:
        check_space(output.parent, 2 * encoded - used_bytes(work_folder(output)))
    else:
        check_space(job.temp, encoded - used_bytes(temp_work_folder(output, job.temp)), option="--temp-dir")
        check_space(output.parent, encoded)


def _check_target(output: Path, job: GenerateJob, *, main: Path | None = None) -> bool:
    """Check the path of an output; `main` is the main output."""
    check_pattern(output)
    return check_target(
        output,
        example=example_suffix(job.codec),
        source=job.init_clip,
        overwrite=job.overwrite,
        skip_existing=job.skip_existing,
        work=unfinished_work(main or output, job.temp) if job.resume else None,
    )


def _slug(prompt: str) -> str:
    """Return the start of a prompt as a file name, cut between words if possible."""
    words = re.findall(r"[^\W_]+", prompt.lower())
    slug = ""
    for word in words:
        longer = f"{slug}-{word}" if slug else word[:_SLUG_CHARACTERS]
        if len(longer) > _SLUG_CHARACTERS:
            break
        slug = longer
    return slug or "clip"
