"""Causal few-step transformer that generates low-resolution latents from text, chunk by
chunk."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.cache import WindowRing
from ultraflash_cli.engine.flow_matching import TRAIN_STEPS, FlowSchedule, fewer_steps
from ultraflash_cli.engine.layers.attention import WindowSelfAttention, WindowSpan
from ultraflash_cli.engine.layers.context import ContextKv
from ultraflash_cli.engine.layers.dit import Dit, DitBlock, DitConfig, DitHead
from ultraflash_cli.engine.layers.modulation import sinusoid
from ultraflash_cli.engine.layers.moving_places import Course, MovingPlaces
from ultraflash_cli.engine.layers.norm import layer_norm
from ultraflash_cli.errors import ConfigError
from ultraflash_kernels.fp8_linear import quantise_linears

__all__ = [
    "KEPT_IN_BF16",
    "ChunkResult",
    "Generator",
    "GeneratorConfig",
]

LEAST_LEVEL = 0.01
"""Smallest noise level at which the flow of a network that predicts clean latents is
computed."""

KEPT_IN_BF16 = (
    "text_embedding.*",
    "time_embedding.*",
    "time_projection.*",
    "blocks.*.cross_attn.k",
    "blocks.*.cross_attn.v",
    "head.*",
)
"""Linear layers that are not converted to 8 bits: those that run once per clip or on
few rows, and those of the head."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(DitConfig):
    """Sizes and sampling rules of the generator; the defaults are the published ones
    (reference/cascade.md 1)."""

    NAME: ClassVar[str] = "generator"

    prediction: Literal["flow", "clean"] = "flow"
    """Prediction target of the last layer: the flow, or clean latents, which a narrow
    network with coarse patches can represent although it cannot represent noise (Li and
    He, *Back to basics: let denoising generative models denoise*, 2025)."""
    grid: tuple[int, int] | None = None
    """Rows and columns of learned position embeddings, for a model of a single size;
    None for RoPE only."""
    courses: tuple[Course, ...] = ()
    """Courses of moving frames of reference. The prompt chooses among them, and an
    object on that course keeps its position in the frame. Requires a grid and
    ``pool_text``."""
    taught_frames: int = 21
    """Number of latent frames, at least 2, after which the clock stands still."""
    laps: tuple[float, float] | None = None
    """Rows and columns of tokens after which what left the picture is back on the other
    side, so that courses never end. Without it they stand still with the clock."""
    slow_frames: int = 0
    """Number of latent frames after which a slow clock stands still; 0 for none."""
    wave_rates: tuple[float, ...] = ()
    """Angular frequencies, in radians per latent frame, of waves that tell the time
    beside the clocks and never stop."""
    chunk_latents: int = 3
    """Latent frames generated together."""
    independent_first_frame: bool = False
    """Whether the first chunk of a stream is one latent frame."""
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    """Denoising steps of a chunk, from pure noise (1000) downwards, before the shift
    warps them."""
    later_steps: int | None = None
    """Number of steps for every chunk except the first; None for all."""
    shift: float = 5.0
    """Shift of the noise levels towards noise."""
    context_timestep: float = 0.0
    """Timestep of the context pass over a finished chunk."""
    window: int = 21
    """Number of latent frames in the window, including the current chunk."""
    sink: int = 0
    """Number of latent frames at the start of a stream that are never dropped."""
    slide: bool = False
    """Whether a full window drops its oldest frames after the sink; otherwise the
    stream ends there."""

    def __post_init__(self) -> None:
        self.check_sizes("text_len", "chunk_latents", "shift", "window")
        if self.prediction not in ("flow", "clean"):
            raise ConfigError(
                f"generator: prediction must be flow or clean, got {self.prediction!r}"
            )

        falling = all(a > b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if (
            not self.steps
            or not falling
            or self.steps[0] > TRAIN_STEPS
            or self.steps[-1] < 1
        ):
            raise ConfigError(
                f"generator: steps must fall from at most {TRAIN_STEPS} to at least 1, got "
                f"{self.steps}"
            )

        if self.later_steps is not None and not 1 <= self.later_steps <= len(self.steps):
            raise ConfigError(
                f"generator: later_steps must be 1 to {len(self.steps)} or None, got "
                f"{self.later_steps}"
            )
        if not 0 <= self.context_timestep <= TRAIN_STEPS:
            raise ConfigError(
                f"generator: context_timestep must be within 0..{TRAIN_STEPS}, got "
                f"{self.context_timestep}"
            )
        if self.courses and (self.grid is None or not self.pool_text):
            raise ConfigError("generator: courses require a grid and pool_text")
        if self.head_dim < 0:
            raise ConfigError(
                f"generator: head_dim must be at least 0, got {self.head_dim}"
            )
        if self.sink < 0 or self.window < self.sink + self.chunk_latents:
            raise ConfigError(
                f"generator: the window must hold the sink ({self.sink}) and a chunk "
                f"({self.chunk_latents}), got {self.window}"
            )

    @property
    def draws_per_chunk(self) -> int:
        """Number of fresh noise tensors that a chunk may need: one between any two
        steps."""
        return len(self.steps) - 1

    @property
    def longest(self) -> int | None:
        """Number of latent frames in the longest stream of whole chunks; None if the
        window slides."""
        if self.slide:
            return None
        first = self.chunk_after(0)
        return first + (self.window - first) // self.chunk_latents * self.chunk_latents

    def chunk_after(self, frames: int) -> int:
        """Return the number of latent frames in the chunk that follows ``frames``
        latent frames."""
        return 1 if self.independent_first_frame and frames == 0 else self.chunk_latents

    def steps_of_chunk(self, chunk: int) -> tuple[float, ...]:
        """Return the denoising timesteps of the chunk with this index."""
        warped = FlowSchedule(self.shift).warp(self.steps)
        return (
            fewer_steps(warped, self.later_steps) if chunk and self.later_steps else warped
        )

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Return the number of tokens per latent frame. Raises ConfigError if the size
        does not divide into whole patches."""
        rows, cols = self.patches(height, width)
        if self.grid not in (None, (rows, cols)):
            _, py, px = self.patch
            raise ConfigError(
                f"this generator makes {self.grid[0] * py} x {self.grid[1] * px}, not "
                f"{height} x {width}"
            )
        return rows * cols

    def ring_shape(
        self, *, batch: int, height: int, width: int
    ) -> tuple[int, int, int, int]:
        """Return the shape of each of the two ring buffers of a layer, for latents of
        ``height`` x ``width``."""
        tokens = self.window * self.tokens_per_frame(height, width)
        return batch, self.num_heads, tokens, self.dim // self.num_heads


class ChunkResult(NamedTuple):
    """Result of one run of the network."""

    flow_bcthw: Tensor
    """Predicted noise minus clean latents."""
    rings: tuple[WindowRing, ...]
    """Caches of the layers, ending with this chunk."""


def _pooled(context: tuple[ContextKv, ...]) -> Tensor:
    """Return the vector ``[B, dim]`` of a prompt: the mean of the first block's
    values."""
    return context[0].mean_value()


class GeneratorHead(DitHead):
    """Modulated norm and projection to patches, in the dtype of the weights."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Project ``x [B, frames, tokens of a frame, dim]`` under
        ``time [B or 1, frames or 1, dim]``."""
        shift, scale = (self.modulation + time.unsqueeze(2)).unsqueeze(3).unbind(2)
        x = layer_norm(x, self.eps) * (1 + scale) + shift
        return self.head(x) if self.detail is None else self.head(x) + self.detail(x)


class Generator(Dit):
    """Network that predicts the flow from noisy latents and a prompt, one chunk per
    run; ``Sampler`` generates with it.

    Runs in the dtype of the weights, except for norms and RoPE (float32 inside).
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config, config.latent_channels)
        self.config = config
        dim = config.dim
        rows, columns = config.grid or (0, 0)
        self.row_places = (
            nn.Parameter(0.1 * torch.randn(rows, dim)) if config.grid else None
        )
        self.column_places = (
            nn.Parameter(0.1 * torch.randn(columns, dim)) if config.grid else None
        )

        self.make_embeddings()

        self.moving_places = None
        if config.courses and config.grid is not None:
            self.moving_places = MovingPlaces(
                dim,
                config.grid,
                config.courses,
                config.taught_frames,
                laps=config.laps,
                slow_frames=config.slow_frames,
                rates=config.wave_rates,
            )
        self.text_pool = nn.Linear(dim, dim, bias=False) if config.pool_text else None
        self.blocks = nn.ModuleList(
            DitBlock(config, WindowSelfAttention(dim, config.num_heads, config.eps))
            for _ in range(config.num_layers)
        )
        self.head = GeneratorHead(config)

    def to_fp8(self) -> "Generator":
        """Convert self-attention, its caches and linear layers, except
        ``KEPT_IN_BF16``, the pool of the prompt and moving places, to 8-bit floating
        point, in place; inference only."""
        pooled = ("text_pool",) if self.config.pool_text else ()
        moving = ("moving_places.*",) if self.config.courses else ()
        quantise_linears(self, keep=(*KEPT_IN_BF16, *pooled, *moving))
        return self

    def empty_rings(self, shape: tuple[int, int, int, int]) -> tuple[WindowRing, ...]:
        """Return empty caches of shape ``[B, heads, capacity, D]`` for all layers."""
        weight = self.patch_embedding.weight
        return tuple(
            WindowRing.empty(shape, dtype=weight.dtype, device=weight.device, fp8=self.fp8)
            for _ in self.blocks
        )

    def forward_chunk(
        self,
        x_bcthw: Tensor,
        timestep: float | Tensor,
        *,
        rings: tuple[WindowRing, ...] | None = None,
        context: tuple[ContextKv, ...] | None = None,
        first_frame: int = 0,
        position: int | Tensor | None = None,
        reuse_rings: bool = False,
        recompute: bool = False,
    ) -> ChunkResult:
        """Run the network over one chunk of any length; differentiable unless
        ``reuse_rings``.

        ``timestep`` is that of the whole chunk, or ``[B, T]`` with one for each latent
        frame; ``rings`` are the caches of the previous run (None at the start of a
        stream), ``context`` is the result of ``embed_context`` (None without a prompt),
        ``first_frame`` the number of latent frames before this chunk. Running the last
        chunk again replaces it in the cache. ``position`` overrides ``first_frame`` for
        position embeddings; it is a tensor when a graph is captured. With
        ``reuse_rings``, which rings in 8 bits require, the buffers of ``rings`` are
        overwritten; with ``recompute`` blocks keep only their inputs for the backward
        pass. Raises ConfigError if the window is full and does not slide.
        """
        config, weight = self.config, self.patch_embedding.weight
        batch, _, frames, height, width = x_bcthw.shape
        if not config.slide and first_frame + frames > config.window:
            raise ConfigError(
                f"a stream of this generator ends after {config.window} latent frames, "
                f"got {first_frame + frames}; make a shorter clip, or use a model with a "
                "sliding window"
            )
        tokens = config.tokens_per_frame(height, width)
        if rings is None:
            room = frames * tokens if self.fp8 else 0
            shape = (batch, config.num_heads, room, config.dim // config.num_heads)
            rings = self.empty_rings(shape)
            reuse_rings = reuse_rings or self.fp8
        if context is None:
            context = self.embed_context(None, batch=batch)
        span = WindowSpan(
            first_frame * tokens, config.window * tokens, config.sink * tokens, reuse_rings
        )
        position = first_frame if position is None else position
        tables = self.rotations(position, frames, *config.patches(height, width))

        if not isinstance(timestep, Tensor):
            timestep = torch.full((1, 1), timestep, device=weight.device)
        time = (
            sinusoid(timestep.flatten(), config.freq_dim)
            .to(weight.dtype)
            .unflatten(0, timestep.shape)
        )
        time = self.time_embedding(time)
        if self.text_pool is not None:
            time = time + self.text_pool(_pooled(context)).unsqueeze(1)
        moving = None
        if self.moving_places is not None:
            moving = self.moving_places(_pooled(context), frames, position)
            time = time + moving.time.to(time)
        time_six = self.time_projection(time).unflatten(2, (6, -1))

        level = (timestep / TRAIN_STEPS).view(len(timestep), 1, -1, 1, 1)
        seen = x_bcthw * (1 - level).to(x_bcthw) if config.sees_signal else x_bcthw

        def embed() -> Tensor:
            patches = self._to_patches(seen.to(weight.dtype))
            x = F.linear(patches, weight.flatten(1), self.patch_embedding.bias)
            # The residual stream has the precision of the weights, also under autocast.
            x = x.to(weight.dtype)
            if self.row_places is not None and self.column_places is not None:
                places = self.row_places[:, None] + self.column_places
                x = x + places.flatten(-3, -2)
            if moving is not None:
                x = x + moving.places.flatten(-3, -2)
            return x

        x, after = self.through_blocks(
            embed, time_six, (tables, span), rings, context, recompute=recompute
        )
        flow = self._from_patches(self.head(x, time), height, width)
        if config.prediction == "clean":
            flow = (x_bcthw.to(flow) - flow) / level.to(flow).clamp_min(LEAST_LEVEL)
        return ChunkResult(flow, after)

    def course_logits(self, context: tuple[ContextKv, ...]) -> Tensor:
        """Return a prompt's logits over the courses, ``[B, courses]``. Raises
        ConfigError for a network without courses.
        """
        if self.moving_places is None:
            raise ConfigError("generator: there are no courses to choose from")
        return self.moving_places.choice(_pooled(context))

    def _to_patches(self, x_bcthw: Tensor) -> Tensor:
        """Return the patches ``[B, T, tokens of a frame, values of a patch]``, channels
        first within a patch."""
        _, py, px = self.config.patch
        split = x_bcthw.unflatten(4, (-1, px)).unflatten(3, (-1, py))
        return split.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3)

    def _from_patches(self, patches: Tensor, height: int, width: int) -> Tensor:
        """Return latents ``[B, C, T, H, W]``; channels come last within a patch."""
        _, py, px = self.config.patch
        split = patches.unflatten(3, (py, px, -1)).unflatten(2, (height // py, width // px))
        return split.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)
