"""Check and decide everything about a clip to generate before a model is loaded, cheapest checks first."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.errors import ConfigError, UsageError
from ultraflash_cli.host import check_address_space, usable_cores
from ultraflash_cli.jobs.planning.options import SharedSettings
from ultraflash_cli.jobs.planning.outputs import asked_suffix, check_pattern, low_name, made_name
from ultraflash_cli.jobs.planning.target import (
    check_folder,
    check_made_names,
    check_space,
    check_target,
    encoded_bytes,
    followed,
    link_notes,
    output_label,
    stream_target,
    used_bytes,
)
from ultraflash_cli.jobs.planning.upscale import choose_model
from ultraflash_cli.jobs.resume.work_folder import temp_work_folder, unfinished_work, work_folder

if TYPE_CHECKING:
    from ultraflash_cli.engine.cache_policy import CacheManagement
    from ultraflash_cli.engine.profiles import Profile
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
"""Targets by what they multiply the model's base size by."""

_LATENTS = 21
"""Default length of a clip: 81 frames, as published."""
_PREFIX_CHUNKS = 2
"""Chunks of an initial clip that a generator without sliding window leaves room for, where no length is requested."""
AUTO_PARTS = ("generator", "text_encoder", "upsampler", "sr_dit", "decoder")
"""Parts of the published model that must be installed for `auto` to choose it."""
_SLUG_CHARACTERS = 40
_LONGEST_S = 3600
_FASTEST = 240


@dataclass(frozen=True, kw_only=True)
class GenerateJob(SharedSettings):
    """One clip to generate, as requested."""

    prompt: str
    name: str | None = None
    """The default name without extension, if several clips of a command would share one; None for the usual one."""
    res: str = "1k"
    """`480p`, `1k` or `2k`: once, twice, three times the model's base size per side."""
    seconds: float | None = None
    """At least so long; None for 81 frames, or for what the model has room for behind an initial clip."""
    fps: Fraction | None = None
    """Frames per second to write, by repeating or dropping what was generated; None for the model's own."""
    save_lr: bool = False
    """Write the clip at the base size as well."""
    init_clip: Path | None = None
    """A clip to continue from; the result is what follows it."""
    cache_management: str = "off"
    """As `engine.cache_policy.CacheManagement.parse` reads it."""

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
    """A clip to generate, with everything decided that does not need the model."""

    job: GenerateJob
    model: str
    long: bool
    """Whether the generator's long variant is needed."""
    generator: "GeneratorConfig"
    """The generator as it runs: its window may slide where the long variant is not installed."""
    plan: "GenerationPlan"
    frames: int
    """Frames of the clip at the model's own rate; the plan's last group may give a few more."""
    scale: int
    """1 for the base size, else what the model multiplies by."""
    base_size: tuple[int, int]
    """Height and width in pixels of what the generator draws."""
    notice: str
    """What people are told of the model's clips; empty if there is nothing to say."""
    clip: "ClipInfo | None"
    """Facts about the clip to continue."""
    clip_lengths: tuple[int, ...]
    """How many of its frames the generator can take as the past: whole chunks that it has room for."""
    output: Path
    low_output: Path | None
    """Where the clip at the base size goes; None if it is not requested."""
    exists: bool
    """The output exists, and the job skips existing outputs."""
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
        """What reports call the output."""
        return self.job.stdout_name if self.job.stdout is not None else str(self.job.output or self.output)

    @property
    def label(self) -> str:
        """What messages call the clip."""
        return output_label(self.output, self.job.stdout and self.job.stdout_name)


def read_prompts(lines: Iterable[str]) -> list[str]:
    """Return a prompt for each line; blank lines and those that begin with `#` are none. Raises UsageError."""
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise UsageError("no prompt found; write one per line")
    return prompts


def name_outputs(jobs: Iterable[GenerateJob]) -> Iterator[GenerateJob]:
    """Return each job with a name of its own: a number follows those that an earlier prompt has already.

    The jobs of one prompt come together, with growing seeds; only the prompts' names are remembered.
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


def prepare_generation(job: GenerateJob, *, to_write: bool = True) -> PreparedGeneration:
    """Check and decide, writing nothing; without `to_write` the output's place is not looked at.

    Raises UsageError (a length the model cannot make, options the encoder refuses, an output that exists), InputError
    for the initial clip, OutputError.
    """
    check_address_space()
    named = followed(job.output) if job.output is not None else None
    if to_write and named is not None:
        _check_target(named, job)
    if to_write and job.temp is not None:
        check_folder(job.temp / "journal")

    from ultraflash_cli.video.containers import plan_alone
    from ultraflash_cli.video.encode import check_encoder
    from ultraflash_cli.video.probe import probe

    clip = probe(job.init_clip) if job.init_clip is not None else None

    from ultraflash_cli.engine.cache_policy import CacheManagement
    from ultraflash_cli.engine.schedule import GENERATED_FPS, plan_generation

    cache_management = CacheManagement.parse(job.cache_management)
    profile, generator = _find_generator(job)
    _check_rules(cache_management, profile)
    generator, latents = _choose_length(job, profile, generator)
    plan = plan_generation(
        latents,
        chunk=generator.chunk_latents,
        independent_first=generator.independent_first_frame and clip is None,
        chunks_per_group=profile.chunks_per_group(generator),
    )
    frames = plan.total_frames if job.seconds is None else min(plan.total_frames, _frames_for(job.seconds))

    scale, rate, suffix = (
        SCALES[job.res],
        Fraction(job.fps or GENERATED_FPS),
        asked_suffix(named, job.stdout, job.codec),
    )
    threads = job.threads or usable_cores()
    spec = _spec(job, profile.base_size, scale, rate=rate, threads=threads, suffix=suffix)
    low_spec = _spec(job, profile.base_size, 1, rate=rate, threads=threads, suffix=suffix) if job.save_lr else None
    streams = plan_alone(suffix, codec=spec.codec, frame_s=1 / rate)

    output = named or (job.folder or Path()) / made_name(job.made_name, streams.suffix)
    if job.stdout is not None:
        output = stream_target(f"{job.made_name} {job.line}", job.temp, streams.suffix)
    low_output = low_name(output) if job.save_lr else None
    if to_write and job.stdout is None and not job.skip_existing:
        check_made_names(*[made for made in (None if named else output, low_output) if made is not None])
    exists = to_write and job.stdout is None and _check_target(output, job)
    if to_write and not exists:
        if low_output is not None:
            _check_target(low_output, replace(job, skip_existing=False), main=output)
        written = round(Fraction(frames, GENERATED_FPS) * rate)
        _check_space(output, job, [each for each in (spec, low_spec) if each is not None], written)
    if not exists:
        check_encoder(spec)

    notes = (*link_notes(job.output), *streams.notes, *_remarks(profile, generator, latents))
    return PreparedGeneration(
        job=job,
        model=profile.name,
        long=generator is profile.long_generator,
        generator=generator,
        plan=plan,
        frames=frames,
        scale=scale,
        base_size=profile.base_size,
        notice=profile.notice,
        clip=clip,
        clip_lengths=tuple(map(_frames_of, _prefixes(generator, latents))) if clip is not None else (),
        output=output,
        low_output=low_output,
        exists=exists,
        cache_management=cache_management,
        streams=streams,
        spec=spec,
        low_spec=low_spec,
        threads=threads,
        warnings=tuple(f"{output_label(output, job.stdout and job.stdout_name)}: {note}" for note in notes),
    )


def _spec(
    job: GenerateJob, base_size: tuple[int, int], scale: int, *, rate: Fraction, threads: int, suffix: str | None
) -> "EncodeSpec":
    """Return how the clip is encoded at `scale` times the base size (height, width)."""
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
    )


def _check_space(output: Path, job: GenerateJob, specs: "Sequence[EncodeSpec]", frames: int) -> None:
    """Refuse a disk that is too full for segments and joined file, which are side by side for a moment."""
    encoded = sum(
        encoded_bytes(each.codec, width_px=each.width_px, height_px=each.height_px, frames=frames) for each in specs
    )
    if job.temp is None:
        check_space(output.parent, 2 * encoded - used_bytes(work_folder(output)))
    else:
        check_space(job.temp, encoded - used_bytes(temp_work_folder(output, job.temp)))
        check_space(output.parent, encoded)


def _remarks(profile: "Profile", generator: "GeneratorConfig", latents: int) -> tuple[str, ...]:
    """Return where the generator works beyond what it was trained for."""
    if generator not in (profile.generator, profile.long_generator):
        return (
            f"longer than the {generator.window} latents that {profile.name} was trained on; its memory "
            f"slides. `ultraflash weights pull {profile.name}-long` installs the variant for long clips",
        )
    if generator.drifts and latents > generator.drift_frames:
        taught = _frames_of(generator.drift_frames)
        return (
            f"longer than the {taught} frames that {profile.name} was trained on; moving objects may lose their shape",
        )
    return ()


def _check_target(output: Path, job: GenerateJob, *, main: Path | None = None) -> bool:
    """Check the place of an output; `main` is the one next to it."""
    check_pattern(output)
    return check_target(
        output,
        source=job.init_clip,
        overwrite=job.overwrite,
        skip_existing=job.skip_existing,
        work=unfinished_work(main or output, job.temp) if job.resume else None,
    )


def _find_generator(job: GenerateJob) -> "tuple[Profile, GeneratorConfig]":
    from ultraflash_cli.engine.profiles import PROFILES, ULTRAFLASH
    from ultraflash_cli.models.profile import with_ultra_decoder

    model = choose_model(job.model, job.store, job.device, scale=max(2, SCALES[job.res]), parts=AUTO_PARTS)
    if job.model == "auto" and PROFILES[model].generator is None:
        model = ULTRAFLASH.name
    profile = PROFILES[model]
    if profile.generator is None:
        raise UsageError(f"{model} cannot generate; use --model {ULTRAFLASH.name}")
    if job.decoder == "ultra":
        with_ultra_decoder(profile)  # refuses where the model has none
    return profile, profile.generator


def _check_rules(rules: "CacheManagement", profile: "Profile") -> None:
    """Raise UsageError for a cache rule that does nothing for the model."""
    if rules.kv and profile.sr_dit is None:
        raise UsageError(
            f"--cache-management: kv shrinks the memory of an SR transformer and {profile.name} has none; leave kv out"
        )
    if rules.refresh is not None and not profile.spares_passes:
        raise UsageError(
            f"--cache-management: refresh saves no time with {profile.name}, whose context passes cost less than "
            "the check; leave refresh out"
        )


def _choose_length(job: GenerateJob, profile: "Profile", generator: "GeneratorConfig") -> "tuple[GeneratorConfig, int]":
    """Choose the generator's variant and the latents to make; the long variant only does what the other cannot."""
    from ultraflash_cli.engine.schedule import GENERATED_FPS, latents_for

    goes_on = job.init_clip is not None

    def latents_of(config: "GeneratorConfig") -> int:
        if job.seconds is not None:
            first = config.independent_first_frame and not goes_on
            return latents_for(job.seconds, chunk=config.chunk_latents, independent_first=first)
        if config.longest is None:
            return _LATENTS
        left = _PREFIX_CHUNKS * config.chunk_latents if goes_on else 0
        return max(config.chunk_latents, min(_LATENTS, config.longest) - left)

    def fits(config: "GeneratorConfig", latents: int) -> bool:
        if goes_on:
            return bool(_prefixes(config, latents))
        return config.longest is None or latents <= config.longest

    long = profile.long_generator if _has_long_weights(job, profile) else None
    sliding = None
    if not generator.slide and profile.long_generator is not None:
        sliding = replace(generator, slide=True, sink=profile.long_generator.sink)
    for config in (generator, long, sliding):
        if config is not None and fits(config, latents_of(config)):
            return config, latents_of(config)
    assert generator.longest is not None, "a window that slides takes every length"
    most = generator.longest - (generator.chunk_after(0) if goes_on else 0)
    most_s = float(Fraction(_frames_of(most), GENERATED_FPS))
    raise UsageError(f"{profile.name} can make clips of up to {most_s:.2f} s here, got --seconds {job.seconds:g}")


def _has_long_weights(job: GenerateJob, profile: "Profile") -> bool:
    """Return whether the generator's long variant can be loaded."""
    from ultraflash_cli.weights.manifest import read_manifest
    from ultraflash_cli.weights.store import WeightStore

    if profile.random_seed is not None:
        return True
    if job.store is None or profile.long_generator is None:
        return False
    store, manifest = WeightStore(job.store), read_manifest()
    return all(store.installed(manifest[profile.weight_of(part)]) for part in ("long_generator", "long_lora"))


def _prefixes(generator: "GeneratorConfig", latents: int) -> list[int]:
    """List the latents of a clip's end, in whole chunks, that `latents` new ones can follow."""
    room = generator.window if generator.slide else generator.window - latents
    return list(range(generator.chunk_after(0), room + 1, generator.chunk_latents))


def _frames_of(latents: int) -> int:
    """Count the frames of a stream's first latents, the very first of which is a single frame."""
    from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT

    return max(0, FRAMES_PER_LATENT * (latents - 1) + 1)


def _frames_for(seconds: float) -> int:
    """Count the frames of the fewest whole latents that last so long."""
    from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, GENERATED_FPS

    return 1 + FRAMES_PER_LATENT * max(0, math.ceil((seconds * GENERATED_FPS - 1) / FRAMES_PER_LATENT))


def _slug(prompt: str) -> str:
    """Return the beginning of a prompt as a name: its words, in whole words where that leaves some."""
    words = re.findall(r"[^\W_]+", prompt.lower())
    slug = ""
    for word in words:
        longer = f"{slug}-{word}" if slug else word[:_SLUG_CHARACTERS]
        if len(longer) > _SLUG_CHARACTERS:
            break
        slug = longer
    return slug or "clip"
