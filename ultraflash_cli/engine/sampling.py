"""Few-step sampling of chunks from noise to clean latents, to which later chunks
attend."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ultraflash_cli.engine.cache import WindowRing
from ultraflash_cli.engine.flow_matching import FlowSchedule
from ultraflash_cli.engine.graphs import EAGER, Graphs
from ultraflash_cli.engine.layers.context import ContextKv
from ultraflash_cli.engine.stage import Position
from ultraflash_cli.engine.stages.generator import ChunkResult, Generator
from ultraflash_cli.errors import ConfigError

__all__ = ["Gate", "GeneratorInputs", "GeneratorState", "Sampler"]

Gate = Callable[[Tensor, Tensor], bool]
"""A function that decides, from a chunk's clean latents ``[B, C, T, H, W]`` and the
last latent of the stream's first chunk ``[B, C, 1, H, W]``, whether the chunk's context
pass may be skipped."""


class GeneratorInputs(NamedTuple):
    """The noise of a chunk: initial latents, and fresh noise for the later steps."""

    noise_bcthw: Tensor
    """``[B, C, T, H, W]``."""
    draws_bscthw: Tensor
    """``[B, draws_per_chunk, C, T, H, W]``; a chunk of fewer steps uses the first
    ones."""


@dataclass(frozen=True)
class GeneratorState:
    """A stream's caches, its position, and its cost so far."""

    rings: tuple[WindowRing, ...]
    """Keys and values of earlier chunks, one ring per layer."""
    context: tuple[ContextKv, ...]
    """Keys and values of the prompt, one entry per layer."""
    anchor_bcthw: Tensor
    """Last clean latent of the stream's first chunk, ``[B, C, 1, H, W]``; zeros until
    then."""
    frames: int
    """Number of latent frames of the stream so far, including a clean prefix."""
    chunks: int
    """Number of chunks generated."""
    passes: int
    """Number of runs of the network."""
    refreshes_skipped: int
    """Number of context passes skipped by the gate."""


class _Recall(NamedTuple):
    """Caches and position of one run of the network."""

    rings: tuple[WindowRing, ...]
    context: tuple[ContextKv, ...]
    position: Position


class _Run(NamedTuple):
    """Inputs of one run of the network."""

    x_bcthw: Tensor
    timestep: Tensor


class Sampler:
    """Samples clean latents for a prompt from noise, chunk by chunk, in a few steps
    each.

    A finished chunk is run once more at ``context_timestep`` to cache its keys and
    values, unless ``gate`` allows skipping that pass. ``graphs`` runs the network.
    Noise levels are float64 and float32; the network has the dtype of its weights.
    """

    def __init__(
        self, network: Generator, *, gate: Gate | None = None, graphs: Graphs = EAGER
    ) -> None:
        self.network = network
        self.config = network.config
        self.gate = gate
        self.graphs = graphs
        self.schedule = FlowSchedule(self.config.shift)

    @torch.no_grad()
    def init_state(
        self, *, batch: int, height: int, width: int, context: Tensor | None = None
    ) -> GeneratorState:
        """Return the state before the first chunk.

        Args:
            batch: Streams.
            height: Rows of the latents.
            width: Columns of the latents.
            context: The prompt's embedding ``[B or 1, tokens, text_dim]``, at most
                ``text_len`` tokens; None is all zeros.

        Raises:
            ConfigError: Latents that are no whole patches, a context that does not fit.
        """
        config = self.config
        weight = self.network.patch_embedding.weight
        shape = config.ring_shape(batch=batch, height=height, width=width)
        return GeneratorState(
            rings=self.network.empty_rings(shape),
            context=self.network.embed_context(context, batch=batch),
            anchor_bcthw=weight.new_zeros(batch, config.latent_channels, 1, height, width),
            frames=0,
            chunks=0,
            passes=0,
            refreshes_skipped=0,
        )

    def group_size(self, state: GeneratorState) -> int:
        """Return the number of latent frames in the next chunk."""
        return self.config.chunk_after(state.frames)

    @torch.no_grad()
    def step(
        self, state: GeneratorState, group: GeneratorInputs
    ) -> tuple[GeneratorState, Tensor]:
        """Return the clean latents of a chunk, of a shorter one at the end of a stream;
        consumes state.

        Raises ConfigError if the window is full and does not slide.
        """
        assert group.draws_bscthw.shape[3] == group.noise_bcthw.shape[2], (
            "a chunk has draws for every latent frame"
        )
        first_frame = state.frames
        state, clean = self._denoise(state, group)
        gate = self.gate if state.chunks > 1 else None
        if gate is not None and gate(clean, state.anchor_bcthw):
            skipped = state.refreshes_skipped + 1
            return dataclasses.replace(state, refreshes_skipped=skipped), clean
        return self._remember(state, clean, first_frame), clean

    @torch.no_grad()
    def prefill(self, state: GeneratorState, latents_bcthw: Tensor) -> GeneratorState:
        """Add clean latents to the stream's past, in whole chunks; consumes state.
        Raises ConfigError for an incomplete chunk, or if the window is full and does
        not slide.
        """
        taken = 0
        total = latents_bcthw.shape[2]
        while taken < total:
            chunk = self.config.chunk_after(state.frames)
            if total - taken < chunk:
                raise ConfigError(
                    f"clean latents must come in whole chunks of {chunk}: "
                    f"{total - taken} of {total} are left over"
                )
            clean = latents_bcthw[:, :, taken : taken + chunk].to(state.anchor_bcthw)
            first_frame = state.frames
            self._note_anchor(state, clean)
            state = dataclasses.replace(state, frames=first_frame + chunk)
            state = self._remember(state, clean, first_frame)
            taken += chunk
        return state

    def _denoise(
        self, state: GeneratorState, group: GeneratorInputs
    ) -> tuple[GeneratorState, Tensor]:
        """Generate a chunk; the rings then hold its last, still noisy, pass."""
        dtype = state.anchor_bcthw.dtype
        x = group.noise_bcthw.to(dtype)
        draws = group.draws_bscthw.to(dtype)
        timesteps = self.config.steps_of_chunk(state.chunks)

        clean = x
        rings = state.rings
        for i, timestep in enumerate(timesteps):
            if i:
                x = self.schedule.renoise(clean, draws[:, i - 1], timestep)
            flow, rings = self._run(x, timestep, rings, state.context, state.frames)
            clean = self.schedule.clean(x, flow, timestep)

        self._note_anchor(state, clean)
        after = dataclasses.replace(
            state,
            rings=rings,
            frames=state.frames + x.shape[2],
            chunks=state.chunks + 1,
            passes=state.passes + len(timesteps),
        )
        return after, clean

    def _remember(
        self, state: GeneratorState, clean_bcthw: Tensor, first_frame: int
    ) -> GeneratorState:
        """Run a clean chunk once for its keys and values."""
        timestep = self.config.context_timestep
        _, rings = self._run(clean_bcthw, timestep, state.rings, state.context, first_frame)
        return dataclasses.replace(state, rings=rings, passes=state.passes + 1)

    def _run(
        self,
        x_bcthw: Tensor,
        timestep: float,
        rings: tuple[WindowRing, ...],
        context: tuple[ContextKv, ...],
        first_frame: int,
    ) -> ChunkResult:
        """Run the network over a chunk, by ``graphs``; consumes ``rings``."""

        def run(recall: _Recall, inputs: _Run) -> tuple[_Recall, Tensor]:
            flow, after = self.network.forward_chunk(
                inputs.x_bcthw,
                inputs.timestep,
                rings=recall.rings,
                context=recall.context,
                first_frame=first_frame,
                position=recall.position,
                reuse_rings=True,
            )
            return recall._replace(rings=after), flow

        # Running the same chunk again overwrites its keys and values.
        tokens = self.config.tokens_per_frame(*x_bcthw.shape[3:])
        again = rings[0].total > first_frame * tokens
        device = self.network.patch_embedding.weight.device
        recall, flow = self.graphs.step(
            "generator",
            run,
            _Recall(rings, context, first_frame),
            _Run(x_bcthw, torch.full((1, 1), timestep, device=device)),
            key=again,
        )
        return ChunkResult(flow, recall.rings)

    def _note_anchor(self, state: GeneratorState, clean_bcthw: Tensor) -> None:
        """Keep the last latent of a stream's first chunk, in place."""
        if state.frames == 0:
            state.anchor_bcthw.copy_(clean_bcthw[:, :, -1:])
