"""Load the model of a job."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ultraflash_cli.engine.cache_policy import RefreshGate
from ultraflash_cli.engine.clock import StageClock
from ultraflash_cli.engine.footprint.plan import MemoryPlan, PairedPlan
from ultraflash_cli.engine.foretell import WORTH_LOOKING_PX, foretold_frame_seconds
from ultraflash_cli.engine.guard import Guard
from ultraflash_cli.engine.pictures import YuvFormat
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import LATENT_PX
from ultraflash_cli.engine.text_to_video import FIRST_STAGES
from ultraflash_cli.engine.upscaler import Upscaler
from ultraflash_cli.host import running_threads
from ultraflash_cli.jobs.planning.generate import PreparedGeneration
from ultraflash_cli.jobs.planning.upscale import Prepared, estimate_frames
from ultraflash_cli.models.build import (
    Place,
    build_text_to_video,
    build_upscaler,
    find_scorer,
    speedups_within,
    take_base_decoder,
)
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.device import (
    choose_device,
    choose_devices,
    fp8_parts,
    precision_name,
    precision_warnings,
    stage_precisions,
)
from ultraflash_cli.models.frames import FrameGenerator, FrameUpscaler, GeneratedFrames, UpscaledFrames
from ultraflash_cli.models.memory import (
    memory_budget,
    memory_budgets,
    memory_effect,
    plan_generation_memory,
    plan_paired_memory,
    plan_upscale_memory,
)
from ultraflash_cli.models.oom import oom_errors
from ultraflash_cli.models.parity import require_parity
from ultraflash_cli.models.profile import (
    find_profile,
    generating_parts,
    settings_of,
    settle_coders,
    substitutions,
    under_memory_plan,
    upscaling_parts,
    with_cache_rules,
)
from ultraflash_cli.models.prompts import embed_prompts, is_embedded, prompt_read
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.video.color import FULL, scale_matrix
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_kernels.frames_to_yuv import Matrix

__all__ = ["Builder", "GenerationBuilder", "Models", "planes_for"]

_PLANE_BITS = {"yuv420p": 8, "yuv420p10le": 10}
"""Bit depth of the planar formats that a GPU can produce."""
_PLANE_MATRICES: dict[str, Matrix] = {"bt709": "bt709", "bt470": "bt601", "smpte170m": "bt601", "bt2020": "bt2020nc"}
"""Matrices by libswscale's names."""


GenerationBuilder = Callable[[PreparedGeneration], Built[FrameGenerator]]
"""Loads the model for a clip to generate; raises DeviceError, WeightsError, OutOfMemory."""

Builder = Callable[[Prepared], Built[FrameUpscaler]]
"""Loads the model for a prepared job; raises DeviceError, WeightsError."""


class Models:
    """Builds the models of a command's jobs; networks needed by several jobs are loaded,
    and timed on a CPU, once."""

    def __init__(self, *, times_short: bool = False) -> None:
        """With `times_short`, models are also timed for clips so short that upscaling
        them takes hardly longer."""
        self._times_short = times_short
        self._shelves: dict[Path | None, Shelf] = {}
        self._pixel_seconds: dict[object, float] = {}

    def plan_upscaler(self, prepared: Prepared) -> tuple[torch.device, Profile, MemoryPlan]:
        """Decide where and how an upscale runs, without loading anything. Raises the
        same errors as `upscaler`."""
        device = choose_device(prepared.job.device, model=prepared.model)
        shelf = self._shelf(prepared.job.store)
        profile = _upscaling_profile(prepared, shelf)
        shelf.require(profile.at_scale(prepared.plan.scale), upscaling_parts(profile))
        return device, profile, _plan_upscale(prepared, profile, device, shelf)

    def plan_generator(
        self, prepared: PreparedGeneration
    ) -> tuple[tuple[torch.device, ...], Profile, MemoryPlan | PairedPlan]:
        """Decide where and how a clip is generated, without loading anything: on one
        device, or on two (`choose_devices`). Raises the same errors as `generator`."""
        job = prepared.job
        devices, shelf = choose_devices(job.device), self._shelf(job.store)
        profile = _generating_profile(prepared, shelf)
        parts = generating_parts(
            profile,
            long=prepared.long,
            refines=prepared.scale > 1,
            low_frames=prepared.low_spec is not None,
            goes_on=prepared.clip is not None,
        )
        shelf.require(profile.at_scale(max(2, prepared.scale)), parts)
        return devices, profile, _plan_generation(prepared, profile, devices, shelf)

    def plan_memory(self, prepared: Prepared | PreparedGeneration) -> MemoryPlan | PairedPlan:
        """Plan the memory of a job, without loading anything. Raises the errors of
        loading its model."""
        if isinstance(prepared, Prepared):
            return self.plan_upscaler(prepared)[2]
        return self.plan_generator(prepared)[2]

    def upscaler(self, prepared: Prepared) -> Built[FrameUpscaler]:
        """Load the model for an upscale. Raises DeviceError, WeightsError,
        OutOfMemory."""
        device, profile, memory = self.plan_upscaler(prepared)
        with oom_errors(memory.total):
            return self._load_upscaler(prepared, device, profile, memory)

    def _load_upscaler(
        self, prepared: Prepared, device: torch.device, profile: Profile, memory: MemoryPlan
    ) -> Built[FrameUpscaler]:

        job = prepared.job
        shelf = self._shelf(job.store)
        torch.set_num_threads(running_threads(prepared.threads))

        warnings = [*precision_warnings(job.precision), *memory.warnings]
        scale = prepared.plan.scale
        warnings += substitutions(profile, shelf, scale=scale, encoder=job.encoder, decoder=job.decoder)
        context = None
        if profile.upscales_by_words:
            prompt = profile.default_prompt if job.prompt is None else job.prompt
            context = self._embed(shelf, profile, prompt, job.precision, device, memory, warnings)

        timer = StageClock(device)
        detail = 1.0 if job.detail is None else job.detail
        require_parity(shelf, profile, scale=scale, device=device, precision=job.precision, detail=detail)
        upscaler = build_upscaler(
            shelf,
            under_memory_plan(profile, memory.settings),
            prepared.plan,
            device=device,
            precision=job.precision,
            strength=job.strength,
            color=job.color,
            guard=None if job.guard is None else Guard(job.guard),
            detail=detail,
            context=context,
            decode_latents=memory.settings.decode_latents,
            timer=timer,
            speedups=speedups_within(memory, device, graphs=job.cuda_graphs),
            yuv=None if job.side_by_side else planes_for(prepared.spec, device),
        )
        if device.type == "cuda":
            upscaler.warm_up()
        frame_seconds = self._frame_seconds(prepared, upscaler)
        timer.clear()

        return Built(
            model=UpscaledFrames(upscaler, timer),
            frame_seconds=frame_seconds,
            device=str(device),
            precision=precision_name(profile, job.precision, device),
            weights=shelf.hashes,
            memory_plan=memory_effect(memory.settings),
            planned_bytes=memory.total,
            state_bytes=memory.state_bytes,
            settings={} if profile.pixels else settings_of(profile),
            warnings=tuple(warnings),
        )

    def _frame_seconds(self, prepared: Prepared, upscaler: Upscaler) -> float | None:
        """Return the time per frame, measured for the first clip of a kind; None if it is
        not worth measuring."""
        job, device = prepared.job, upscaler.cascade.device
        if device.type != "cpu":
            return foretold_frame_seconds(upscaler)
        pixels = math.prod(upscaler.plan.padded)
        frames = estimate_frames(prepared.info, prepared.window) or 0
        if not self._times_short and frames * pixels < WORTH_LOOKING_PX:
            return None
        kind = (prepared.model, prepared.plan.scale, job.precision, prepared.threads)
        if kind not in self._pixel_seconds:
            seconds = foretold_frame_seconds(upscaler)
            if seconds is None:
                return None
            self._pixel_seconds[kind] = seconds / pixels
        return self._pixel_seconds[kind] * pixels

    def generator(self, prepared: PreparedGeneration) -> Built[FrameGenerator]:
        """Load the model for a clip to generate. Raises DeviceError, WeightsError,
        OutOfMemory."""
        devices, profile, memory = self.plan_generator(prepared)
        with oom_errors(memory.total, by_device=memory.totals):
            return self._load_generator(prepared, devices, profile, memory)

    def _load_generator(
        self,
        prepared: PreparedGeneration,
        devices: tuple[torch.device, ...],
        profile: Profile,
        memory: MemoryPlan | PairedPlan,
    ) -> Built[FrameGenerator]:

        job, rules = prepared.job, prepared.cache_management
        device, later = devices[0], devices[-1]
        plans = memory.plans if isinstance(memory, PairedPlan) else (memory,)
        places = [
            Place(device=each, speedups=speedups_within(plan, each, graphs=job.cuda_graphs))
            for each, plan in zip(devices, plans, strict=True)
        ]
        shelf = self._shelf(job.store)
        torch.set_num_threads(running_threads(prepared.threads))
        warnings = [*precision_warnings(job.precision), *memory.warnings]
        if prepared.scale > 1 or prepared.clip is not None:
            scale = max(2, prepared.scale)
            warnings += substitutions(profile, shelf, scale=scale, encoder="auto", decoder=job.decoder)

        prompt = prompt_read(profile, prepared.prompt, job.seed)
        context = self._embed(shelf, profile, prompt, job.precision, device, memory, warnings)
        profile = under_memory_plan(profile, memory.settings)
        timer = StageClock(later, dict.fromkeys(FIRST_STAGES, device))
        gate = None
        if rules.refresh is not None:
            judge = take_base_decoder(shelf, profile, device=device, precision=job.precision)
            gate = RefreshGate(judge, find_scorer(), rules.refresh)

        video = build_text_to_video(
            shelf,
            profile,
            prepared.plan,
            scale=prepared.scale,
            long=prepared.long,
            low_frames=prepared.low_spec is not None,
            device=device,
            precision=job.precision,
            decode_latents=memory.settings.decode_latents,
            park=torch.device("cpu") if memory.settings.offload_generator else None,
            gate=gate,
            timer=timer,
            speedups=places[0].speedups,
            second=places[1] if len(places) > 1 else None,
        )

        dtype_of = stage_precisions(profile, job.precision, device)
        if device.type == "cuda":
            height, width = (side // LATENT_PX for side in prepared.base_size)
            video.warm_up(height=height, width=width, context=context)
            timer.clear()
        encoder = None
        if prepared.clip is not None:
            encoder = shelf.take(profile, "encoder", profile.encoder, device=device, dtype=dtype_of("encoder"))

        return Built(
            model=GeneratedFrames(
                video,
                context,
                encoder,
                prepared.base_size,
                timer,
                shows_low=prepared.low_spec is not None or prepared.scale == 1,
                yuv=planes_for(prepared.spec, later),
                low_yuv=planes_for(prepared.spec if prepared.scale == 1 else prepared.low_spec, later),
            ),
            device=",".join(map(str, devices)),
            precision=precision_name(profile, job.precision, device),
            weights=shelf.hashes,
            memory_plan=memory_effect(memory.settings),
            planned_bytes=memory.total,
            planned_by_device=memory.totals,
            state_bytes=memory.state_bytes,
            settings=settings_of(profile),
            warnings=tuple(warnings),
        )

    def _embed(
        self,
        shelf: Shelf,
        profile: Profile,
        prompt: str,
        precision: str,
        device: torch.device,
        memory: MemoryPlan | PairedPlan,
        warnings: list[str],
    ) -> Tensor:

        return embed_prompts(
            shelf,
            profile,
            [prompt],
            device=device,
            precision=precision,
            keep_encoder=not memory.settings.offload_text,
            warn=warnings.append,
        )[0]

    def _shelf(self, store: Path | None) -> Shelf:

        if store not in self._shelves:
            self._shelves[store] = Shelf(store)
        return self._shelves[store]


def _upscaling_profile(prepared: Prepared, shelf: Shelf) -> Profile:
    """Return the profile of an upscale. Raises UsageError for coders that its model
    lacks."""
    job = prepared.job
    return settle_coders(find_profile(prepared.model), shelf, encoder=job.encoder, decoder=job.decoder)


def _generating_profile(prepared: PreparedGeneration, shelf: Shelf) -> Profile:
    """Return the profile for a clip to generate. Raises UsageError for options that its
    model does not support."""
    profile = settle_coders(find_profile(prepared.model), shelf, encoder="auto", decoder=prepared.job.decoder)
    name = "long_generator" if prepared.long else "generator"
    profile = replace(profile, **{name: prepared.generator})
    groups = -(-prepared.plan.total_latents // profile.group_latents)
    return with_cache_rules(profile, prepared.cache_management, long=prepared.long, groups=groups)


def _plan_upscale(prepared: Prepared, profile: Profile, device: torch.device, shelf: Shelf) -> MemoryPlan:
    """Plan the memory of an upscale. Raises OutOfMemory if even the smallest plan is
    too large."""
    job = prepared.job
    prompt = profile.default_prompt if job.prompt is None else job.prompt
    return plan_upscale_memory(
        profile,
        prepared.plan,
        device=device,
        dtype_of=stage_precisions(profile, job.precision, device),
        fp8_parts=fp8_parts(job.precision),
        budget_bytes=memory_budget(device, job.max_memory),
        encodes_text=not is_embedded(shelf, profile, prompt, precision=job.precision, device=device),
        deep=prepared.info.bit_depth > 8,
    )


def _plan_generation(
    prepared: PreparedGeneration, profile: Profile, devices: tuple[torch.device, ...], shelf: Shelf
) -> MemoryPlan | PairedPlan:
    """Plan the memory of a clip to generate. Raises OutOfMemory if even the smallest plan is too large."""
    job, device = prepared.job, devices[0]
    work: dict[str, Any] = {
        "scale": prepared.scale,
        "dtype_of": stage_precisions(profile, job.precision, device),
        "fp8_parts": fp8_parts(job.precision),
        "long": prepared.long,
        "low_frames": prepared.low_spec is not None,
        "clip": prepared.plan,
        "encodes_text": not is_embedded(shelf, profile, prepared.prompt, precision=job.precision, device=device),
    }
    budgets = memory_budgets(devices, job.max_memory)
    if len(devices) == 1:
        return plan_generation_memory(profile, device=device, budget_bytes=budgets[0], **work)
    return plan_paired_memory(profile, devices=devices, budgets=budgets, **work)


def planes_for(spec: EncodeSpec | None, device: torch.device) -> YuvFormat | None:
    """Return the YUV format in which a GPU returns pictures, if the encoder accepts it,
    else None."""
    bits = None if spec is None else _PLANE_BITS.get(spec.pix_fmt)
    if device.type != "cuda" or spec is None or bits is None or spec.turns:
        return None
    if spec.capabilities.is_jfif:
        return None  # chroma between the pixels
    matrix = _PLANE_MATRICES.get(scale_matrix(spec.color))
    return None if matrix is None else YuvFormat(matrix=matrix, full_range=spec.color.range == FULL, bits=bits)
