"""Plan what a model generates: the generator's variant, the length of the clip, the
cache rules."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from ultraflash_cli.engine.cache_policy import CacheManagement
from ultraflash_cli.engine.profiles import PROFILES, ULTRAFLASH, Profile
from ultraflash_cli.engine.schedule import (
    FRAMES_PER_LATENT,
    GENERATED_FPS,
    GenerationPlan,
    latents_for,
    plan_generation,
)
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.errors import UsageError
from ultraflash_cli.models.profile import with_ultra_decoder
from ultraflash_cli.weights.manifest import read_manifest
from ultraflash_cli.weights.store import WeightStore

__all__ = ["ClipPlan", "plan_clip"]

_LATENTS = 21
"""Default number of latents in a clip: 81 frames, as published."""
_PREFIX_CHUNKS = 2
"""Number of chunks of an initial clip for which a generator without a sliding window
leaves room if no length is requested."""


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """The plan of a clip to generate."""

    model: str
    base_size: tuple[int, int]
    """Height and width of the generator's output in pixels."""
    fps: int
    """The model's own frame rate."""
    notice: str
    """Notice about the model's clips; empty if there is none."""
    generator: GeneratorConfig
    """The generator's config; its window slides if the long variant is not
    installed."""
    is_long: bool
    """Whether it is the generator's long variant."""
    plan: GenerationPlan
    frames: int
    """Number of frames of the clip at the model's own rate; the plan's last group may
    yield a few more."""
    prefix_frames: tuple[int, ...]
    """Numbers of frames of an initial clip that the generator can use as the past:
    whole chunks that fit its window."""
    cache_management: CacheManagement
    remarks: tuple[str, ...]
    """Remarks about use of the generator beyond its training."""


def plan_clip(
    model: str,
    *,
    is_requested: bool,
    decoder: str,
    seconds: float | None,
    continues: bool,
    cache_management: str,
    refines: bool,
    store: Path | None,
) -> ClipPlan:
    """Plan a clip of a model. Raises UsageError for unsupported requests.

    Args:
        model: Name of the model; if it was not requested, the published one replaces a model that only upscales.
        is_requested: Whether the user named the model.
        decoder: The model's decoder to use.
        seconds: Minimum duration; None for the default.
        continues: Whether the clip continues another.
        cache_management: As ``CacheManagement.parse`` reads it.
        refines: Whether the clip is enlarged, so that an SR transformer runs.
        store: Folder of downloaded weights; with None, only packaged ones are there.
    """
    rules = CacheManagement.parse(cache_management)
    profile = PROFILES[model]
    if profile.generator is None:
        if is_requested:
            raise UsageError(f"{model} cannot generate; use --model {ULTRAFLASH.name}")
        profile = ULTRAFLASH
    generator = profile.generator
    assert generator is not None, "the published model generates"
    if decoder == "ultra":
        with_ultra_decoder(profile)  # raises if the model has none
    _check_rules(rules, profile, refines=refines)

    long = profile.long_generator if _has_long_weights(profile, store) else None
    generator, latents = _choose_length(profile, generator, long, seconds=seconds, continues=continues)
    plan = plan_generation(
        latents,
        chunk=generator.chunk_latents,
        independent_first=generator.independent_first_frame and not continues,
        chunks_per_group=profile.chunks_per_group(generator),
    )
    return ClipPlan(
        model=profile.name,
        base_size=profile.base_size,
        fps=GENERATED_FPS,
        notice=profile.notice,
        generator=generator,
        is_long=generator is profile.long_generator,
        plan=plan,
        frames=plan.total_frames if seconds is None else min(plan.total_frames, _frames_for(seconds)),
        prefix_frames=tuple(map(_frames_of, _prefixes(generator, latents))) if continues else (),
        cache_management=rules,
        remarks=_remarks(profile, generator),
    )


def _check_rules(rules: CacheManagement, profile: Profile, *, refines: bool) -> None:
    """Raise UsageError for a cache rule that has no effect with the model."""
    if rules.steps is not None and profile.generator is not None and len(profile.generator.steps) == 1:
        raise UsageError(
            f"--cache-management: steps saves nothing with {profile.name}, which takes one denoising step; remove steps"
        )
    if rules.kv and profile.sr_dit is None:
        raise UsageError(
            f"--cache-management: kv shrinks the KV cache of an SR transformer, and {profile.name} has none; remove kv"
        )
    if rules.kv and not refines:
        raise UsageError(
            "--cache-management: kv saves nothing with --res 480p, where no SR transformer runs; remove kv"
        )
    if rules.kv and "kv" not in profile.saving_rules:
        raise UsageError(
            f"--cache-management: kv saves hardly any time with {profile.name}, whose SR transformer is small; "
            "remove kv"
        )
    if rules.refresh is not None and "refresh" not in profile.saving_rules:
        raise UsageError(
            f"--cache-management: refresh saves no time with {profile.name}, whose context passes cost less than "
            "the check; remove refresh"
        )


def _choose_length(
    profile: Profile,
    generator: GeneratorConfig,
    long: GeneratorConfig | None,
    *,
    seconds: float | None,
    continues: bool,
) -> tuple[GeneratorConfig, int]:
    """Choose the generator's variant and the number of latents; the long variant is
    used only if necessary."""

    def latents_of(config: GeneratorConfig) -> int:
        if seconds is not None:
            first = config.independent_first_frame and not continues
            return latents_for(seconds, chunk=config.chunk_latents, independent_first=first)
        if config.longest is None:
            return _LATENTS
        left = _PREFIX_CHUNKS * config.chunk_latents if continues else 0
        return max(config.chunk_latents, min(_LATENTS, config.longest) - left)

    def fits(config: GeneratorConfig, latents: int) -> bool:
        if continues:
            return bool(_prefixes(config, latents))
        return config.longest is None or latents <= config.longest

    sliding = None
    if not generator.slide and profile.long_generator is not None:
        sliding = replace(generator, slide=True, sink=profile.long_generator.sink)
    for config in (generator, long, sliding):
        if config is not None and fits(config, latents_of(config)):
            return config, latents_of(config)

    assert generator.longest is not None, "a window that slides takes every length"
    most = generator.longest - (generator.chunk_after(0) if continues else 0)
    most_s = float(Fraction(_frames_of(most), GENERATED_FPS))
    raise UsageError(f"{profile.name} can make clips of up to {most_s:.2f} s here, got --seconds {seconds:g}")


def _has_long_weights(profile: Profile, folder: Path | None) -> bool:
    """Return whether the generator's long variant can be loaded."""
    if profile.random_seed is not None:
        return True
    if folder is None or profile.long_generator is None:
        return False
    store, manifest = WeightStore(folder), read_manifest()
    return all(store.installed(manifest[profile.weight_of(part)]) for part in ("long_generator", "long_lora"))


def _remarks(profile: Profile, generator: GeneratorConfig) -> tuple[str, ...]:
    if generator not in (profile.generator, profile.long_generator):
        return (
            f"longer than the {generator.window} latents that {profile.name} was trained on; its memory "
            f"slides. `ultraflash weights pull {profile.name}-long` installs the variant for long clips",
        )
    return ()


def _prefixes(generator: GeneratorConfig, latents: int) -> list[int]:
    """List the numbers of latents from a clip's end, in whole chunks, that `latents`
    new ones can follow."""
    room = generator.window if generator.slide else generator.window - latents
    return list(range(generator.chunk_after(0), room + 1, generator.chunk_latents))


def _frames_of(latents: int) -> int:
    """Return the number of frames in the first ``latents`` of a stream; the first
    latent is a single frame."""
    return max(0, FRAMES_PER_LATENT * (latents - 1) + 1)


def _frames_for(seconds: float) -> int:
    """Return the number of frames in the fewest whole latents that last ``seconds``."""
    return 1 + FRAMES_PER_LATENT * max(0, math.ceil((seconds * GENERATED_FPS - 1) / FRAMES_PER_LATENT))
