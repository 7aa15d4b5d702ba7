"""Generate video from prompts: low-resolution latents by chunk, refined and decoded by
group."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.engine.bridge import Bridge
from ultraflash_cli.engine.clock import StageTimer, untimed
from ultraflash_cli.engine.gpu_streams import Streams, to_device
from ultraflash_cli.engine.layers.memory_block import MemoryState
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.refiner import Refiner, RefinerState
from ultraflash_cli.engine.sampling import GeneratorInputs, GeneratorState, Sampler
from ultraflash_cli.engine.schedule import (
    FRAMES_PER_LATENT,
    GenerationPlan,
    NoiseSource,
    group_noise,
)
from ultraflash_cli.engine.stage import move_state
from ultraflash_cli.engine.stages.decoder import Decoder

__all__ = ["FIRST_STAGES", "GeneratedGroup", "TextToVideo", "TextToVideoState"]

FIRST_STAGES = ("generator", "encoder")
"""Names of the stages that run on the generator's device, if there are two."""


@dataclass(frozen=True)
class TextToVideoState:
    """The states of all stages and the position in the video."""

    generator: GeneratorState
    refiner: RefinerState | None
    """State of the refiner; None without one."""
    low_decoder: MemoryState | None
    """None without a decoder for the base size."""
    groups: int
    """Number of groups decoded to frames."""
    chunks: int
    """Number of chunks generated."""
    seed: int
    """Seed of the noise."""
    ahead_bcthw: Tensor
    """Low-resolution latents of the next group, in a buffer for the longest one; the
    first ``ahead`` have been generated."""
    ahead: int
    """Number of latent frames generated ahead; 0 if the next group has not been
    started."""

    @property
    def is_first(self) -> bool:
        """Whether the next group is the first."""
        return self.groups == 0


class GeneratedGroup(NamedTuple):
    """The result of one group; frames are nominally in [0, 1] and not clamped."""

    low_latents_bcthw: Tensor
    """The generator's latents."""
    latents_bcthw: Tensor | None
    """The refined latents; None without a refiner."""
    frames_bcthw: Tensor | None
    """The finished frames; None without a refiner."""
    low_frames_bcthw: Tensor | None
    """The frames at the base size; None without a decoder for them."""


class TextToVideo:
    """The cascade for prompts (reference/cascade.md 8). ``refiner`` produces the high
    resolution, ``low_decoder`` the frames at the base size; at least one is required.
    With ``park`` the generator and its cache move to that device while the refiner
    works, to save memory. With ``streams`` the next group is generated on a separate
    stream while this one is refined. With ``bridge`` the generator is on one device,
    everything else on another, and both work at the same time. All three leave the
    result unchanged; results are synchronised with the caller's stream, that of
    ``frames_device``. Noise comes from ``noise``: ``generator`` and ``generator_step``
    (noise of the later steps) for each chunk, and the refiner's noise for each group.
    """

    def __init__(
        self,
        profile: Profile,
        plan: GenerationPlan,
        sampler: Sampler,
        *,
        refiner: Refiner | None,
        low_decoder: Decoder | None,
        park: torch.device | None = None,
        timer: StageTimer = untimed,
        noise: NoiseSource = group_noise,
        streams: Streams | None = None,
        bridge: Bridge | None = None,
    ) -> None:
        assert refiner is not None or low_decoder is not None, (
            "something has to make frames"
        )
        assert (streams is None and bridge is None) or park is None, (
            "a generator that is parked cannot work ahead"
        )
        assert streams is None or bridge is None, "streams belong to one device"
        self.profile = profile
        self.plan = plan
        self.sampler = sampler
        self.refiner = refiner
        self.low_decoder = low_decoder
        self.device = next(sampler.network.parameters()).device
        self.park = park
        self.timer = timer
        self.noise = noise
        self.streams = streams
        self.bridge = bridge

    @property
    def frames_device(self) -> torch.device:
        """The device of everything after the generator."""
        return self.device if self.bridge is None else self.bridge.device

    def init_state(
        self,
        *,
        height: int,
        width: int,
        batch: int = 1,
        seed: int = 0,
        context: Tensor | None = None,
        prefix_bcthw: Tensor | None = None,
    ) -> TextToVideoState:
        """Return the state before the first group, for low-resolution latents of
        ``height`` x ``width``.

        ``context [B or 1, tokens, text width]`` is the prompt's embedding.
        ``prefix_bcthw`` are the latents of a clip to continue; they are cached, not
        generated again.
        """
        generator = self.sampler.init_state(
            batch=batch, height=height, width=width, context=context
        )
        if prefix_bcthw is not None:
            with self.timer("generator"):
                generator = self.sampler.prefill(generator, prefix_bcthw)

        refiner = low_decoder = None
        if self.refiner is not None:
            words = None
            if context is not None and self.profile.refines_by_words:
                words = context.to(self.frames_device)
            refiner = self.refiner.init_state(
                batch=batch, height=height, width=width, seed=seed, context=words
            )

        if self.low_decoder is not None:
            low_decoder = self.low_decoder.init_state(
                batch=batch, height=height, width=width
            )

        shape = (
            batch,
            self.sampler.config.latent_channels,
            max(self.plan.groups),
            height,
            width,
        )
        ahead = generator.anchor_bcthw.new_zeros(shape)
        return TextToVideoState(
            generator,
            refiner,
            low_decoder,
            groups=0,
            chunks=0,
            seed=seed,
            ahead_bcthw=ahead,
            ahead=0,
        )

    @torch.inference_mode()
    def step(self, state: TextToVideoState) -> tuple[TextToVideoState, GeneratedGroup]:
        """Generate the next group of the plan; consumes ``state``."""
        assert state.groups < len(self.plan.groups), "the plan has no further group"
        streams = self.streams
        if self.bridge is not None:
            return self._step_on_two(state, self.bridge)
        if streams is None:
            return self._step(state)

        streams.generate.wait_for(streams.caller)
        if not state.ahead:
            with streams.generate.as_current():
                state = self._draw_ahead(state, state.groups)
        streams.refine.wait_for(streams.caller, streams.generate)
        with streams.refine.as_current():
            streams.refine.record_use([state.ahead_bcthw])
            state, group = self._step(state)

        if state.groups < len(self.plan.groups):
            with streams.generate.as_current():
                state = self._draw_ahead(state, state.groups)

        streams.caller.wait_for(streams.refine)
        streams.caller.record_use(
            tensor
            for tensor in group
            if tensor is not None and tensor.device == self.device
        )
        return state, group

    def settle(self) -> None:
        """Make the caller's stream wait for latents generated ahead, so that it can
        read the whole state."""
        if self.streams is not None:
            self.streams.caller.wait_for(self.streams.generate, self.streams.refine)
        if self.bridge is not None:
            self.bridge.settle()

    def warm_up(self, *, height: int, width: int, context: Tensor | None = None) -> None:
        """Run and discard one group, so that kernels are compiled and memory is
        allocated before the first frame."""
        self.step(self.init_state(height=height, width=width, context=context))
        self.settle()

    def _step_on_two(
        self, state: TextToVideoState, bridge: Bridge
    ) -> tuple[TextToVideoState, GeneratedGroup]:
        """Generate the next group of the plan, and on the generator's device the one
        after it meanwhile."""
        if not state.ahead:
            with bridge.source.as_current():
                state = self._draw_ahead(state, state.groups)
        low = bridge.carry(state.ahead_bcthw)[:, :, : state.ahead]
        state = replace(state, ahead=0)
        following = state.groups + 1
        is_last = following == len(self.plan.groups)

        # A refiner that makes the host wait would delay the generator.
        waits = self.refiner is not None and self.refiner.decode_latents is not None
        if waits and not is_last:
            with bridge.source.as_current():
                state = self._draw_ahead(state, following)
        with bridge.target.as_current():
            state, group = self._make_frames(state, low)
        if not waits and not is_last:
            with bridge.source.as_current():
                state = self._draw_ahead(state, following)
        return state, group

    def _draw_ahead(self, state: TextToVideoState, group: int) -> TextToVideoState:
        """Generate a group of the plan, the next one to be generated, ahead of time."""
        longest = state.ahead_bcthw.shape[2]
        state, low = self._draw_group(state, group)
        ahead = F.pad(low, (0, 0, 0, 0, 0, longest - low.shape[2]))
        return replace(state, ahead_bcthw=ahead, ahead=low.shape[2])

    def _take_group(self, state: TextToVideoState) -> tuple[TextToVideoState, Tensor]:
        """Return the latents of the next group, generated ahead or now."""
        if not state.ahead:
            return self._draw_group(state, state.groups)
        return replace(state, ahead=0), state.ahead_bcthw[:, :, : state.ahead]

    def _step(self, state: TextToVideoState) -> tuple[TextToVideoState, GeneratedGroup]:
        return self._make_frames(*self._take_group(state))

    def _make_frames(
        self, state: TextToVideoState, low: Tensor
    ) -> tuple[TextToVideoState, GeneratedGroup]:
        """Decode and refine the latents of the next group."""
        alignment = self.profile.alignment
        first = state.is_first
        latents = frames = low_frames = None

        if self.low_decoder is not None and state.low_decoder is not None:
            with self.timer("low_decoder"):
                low_decoder, raw = self.low_decoder.step(state.low_decoder, low)
            state = replace(state, low_decoder=low_decoder)
            low_frames = alignment.trim(raw, first=first)

        if self.refiner is not None and state.refiner is not None:
            refiner, latents, raw = self._refine_all(self.refiner, state.refiner, low)
            state = replace(state, refiner=refiner)
            frames = alignment.trim(raw, first=first)

        state = replace(state, groups=state.groups + 1)
        return state, GeneratedGroup(low, latents, frames, low_frames)

    def _refine_all(
        self, refiner: Refiner, state: RefinerState, low: Tensor
    ) -> tuple[RefinerState, Tensor, Tensor]:
        """Refine latents that were generated together, in groups of the profile's
        length."""
        total = low.shape[2]
        size = self.profile.group_latents
        latents: list[Tensor] = []
        frames = low
        for at in range(0, total, size):
            state, (fine, sharp) = refiner.run_group(state, low[:, :, at : at + size])
            assert fine is not None, "latents are refined to latents"
            latents.append(fine)
            if size >= total:
                return state, fine, sharp

            if at == 0:
                batch, channels, _, height, width = sharp.shape
                length = FRAMES_PER_LATENT * total
                frames = sharp.new_empty((batch, channels, length, height, width))
            start = FRAMES_PER_LATENT * at
            frames[:, :, start : start + sharp.shape[2]] = sharp
            del fine, sharp  # or they would stay while the next group is made
        return state, torch.cat(latents, dim=2), frames

    def _draw_group(
        self, state: TextToVideoState, group: int
    ) -> tuple[TextToVideoState, Tensor]:
        """Generate the chunks of a group of the plan."""
        low: list[Tensor] = []
        if self.park is not None:
            self.sampler.network.to(self.device)
            state = replace(state, generator=move_state(state.generator, self.device))
        for length in self.plan.group_chunks[group]:
            inputs = self._noise(state, length)
            with self.timer("generator"):
                generator, latents = self.sampler.step(state.generator, inputs)
            assert latents.shape[2] == length, "the plan's chunks are the generator's"
            state = replace(state, generator=generator, chunks=state.chunks + 1)
            low.append(latents)
        if self.park is not None:
            self.sampler.network.to(self.park)
            state = replace(state, generator=move_state(state.generator, self.park))
        return state, torch.cat(low, dim=2)

    def _noise(self, state: TextToVideoState, length: int) -> GeneratorInputs:
        """Sample the noise for one chunk of ``length`` latents, ``[B, C, T, H, W]`` and
        ``[B, steps - 1, C, T, H, W]``."""
        config = self.sampler.config
        batch, channels, _, height, width = state.generator.anchor_bcthw.shape
        draws = len(config.steps) - 1

        def draw(stage: str, shape: tuple[int, ...]) -> Tensor:
            noise = self.noise(
                shape, seed=state.seed, stage=stage, first_frame=0, group=state.chunks
            )
            return to_device(noise, self.device)

        return GeneratorInputs(
            draw("generator", (batch, channels, length, height, width)),
            draw("generator_step", (batch, draws, channels, length, height, width)),
        )
