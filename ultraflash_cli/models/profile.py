"""Choice of a model's encoder and decoder: the requested ones, or else those
installed."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ultraflash_cli.engine.cache_policy import CacheManagement
from ultraflash_cli.engine.footprint.plan import MemorySettings
from ultraflash_cli.engine.profiles import PROFILES, RELEASED_ULTRA_DECODER, ULTRAFLASH, Profile
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig
from ultraflash_cli.errors import UsageError
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.weights.detect import READS_LOW_FRAMES

__all__ = [
    "find_profile",
    "generating_parts",
    "settings_of",
    "settle_coders",
    "substitutions",
    "ultraflash_runs",
    "under_memory_plan",
    "upscaling_parts",
    "with_cache_rules",
    "with_full_encoder",
    "with_ultra_decoder",
]

_ULTRA = "ultra_decoder"
_RELEASED = "ultra_decoder_released"
_READING = frozenset(READS_LOW_FRAMES.values())


def find_profile(model: str) -> Profile:
    """Return the profile of a model. Raises UsageError for an unknown name."""
    if model not in PROFILES:
        raise UsageError(f"unknown model {model!r}; choose from {', '.join(PROFILES)}")
    return PROFILES[model]


def ultraflash_runs(store: Path, *, scale: int, parts: Iterable[str]) -> bool:
    """Return whether the weights of these parts of the published model are in `store`
    and there is a GPU."""
    shelf = Shelf(store)
    profile = settle_coders(ULTRAFLASH.at_scale(scale), shelf, encoder="auto", decoder="auto")
    encoder = _encoder_part(profile)
    installed = all(shelf.has(profile, encoder if part == "encoder" else part) for part in parts)
    return installed and torch.cuda.is_available()


def settle_coders(profile: Profile, shelf: Shelf, *, encoder: str, decoder: str) -> Profile:
    """Return the profile with the requested coders; ``auto`` uses the small ones if
    they are installed, or else the ultra decoder and the full autoencoder's encoder if
    those are. A decoder whose weights read low-resolution frames gets them. Raises
    UsageError for a coder that the model lacks.
    """
    small = profile.decoder is None or shelf.has(profile, "decoder")
    if decoder == "ultra" or (decoder == "auto" and not small and _has_ultra(profile, shelf)):
        profile = with_ultra_decoder(profile, released=shelf.architecture(profile, _ULTRA) == _RELEASED)
    if profile.decoder is not None and shelf.architecture(profile, "decoder") in _READING:
        profile = replace(profile, decoder=replace(profile.decoder, reads_low_frames=True))
    if encoder == "wan-vae":
        return with_full_encoder(profile)
    lacks_encoder = isinstance(profile.encoder, EncoderConfig) and not shelf.has(profile, "encoder")
    if encoder == "auto" and lacks_encoder and profile.wan_vae is not None and shelf.has(profile, "wan_vae"):
        return with_full_encoder(profile)
    return profile


def substitutions(profile: Profile, shelf: Shelf, *, scale: int, encoder: str, decoder: str) -> list[str]:
    """Return a sentence for each part of a profile that replaces another one."""
    said: list[str] = []
    if profile.random_seed is not None:
        return said
    if encoder == "auto" and isinstance(profile.encoder, WanVaeConfig):
        said.append("the small encoder is not installed; using the full autoencoder's, which is slower")
    if decoder == "auto" and profile.decoder and profile.weight_of("decoder") == _weight_of_ultra(profile):
        said.append("the small decoder is not installed; using the ultra decoder")
    if profile.sr_dit is not None:
        asked = profile.at_scale(scale).weight_of("sr_dit")
        served = shelf.served_by(asked)
        if served != asked:
            said.append(f"{asked} is not installed; using {served} at x{scale}")
    return said


def with_full_encoder(profile: Profile) -> Profile:
    """Return the profile with the full autoencoder's encoder instead of the small one
    (reference/cascade.md 7)."""
    if profile.wan_vae is None:
        raise UsageError(f"{profile.name} has only one encoder; remove --encoder")
    dropped = profile.alignment.drop_front
    alone = replace(profile.alignment, pad_front=dropped, copy_front=False)
    return replace(profile, encoder=profile.wan_vae, alignment=alone)


def with_ultra_decoder(profile: Profile, *, released: bool = False) -> Profile:
    """Return the profile with the larger decoder instead of the tiny one
    (reference/cascade.md 6.3). The published class has its own encoder; the
    ``released`` file contains only a decoder, which is used with the tiny one's
    encoder.
    """
    if _weight_of_ultra(profile) is None:
        raise UsageError(f"{profile.name} has only one decoder; remove --decoder")
    replaced = ("decoder",) if released else ("encoder", "decoder")
    ultra = _weight_of_ultra(profile) or ""
    weights = tuple((part, ultra if part in replaced else name) for part, name in profile.weights)
    if released:
        decoder = replace(RELEASED_ULTRA_DECODER, latent_channels=profile.base_decoder.latent_channels)
        return replace(profile, decoder=decoder, weights=weights)
    encoder = profile.encoder
    if isinstance(encoder, EncoderConfig):
        encoder = replace(encoder, memory_init="replicate")
    decoder = replace(profile.base_decoder, upsampling="pixel_shuffle", memory_init="replicate")
    return replace(profile, encoder=encoder, decoder=decoder, weights=weights)


def _has_ultra(profile: Profile, shelf: Shelf) -> bool:
    return _weight_of_ultra(profile) is not None and shelf.has(profile, _ULTRA)


def _weight_of_ultra(profile: Profile) -> str | None:
    return dict(profile.weights).get(_ULTRA)


def upscaling_parts(profile: Profile) -> list[str]:
    """List the parts of a profile that an upscale loads; for a pixel path, those for a
    detail between 0 and 1."""
    if profile.pixels is not None:
        return ["pixels", "pixels_detail"]
    parts = [_encoder_part(profile), *_refining_parts(profile)]
    return [*parts, "text_encoder"] if profile.upscales_by_words else parts


def generating_parts(
    profile: Profile, *, long: bool = False, refines: bool, low_frames: bool = False, goes_on: bool = False
) -> list[str]:
    """List the parts of a profile that generating a clip loads; the arguments describe
    the clip."""
    parts = ["long_generator", "long_lora"] if long else ["generator"]
    parts += ["text_encoder"] if profile.text_encoder is not None else []
    parts += [_encoder_part(profile)] if goes_on else []
    parts += _refining_parts(profile) if refines else []
    if low_frames or not refines:
        parts.append("decoder")
    return list(dict.fromkeys(parts))


def _refining_parts(profile: Profile) -> list[str]:
    return ["upsampler", "decoder"] if profile.sr_dit is None else ["upsampler", "sr_dit", "decoder"]


def _encoder_part(profile: Profile) -> str:
    return "wan_vae" if isinstance(profile.encoder, WanVaeConfig) else "encoder"


def under_memory_plan(profile: Profile, settings: MemorySettings) -> Profile:
    """Return the profile with the settings of a memory plan applied."""
    sr_dit = profile.sr_dit
    if sr_dit is not None:
        sr_dit = settings.apply_to(sr_dit)
    return replace(profile, sr_dit=sr_dit, group_latents=settings.group_latents)


def with_cache_rules(profile: Profile, rules: CacheManagement, *, long: bool, groups: int) -> Profile:
    """Return the profile with the rules of dynamic cache management applied, for a clip
    of this many groups. A profile may shrink the SR transformer's KV cache over a long
    clip regardless of the request.
    """
    changes: dict[str, Any] = {}
    name = "long_generator" if long else "generator"
    generator = profile.long_generator if long else profile.generator
    if generator is not None:
        changes[name] = rules.apply_generator(generator)
    if profile.sr_dit is not None:
        shrinking = replace(rules, kv=rules.kv or (long and profile.long_kv_schedule))
        changes["sr_dit"] = shrinking.apply_sr(profile.sr_dit, groups)
    return replace(profile, **changes)


def settings_of(profile: Profile) -> dict[str, object]:
    """Return the settings of a profile that affect the results of its SR transformer,
    for reports."""
    sr_dit = profile.sr_dit
    if sr_dit is None:
        return {}
    return {
        "condition_noise": profile.condition_noise,
        "timestep": sr_dit.timestep,
        "kv_len": list(sr_dit.kv_schedule) or sr_dit.kv_len,
    }
