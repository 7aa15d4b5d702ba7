"""What a job runs with: its profile and the parts of it that are loaded, its memory plan, and what hangs on those."""

from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.planning.generate import PreparedGeneration
from ultraflash_cli.jobs.planning.upscale import Prepared

if TYPE_CHECKING:
    import torch

    from ultraflash_cli.engine.cache_policy import CacheManagement, Scorer
    from ultraflash_cli.engine.memory import MemoryPlan, MemorySettings
    from ultraflash_cli.engine.pictures import YuvFormat
    from ultraflash_cli.engine.profiles import Profile
    from ultraflash_cli.models.build import Shelf, Speedups
    from ultraflash_cli.video.encode import EncodeSpec
    from ultraflash_kernels.frames_to_yuv import Matrix

__all__ = [
    "effect_of",
    "find_scorer",
    "generating_parts",
    "generating_profile_of",
    "managed",
    "plan_generation",
    "plan_upscale",
    "planes_for",
    "profile_of",
    "settings_of",
    "speedups_within",
    "upscaling_parts",
    "within",
]

_SCORERS = "ultraflash.scorers"
_PLANE_BITS = {"yuv420p": 8, "yuv420p10le": 10}
"""Bits of the formats of planes that a GPU makes."""
_PLANE_MATRICES: "dict[str, Matrix]" = {"bt709": "bt709", "bt470": "bt601", "smpte170m": "bt601", "bt2020": "bt2020nc"}
"""By libswscale's names."""


def profile_of(prepared: Prepared, shelf: "Shelf") -> "Profile":
    """Return the profile that an upscaling runs. Raises UsageError for what its model does not have."""
    from ultraflash_cli.models.build import find_profile
    from ultraflash_cli.models.coders import settle_coders

    job = prepared.job
    profile = settle_coders(find_profile(prepared.model), shelf, encoder=job.encoder, decoder=job.decoder)
    if job.prompt is not None and not profile.refines_by_words:
        raise UsageError(f"{profile.name} does not use a prompt; remove --prompt")
    if job.detail is not None and profile.pixels is None:
        raise UsageError(f"{profile.name} has no adjustable detail; remove --detail")
    return profile


def generating_profile_of(prepared: PreparedGeneration, shelf: "Shelf") -> "Profile":
    """Return the profile that a clip to generate runs. Raises UsageError for what its model does not have."""
    from ultraflash_cli.models.build import find_profile
    from ultraflash_cli.models.coders import settle_coders

    profile = settle_coders(find_profile(prepared.model), shelf, encoder="auto", decoder=prepared.job.decoder)
    name = "long_generator" if prepared.long else "generator"
    profile = replace(profile, **{name: prepared.generator})
    groups = len(prepared.plan.groups)
    return managed(profile, prepared.cache_management, long=prepared.long, groups=groups)


def upscaling_parts(profile: "Profile") -> list[str]:
    """List the parts of a profile that an upscaling loads; those of a pixel path between detail 0 and 1."""
    if profile.pixels is not None:
        return ["pixels", "pixels_detail"]
    parts = [_encoder_part(profile), *_refining_parts(profile)]
    return [*parts, "text_encoder"] if profile.refines_by_words else parts


def generating_parts(
    profile: "Profile", *, long: bool = False, refines: bool, low_frames: bool = False, goes_on: bool = False
) -> list[str]:
    """List the parts of a profile that making a clip loads; the arguments are those of the clip."""
    parts = ["long_generator", "long_lora"] if long else ["generator"]
    parts += ["text_encoder"] if profile.text_encoder is not None else []
    parts += [_encoder_part(profile)] if goes_on else []
    parts += _refining_parts(profile) if refines else []
    if low_frames or not refines or not profile.refines_latents:
        parts.append(profile.base_decoder_part)
    return list(dict.fromkeys(parts))


def _refining_parts(profile: "Profile") -> list[str]:
    if not profile.refines_latents:
        return ["pixels"]
    return ["upsampler", "decoder"] if profile.sr_dit is None else ["upsampler", "sr_dit", "decoder"]


def _encoder_part(profile: "Profile") -> str:
    from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig

    return "wan_vae" if isinstance(profile.encoder, WanVaeConfig) else "encoder"


def plan_upscale(prepared: Prepared, profile: "Profile", device: "torch.device", shelf: "Shelf") -> "MemoryPlan":
    """Plan the memory of an upscaling. Raises OutOfMemory if even the smallest plan is too large."""
    from ultraflash_cli.models.build import stage_precisions
    from ultraflash_cli.models.memory import memory_budget, plan_upscale_memory
    from ultraflash_cli.models.prompts import is_embedded

    job = prepared.job
    prompt = profile.default_prompt if job.prompt is None else job.prompt
    return plan_upscale_memory(
        profile,
        prepared.plan,
        device=device,
        dtype_of=stage_precisions(profile, job.precision, device),
        budget_bytes=memory_budget(device, job.max_memory),
        encodes_text=not is_embedded(shelf, profile, prompt, precision=job.precision, device=device),
        deep=prepared.info.bit_depth > 8,
    )


def plan_generation(
    prepared: PreparedGeneration, profile: "Profile", device: "torch.device", shelf: "Shelf"
) -> "MemoryPlan":
    """Plan the memory of a clip to generate. Raises OutOfMemory if even the smallest plan is too large."""
    from ultraflash_cli.models.build import stage_precisions
    from ultraflash_cli.models.memory import memory_budget, plan_generation_memory
    from ultraflash_cli.models.prompts import is_embedded

    job = prepared.job
    return plan_generation_memory(
        profile,
        scale=prepared.scale,
        device=device,
        dtype_of=stage_precisions(profile, job.precision, device),
        long=prepared.long,
        low_frames=prepared.low_spec is not None,
        budget_bytes=memory_budget(device, job.max_memory),
        encodes_text=not is_embedded(shelf, profile, prepared.prompt, precision=job.precision, device=device),
    )


def speedups_within(memory: "MemoryPlan", device: "torch.device", *, graphs: bool) -> "Speedups":
    """Choose the ways that make work on a GPU denser where a memory plan leaves room for them."""
    from ultraflash_cli.models.build import Speedups

    roomy = memory.budget_bytes is None or memory.total + memory.beside_bytes <= memory.budget_bytes
    fits = device.type == "cuda" and roomy
    beside = memory.total + memory.beside_bytes + memory.ring_bytes
    paired = memory.budget_bytes is None or beside <= memory.budget_bytes
    return Speedups(
        graphs=graphs and fits,
        lanes=fits and not memory.settings.offload_generator,
        paired_caches=fits and paired,
    )


def within(profile: "Profile", settings: "MemorySettings") -> "Profile":
    """Return the profile under the settings of a memory plan."""
    sr_dit = profile.sr_dit
    if sr_dit is not None:
        sr_dit = settings.apply_to(sr_dit)
    return replace(profile, sr_dit=sr_dit, group_latents=settings.group_latents)


def managed(profile: "Profile", rules: "CacheManagement", *, long: bool, groups: int) -> "Profile":
    """Return the profile under the rules of dynamic cache management, for a clip of this many groups.

    A profile may have the SR transformer's memory shrink over a long clip whatever was requested.
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


def settings_of(profile: "Profile") -> dict[str, object]:
    """Return the settings of a profile that change what its SR transformer makes, for reports."""
    sr_dit = profile.sr_dit
    if sr_dit is None:
        return {}
    return {
        "condition_noise": profile.condition_noise,
        "timestep": sr_dit.timestep,
        "kv_len": list(sr_dit.kv_schedule) or sr_dit.kv_len,
    }


def find_scorer() -> "Scorer":
    """Return the scorer of a plug-in in the entry-point group ``ultraflash.scorers``, else the built-in one."""
    from ultraflash_cli.engine.cache_policy import SharpnessDrift

    for plugin in sorted(entry_points(group=_SCORERS), key=lambda each: each.name):
        return plugin.load()()
    return SharpnessDrift()


def planes_for(spec: "EncodeSpec | None", device: "torch.device") -> "YuvFormat | None":
    """Return the planes that a GPU makes of finished pictures where the encoder takes them as they are, else None."""
    from ultraflash_cli.engine.pictures import YuvFormat
    from ultraflash_cli.video.color import FULL, scale_matrix

    bits = None if spec is None else _PLANE_BITS.get(spec.pix_fmt)
    if device.type != "cuda" or spec is None or bits is None or spec.turns:
        return None
    matrix = _PLANE_MATRICES.get(scale_matrix(spec.color))
    return None if matrix is None else YuvFormat(matrix=matrix, full_range=spec.color.range == FULL, bits=bits)


def effect_of(settings: "MemorySettings") -> str:
    """Return what a memory plan changes in the result: a GPU may add up a smaller piece in another order, too."""
    pieces = f", {settings.decode_latents} latents decoded at once" if settings.decode_latents else ""
    return f"kv_len {settings.kv_len}, groups of {settings.group_latents}{pieces}"
