"""The model of a job: built by torch, seen by the job as pictures in and pictures out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.flow import FrameGenerator, FrameUpscaler
from ultraflash_cli.jobs.generation_preflight import PreparedGeneration
from ultraflash_cli.jobs.preflight import Prepared
from ultraflash_cli.jobs.work import telling_memory_errors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ultraflash_cli.engine.cache_policy import CacheManagement, Scorer
    from ultraflash_cli.engine.clock import StageClock
    from ultraflash_cli.engine.lanes import Arriving, Outlet
    from ultraflash_cli.engine.memory import MemoryPlan, MemorySettings
    from ultraflash_cli.engine.pictures import Picture, YuvFormat
    from ultraflash_cli.engine.profiles import Profile
    from ultraflash_cli.engine.text_to_video import TextToVideo, TextToVideoState
    from ultraflash_cli.engine.upscaler import Upscaler, UpscalerState
    from ultraflash_cli.jobs.assemble import Shelf, Speedups
    from ultraflash_cli.jobs.flow import Pictures
    from ultraflash_kernels.frames_to_yuv import Matrix

__all__ = [
    "Builder",
    "Built",
    "BuiltGeneration",
    "GenerationBuilder",
    "Models",
    "as_frame_generator",
    "as_frame_upscaler",
    "build",
    "chosen_coders",
    "planes_for",
]

_LATENT_PX = 8
_SCORERS = "ultraflash.scorers"
_PLANE_BITS = {"yuv420p": 8, "yuv420p10le": 10}
"""Bits of the formats of planes that a GPU makes."""
_PLANE_MATRICES: "dict[str, Matrix]" = {"bt709": "bt709", "bt470": "bt601", "smpte170m": "bt601", "bt2020": "bt2020nc"}
"""By libswscale's names."""
_QUEUES = ("waiting_tchw", "cascade.queue_bcthw")
"""Parts of a state that hold frames waiting for their group: empty between groups, and large."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model that is ready, and what it turned out to be."""

    upscaler: FrameUpscaler
    device: str
    precision: str
    weights: dict[str, str]
    """The sha256 of every weight file by its name."""
    memory_plan: str = ""
    """What the plan of its memory changes of the result, however little; nothing is resumed under another one."""
    planned_bytes: int | None = None
    """What that plan is for; None where none was made."""
    state_bytes: int = 0
    """What a saved state takes."""
    warnings: tuple[str, ...] = ()
    """What was noticed on the way."""


@dataclass(frozen=True, kw_only=True)
class BuiltGeneration:
    """A model that is ready to make one clip, and what it turned out to be."""

    generator: FrameGenerator
    device: str
    precision: str
    weights: dict[str, str]
    """The sha256 of every weight file by its name."""
    memory_plan: str = ""
    """What the plan of its memory changes of the result, however little; nothing is resumed under another one."""
    planned_bytes: int | None = None
    """What that plan is for; None where none was made."""
    state_bytes: int = 0
    """What a saved state takes."""
    warnings: tuple[str, ...] = ()
    """What was noticed on the way: a prompt that was cut, a smaller plan for lack of memory."""


GenerationBuilder = Callable[[PreparedGeneration], BuiltGeneration]
"""Loads the model for a clip to generate; raises DeviceError, WeightsError, OutOfMemory."""

Builder = Callable[[Prepared], Built]
"""Loads the model for a prepared job; raises DeviceError, WeightsError."""


class Models:
    """Builds the models of a command's jobs; what several of them need is loaded once."""

    def __init__(self) -> None:
        self._shelves: dict[Path | None, Shelf] = {}

    def plan_upscaler(self, prepared: Prepared) -> "tuple[torch.device, Profile, MemoryPlan]":
        """Decide where and how an upscaling runs, loading nothing. Raises as `upscaler` does."""
        from ultraflash_cli.jobs.assemble import choose_device

        device, shelf, profile = (
            choose_device(prepared.job.device),
            self._shelf(prepared.job.store),
            profile_of(prepared),
        )
        shelf.require(profile.at_scale(prepared.plan.scale), upscaling_parts(profile))
        return device, profile, plan_upscale(prepared, profile, device, shelf)

    def plan_generator(self, prepared: PreparedGeneration) -> "tuple[torch.device, Profile, MemoryPlan]":
        """Decide where and how a clip is generated, loading nothing. Raises as `generator` does."""
        from ultraflash_cli.jobs.assemble import choose_device

        job = prepared.job
        device, shelf, profile = choose_device(job.device), self._shelf(job.store), generating_profile_of(prepared)
        parts = generating_parts(
            profile,
            long=prepared.long,
            refines=prepared.scale > 1,
            low_frames=prepared.low_spec is not None,
            goes_on=prepared.clip is not None,
        )
        shelf.require(profile.at_scale(max(2, prepared.scale)), parts)
        return device, profile, plan_generation(prepared, profile, device, shelf)

    def upscaler(self, prepared: Prepared) -> Built:
        """Load the model of an upscaling. Raises DeviceError, WeightsError, OutOfMemory."""
        device, profile, memory = self.plan_upscaler(prepared)
        with telling_memory_errors(memory.total):
            return self._load_upscaler(prepared, device, profile, memory)

    def _load_upscaler(
        self, prepared: Prepared, device: "torch.device", profile: "Profile", memory: "MemoryPlan"
    ) -> Built:
        import torch

        from ultraflash_cli.engine.clock import StageClock
        from ultraflash_cli.jobs.assemble import build_upscaler, precision_name, precision_warnings

        job = prepared.job
        shelf = self._shelf(job.store)
        torch.set_num_threads(prepared.threads)
        warnings = [*precision_warnings(job.precision), *memory.warnings]
        context = None
        if profile.refines_by_words:
            prompt = profile.default_prompt if job.prompt is None else job.prompt
            context = self._embed(shelf, profile, prompt, job.precision, device, memory, warnings)
        timer = StageClock(device)
        upscaler = build_upscaler(
            shelf,
            within(profile, memory.settings),
            prepared.plan,
            device=device,
            precision=job.precision,
            strength=job.strength,
            color=job.color,
            context=context,
            decode_latents=memory.settings.decode_latents,
            timer=timer,
            speedups=speedups_within(memory, device, graphs=job.cuda_graphs),
            yuv=planes_for(prepared, device),
        )
        if device.type == "cuda":
            upscaler.warm_up()
            timer.clear()
        return Built(
            upscaler=_Upscaling(upscaler, timer),
            device=str(device),
            precision=precision_name(profile, job.precision, device),
            weights=shelf.hashes,
            memory_plan=_effect_of(memory.settings),
            planned_bytes=memory.total,
            state_bytes=memory.state_bytes,
            warnings=tuple(warnings),
        )

    def generator(self, prepared: PreparedGeneration) -> BuiltGeneration:
        """Load the model of a clip to generate. Raises DeviceError, WeightsError, OutOfMemory."""
        device, profile, memory = self.plan_generator(prepared)
        with telling_memory_errors(memory.total):
            return self._load_generator(prepared, device, profile, memory)

    def _load_generator(
        self, prepared: PreparedGeneration, device: "torch.device", profile: "Profile", memory: "MemoryPlan"
    ) -> BuiltGeneration:
        import torch

        from ultraflash_cli.engine.cache_policy import RefreshGate
        from ultraflash_cli.engine.clock import StageClock
        from ultraflash_cli.jobs.assemble import (
            build_text_to_video,
            precision_name,
            precision_warnings,
            stage_precisions,
            take_base_decoder,
        )
        from ultraflash_cli.jobs.prompts import prompt_read

        job, rules = prepared.job, prepared.cache_management
        shelf = self._shelf(job.store)
        torch.set_num_threads(prepared.threads)
        warnings = [*precision_warnings(job.precision), *memory.warnings]
        prompt = prompt_read(profile, prepared.prompt, job.seed)
        context = self._embed(shelf, profile, prompt, job.precision, device, memory, warnings)
        profile = within(profile, memory.settings)
        timer = StageClock(device)
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
            timer=timer,
            speedups=speedups_within(memory, device, graphs=job.cuda_graphs),
        )
        dtype_of = stage_precisions(profile, job.precision, device)
        video.generator.gate = None
        if rules.refresh is not None:
            judge = take_base_decoder(shelf, profile, device=device, precision=job.precision)
            video.generator.gate = RefreshGate(judge, find_scorer(), rules.refresh)
        if device.type == "cuda":
            height, width = (side // _LATENT_PX for side in prepared.base_size)
            video.warm_up(height=height, width=width, context=context)
            timer.clear()
        encoder = None
        if prepared.clip is not None:
            encoder = shelf.take(profile, "encoder", profile.encoder, device=device, dtype=dtype_of("encoder"))
        return BuiltGeneration(
            generator=_Drawing(
                video,
                context,
                encoder,
                prepared.base_size,
                timer,
                shows_low=prepared.low_spec is not None or prepared.scale == 1,
            ),
            device=str(device),
            precision=precision_name(profile, job.precision, device),
            weights=shelf.hashes,
            memory_plan=_effect_of(memory.settings),
            planned_bytes=memory.total,
            state_bytes=memory.state_bytes,
            warnings=tuple(warnings),
        )

    def _embed(
        self,
        shelf: "Shelf",
        profile: "Profile",
        prompt: str,
        precision: str,
        device: "torch.device",
        memory: "MemoryPlan",
        warnings: list[str],
    ) -> "Tensor":
        from ultraflash_cli.jobs.prompts import embed_prompts

        return embed_prompts(
            shelf,
            profile,
            [prompt],
            device=device,
            precision=precision,
            keep_encoder=not memory.settings.offload_text,
            warn=warnings.append,
        )[0]

    def _shelf(self, store: Path | None) -> "Shelf":
        from ultraflash_cli.jobs.assemble import Shelf

        if store not in self._shelves:
            self._shelves[store] = Shelf(store)
        return self._shelves[store]


def planes_for(prepared: Prepared, device: "torch.device") -> "YuvFormat | None":
    """Return the planes that a GPU makes of finished pictures where the encoder takes them as they are, else None."""
    from ultraflash_cli.engine.pictures import YuvFormat
    from ultraflash_cli.video.color import FULL, scale_matrix

    spec, bits = prepared.spec, _PLANE_BITS.get(prepared.spec.pix_fmt)
    if device.type != "cuda" or bits is None or spec.turns or prepared.job.side_by_side:
        return None
    matrix = _PLANE_MATRICES.get(scale_matrix(spec.color))
    return None if matrix is None else YuvFormat(matrix=matrix, full_range=spec.color.range == FULL, bits=bits)


def _effect_of(settings: "MemorySettings") -> str:
    """Name what a memory plan changes in the result: a GPU may add up a smaller piece in another order, too."""
    pieces = f", {settings.decode_latents} latents decoded at once" if settings.decode_latents else ""
    return f"kv_len {settings.kv_len}, groups of {settings.group_latents}{pieces}"


def build(prepared: Prepared) -> Built:
    """Load the model of one upscaling. Raises DeviceError, WeightsError."""
    return Models().upscaler(prepared)


def profile_of(prepared: Prepared) -> "Profile":
    """Return the profile that an upscaling runs. Raises UsageError for what its model does not have."""
    from ultraflash_cli.jobs.assemble import find_profile

    job = prepared.job
    profile = chosen_coders(find_profile(prepared.model), encoder=job.encoder, decoder=job.decoder)
    if job.prompt is not None and not profile.refines_by_words:
        raise UsageError(f"the model {profile.name} takes no words; leave --prompt out")
    return profile


def generating_profile_of(prepared: PreparedGeneration) -> "Profile":
    """Return the profile that a clip to generate runs. Raises UsageError for what its model does not have."""
    from ultraflash_cli.jobs.assemble import find_profile

    profile = chosen_coders(find_profile(prepared.model), encoder="auto", decoder=prepared.job.decoder)
    name = "long_generator" if prepared.long else "generator"
    profile = replace(profile, **{name: prepared.generator})
    groups = len(prepared.plan.groups)
    return managed(profile, prepared.cache_management, long=prepared.long, groups=groups)


def upscaling_parts(profile: "Profile") -> list[str]:
    """List the parts of a profile that an upscaling loads."""
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
    if low_frames or not refines or profile.decoder.skip is not None:
        parts.append(profile.base_decoder_part)
    return list(dict.fromkeys(parts))


def _refining_parts(profile: "Profile") -> list[str]:
    return ["upsampler", "decoder"] if profile.sr_dit is None else ["upsampler", "sr_dit", "decoder"]


def _encoder_part(profile: "Profile") -> str:
    from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig

    return "wan_vae" if isinstance(profile.encoder, WanVaeConfig) else "encoder"


def plan_upscale(prepared: Prepared, profile: "Profile", device: "torch.device", shelf: "Shelf") -> "MemoryPlan":
    """Plan the memory of an upscaling. Raises OutOfMemory where even the smallest plan is too large."""
    from ultraflash_cli.jobs.assemble import stage_precisions
    from ultraflash_cli.jobs.memory import memory_budget, plan_upscale_memory
    from ultraflash_cli.jobs.prompts import is_embedded

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
    """Plan the memory of a clip to generate. Raises OutOfMemory where even the smallest plan is too large."""
    from ultraflash_cli.jobs.assemble import stage_precisions
    from ultraflash_cli.jobs.memory import memory_budget, plan_generation_memory
    from ultraflash_cli.jobs.prompts import is_embedded

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
    from ultraflash_cli.jobs.assemble import Speedups

    roomy = memory.budget_bytes is None or memory.total + memory.beside_bytes <= memory.budget_bytes
    fits = device.type == "cuda" and roomy
    return Speedups(graphs=graphs and fits, lanes=fits and not memory.settings.offload_generator)


def within(profile: "Profile", settings: "MemorySettings") -> "Profile":
    """Return the profile under the settings of a memory plan."""
    sr_dit = profile.sr_dit
    if sr_dit is not None:
        sr_dit = settings.apply_to(sr_dit)
    return replace(profile, sr_dit=sr_dit, group_latents=settings.group_latents)


def chosen_coders(profile: "Profile", *, encoder: str, decoder: str) -> "Profile":
    """Return the profile with the coders asked for. Raises UsageError for one that the model does not have."""
    from ultraflash_cli.jobs.assemble import with_full_encoder, with_ultra_decoder

    if encoder == "wan-vae":
        profile = with_full_encoder(profile)
    if decoder == "ultra":
        profile = with_ultra_decoder(profile)
    return profile


def managed(profile: "Profile", rules: "CacheManagement", *, long: bool, groups: int) -> "Profile":
    """Return the profile under the rules of dynamic cache management, for a clip of so many groups."""
    changes: dict[str, Any] = {}
    name = "long_generator" if long else "generator"
    generator = profile.long_generator if long else profile.generator
    if generator is not None:
        changes[name] = rules.apply_generator(generator)
    if profile.sr_dit is not None:
        changes["sr_dit"] = rules.apply_sr(profile.sr_dit, groups)
    return replace(profile, **changes)


def find_scorer() -> "Scorer":
    """Return the scorer of a plug-in in the entry-point group ``ultraflash.scorers``, else the built-in one."""
    from ultraflash_cli.engine.cache_policy import SharpnessDrift

    for plugin in sorted(entry_points(group=_SCORERS), key=lambda each: each.name):
        return plugin.load()()
    return SharpnessDrift()


def as_frame_upscaler(upscaler: "Upscaler", timer: "StageClock") -> FrameUpscaler:
    """Return the engine's upscaler as a job sees it."""
    return _Upscaling(upscaler, timer)


def as_frame_generator(
    video: "TextToVideo", context: "Tensor", base_size: tuple[int, int], timer: "StageClock"
) -> FrameGenerator:
    """Return the engine's cascade of a prompt as a job sees it."""
    return _Drawing(video, context, None, base_size, timer, shows_low=video.refiner is None)


class _Upscaling:
    """The engine's upscaler with its states as bytes and its stages timed."""

    def __init__(self, upscaler: "Upscaler", timer: "StageClock") -> None:
        self._upscaler = upscaler
        self._timer = timer

    @property
    def stage_seconds(self) -> dict[str, float]:
        return self._timer.seconds

    def group_frames(self, first: bool) -> int:
        return self._upscaler.group_frames(first=first)

    def init_state(self, *, seed: int, first_frame: int) -> "UpscalerState":
        return self._upscaler.init_state(seed=seed, first_frame=first_frame)

    def step(self, state: "UpscalerState", frames: "list[Picture]") -> "tuple[UpscalerState, Pictures]":
        return self._upscaler.launch(state, frames)

    def flush(self, state: "UpscalerState") -> "Pictures":
        return self._upscaler.launch_flush(state)

    def held(self, state: "UpscalerState") -> int:
        return state.waiting

    def state_bytes(self, state: "UpscalerState") -> int:
        from ultraflash_cli.engine.stage import state_bytes

        return state_bytes(state) - state.waiting_tchw.nbytes - state.cascade.queue_bcthw.nbytes

    def save_state(self, state: "UpscalerState") -> bytes:
        from safetensors.torch import save

        return save(_without_queues(state))

    def load_state(self, content: bytes, *, seed: int, first_frame: int) -> "UpscalerState":
        from safetensors.torch import load

        from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors

        fresh = self.init_state(seed=seed, first_frame=first_frame)
        kept = load(content)
        queues = {name: tensor for name, tensor in state_to_tensors(fresh).items() if name in _QUEUES}
        return state_from_tensors(fresh, queues | kept)


def _without_queues(state: "UpscalerState") -> "dict[str, Tensor]":
    """Return a state's tensors between two groups, when only the frames that the encoder is ahead by wait."""
    from ultraflash_cli.engine.stage import state_to_tensors

    empty = _QUEUES if state.waiting == 0 else _QUEUES[1:]
    return {name: tensor for name, tensor in state_to_tensors(state).items() if name not in empty}


class _Drawing:
    """The engine's cascade of a prompt with pictures out, its states as bytes and its stages timed."""

    def __init__(
        self,
        video: "TextToVideo",
        context: "Tensor",
        encoder: "nn.Module | None",
        base_size: tuple[int, int],
        timer: "StageClock",
        *,
        shows_low: bool,
    ) -> None:
        from ultraflash_cli.engine.lanes import outlet_for

        self._video = video
        self._context = context
        self._encoder = encoder
        self._base_size = base_size
        self._timer = timer
        self._shows_low = shows_low
        self._outlet, self._low_outlet = outlet_for(video.device), outlet_for(video.device)

    @property
    def group_frames(self) -> tuple[int, ...]:
        return self._video.plan.pixel_frames

    @property
    def stage_seconds(self) -> dict[str, float]:
        return self._timer.seconds

    def init_state(self, *, seed: int, clip: "list[Picture] | None" = None) -> "TextToVideoState":
        height, width = (side // _LATENT_PX for side in self._base_size)
        prefix = self._encode(clip) if clip else None
        return self._video.init_state(height=height, width=width, seed=seed, context=self._context, prefix_bcthw=prefix)

    def step(self, state: "TextToVideoState") -> "tuple[TextToVideoState, Pictures, Pictures]":
        state, group = self._video.step(state)
        with self._timer("finish"):
            low = self._pictures(group.low_frames_bcthw, self._low_outlet) if self._shows_low else []
            if group.frames_bcthw is None:
                return state, low, []
            return state, self._pictures(group.frames_bcthw, self._outlet), low

    def counters(self, state: "TextToVideoState") -> dict[str, int]:
        generator = state.generator
        counters = {
            "groups": state.groups,
            "chunks": generator.chunks,
            "generator_passes": generator.passes,
            "refreshes_skipped": generator.refreshes_skipped,
        }
        if state.refiner is not None and state.refiner.sr_dit is not None:
            counters["sr_blocks_remembered"] = state.refiner.sr_dit.caches[0].fill
        return counters

    def state_bytes(self, state: "TextToVideoState") -> int:
        from ultraflash_cli.engine.stage import state_bytes

        return state_bytes(state)

    def save_state(self, state: "TextToVideoState") -> bytes:
        from safetensors.torch import save

        from ultraflash_cli.engine.stage import state_to_tensors

        self._video.settle()
        return save(state_to_tensors(state))

    def load_state(self, content: bytes, *, seed: int) -> "TextToVideoState":
        from safetensors.torch import load

        from ultraflash_cli.engine.stage import state_from_tensors

        return state_from_tensors(self.init_state(seed=seed), load(content))

    def _encode(self, clip: "list[Picture]") -> "Tensor":
        """Return the latents of a clip of 1 + 4k frames of the base size."""
        import torch

        from ultraflash_cli.engine.pictures import to_tensor
        from ultraflash_cli.engine.stages.encoder import Encoder

        encoder, profile = self._encoder, self._video.profile
        assert isinstance(encoder, Encoder), "a clip to go on from comes with an encoder"
        height, width = self._base_size
        device = next(encoder.parameters()).device
        frames = torch.stack([to_tensor(picture) for picture in clip], dim=1)[None].to(device)
        back = -(frames.shape[2] + profile.pad_front) % 4
        padded = [
            frames[:, :, :1].expand(-1, -1, profile.pad_front, -1, -1),
            frames,
            frames[:, :, -1:].expand(-1, -1, back, -1, -1),
        ]
        with torch.inference_mode(), self._timer("encoder"):
            return encoder.step(encoder.init_state(batch=1, height=height, width=width), torch.cat(padded, dim=2))[1]

    @staticmethod
    def _pictures(frames_bcthw: "Tensor | None", outlet: "Outlet") -> "Sequence[Arriving]":
        from ultraflash_cli.engine.pictures import quantise

        if frames_bcthw is None:
            return []
        return outlet.send(quantise(frame, deep=False) for frame in frames_bcthw[0].unbind(1))
