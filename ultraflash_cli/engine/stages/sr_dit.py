"""Block-sparse causal transformer that sharpens upsampled latents in one step."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.cache import KvRing
from ultraflash_cli.engine.flow_matching import TRAIN_STEPS
from ultraflash_cli.engine.layers.context import ContextKv
from ultraflash_cli.engine.layers.dit import Dit, DitBlock, DitConfig, DitHead
from ultraflash_cli.engine.layers.modulation import (
    float32_layers,
    modulate,
    sinusoid,
)
from ultraflash_cli.engine.layers.norm import layer_norm
from ultraflash_cli.engine.layers.residual import FoldedLinear
from ultraflash_cli.engine.layers.sparse_attention import (
    SparseCausalSelfAttention,
    SparseLayout,
)
from ultraflash_cli.engine.sparsity import BlockGrid, key_budget
from ultraflash_cli.engine.stage import Counter, Position
from ultraflash_cli.errors import ConfigError
from ultraflash_kernels.fp8_linear import quantise_linears
from ultraflash_kernels.token_order import drop_padding, with_padding

__all__ = [
    "KEPT_IN_BF16",
    "KEPT_OF_TEXT",
    "GroupResult",
    "SrDit",
    "SrDitConfig",
    "SrDitInputs",
    "SrDitState",
]

KEPT_IN_BF16 = ("time_embedding.*", "time_projection.*", "head.*")
"""Linear layers that are not converted to 8 bits because they run in float32."""
KEPT_OF_TEXT = ("text_embedding.*", "blocks.*.cross_attn.k", "blocks.*.cross_attn.v")
"""Additional ones with a text path, which run once per clip."""


@dataclass(frozen=True, kw_only=True)
class SrDitConfig(DitConfig):
    """Sizes and rules of the SR transformer; the defaults are the published ones
    (reference/cascade.md 4).

    Noise, condition and result have ``latent_channels`` each. With ``text_len`` 0 the
    network has no text path and no cross-attention; a context of width ``dim`` is not
    projected.
    """

    NAME: ClassVar[str] = "SR transformer"

    block: tuple[int, int, int] = (2, 8, 8)
    """Token frames, rows and columns per attention block."""
    local_range: int = 9
    """Side of the window around a query block, in blocks; 0 for no limit."""
    ref_spatial_tokens: int | None = 1560
    """Tokens per frame at which ``top_k_ratio`` applies unscaled; None for any
    number."""
    top_k_ratio: float = 1.0
    """Share of the pairs of spatial blocks that the query blocks of a temporal block
    may keep."""
    top_k: int | None = None
    """Number of pairs that the query blocks of a temporal block may keep, instead of
    the ratio's rule."""
    chunk_frames: int = 2
    """Number of latent frames that attend to each other regardless of order."""
    kv_len: int = 3
    """Temporal blocks of earlier groups in the KV cache; with 0 a group attends only to
    itself."""
    kv_schedule: tuple[int, ...] = ()
    """``kv_len`` after the first, second, ... group; the last value applies to all
    later ones. Empty for a constant ``kv_len``."""
    group_latents: int = 6
    """Latent frames computed together."""
    prediction: Literal["flow", "residual"] = "flow"
    """Prediction target: noise minus clean latents, or a residual on the condition."""
    timestep: float = 1000.0
    """Timestep of the single step, at which noise has weight 1."""
    mask_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which blocks are selected; the published program rounds to
    bfloat16."""

    def __post_init__(self) -> None:
        self.check_sizes("chunk_frames", "group_latents", "top_k_ratio")
        if min(self.text_len, self.local_range, self.head_dim, self.kv_len) < 0:
            raise ConfigError(
                "SR transformer: text_len, local_range, head_dim and kv_len must be at "
                "least 0"
            )
        if self.pool_text and not self.text_len:
            raise ConfigError("SR transformer: pool_text needs a text path")
        if len(self.block) != 3 or min(self.block) < 1:
            raise ConfigError(
                f"SR transformer: a block must be (frames, rows, columns), got {self.block}"
            )

        for name in ("ref_spatial_tokens", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"SR transformer: {name} must be positive or None, got {value}"
                )

        if any(length < 1 for length in self.kv_schedule):
            raise ConfigError(
                "SR transformer: kv_schedule must hold positive numbers, got "
                f"{self.kv_schedule}"
            )
        if self.prediction not in ("flow", "residual"):
            raise ConfigError(
                f"SR transformer: prediction must be flow or residual, got "
                f"{self.prediction!r}"
            )
        if self.mask_dtype not in ("float32", "bfloat16"):
            raise ConfigError(
                "SR transformer: mask_dtype must be float32 or bfloat16, got "
                f"{self.mask_dtype!r}"
            )
        if not 0 <= self.timestep <= 1000:
            raise ConfigError(
                f"SR transformer: timestep must be within 0..1000, got {self.timestep}"
            )

    @property
    def longest_kv(self) -> int:
        """Maximum number of temporal blocks in the KV cache."""
        return max(self.kv_schedule, default=self.kv_len)

    def kv_len_after(self, group: int) -> int:
        """Return the number of temporal blocks in the KV cache after the group with
        this index."""
        return (
            self.kv_schedule[min(group, len(self.kv_schedule) - 1)]
            if self.kv_schedule
            else self.kv_len
        )


class SrDitInputs(NamedTuple):
    """Gaussian noise and upsampled latents of a group."""

    noise_bcthw: Tensor
    """``[B, C, T, H, W]``."""
    cond_bcthw: Tensor
    """Likewise."""


@dataclass(frozen=True)
class SrDitState:
    """Caches, context, and the position in the clip."""

    caches: tuple[KvRing, ...]
    """One a layer."""
    context: tuple[ContextKv, ...]
    """One entry per layer; empty without a text path."""
    frames: Position
    """Latent frames of all earlier groups."""
    groups: Counter
    """Number of groups computed."""


class GroupResult(NamedTuple):
    """The result of one group."""

    output_bcthw: Tensor
    """The network's output: flow or residual."""
    caches: tuple[KvRing, ...]
    """One cache per layer, after the group."""


class SrDitHead(DitHead):
    """Modulated norm and projection to patches, in float32."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Project ``x [B, *tokens, dim]``, modulated by the time vector ``time [B,
        dim]``."""
        vectors = self.modulation.float() + time[:, None]
        vectors = vectors.view(*vectors.shape[:2], *(1,) * (x.ndim - 2), -1)
        shift, scale = vectors.unbind(1)
        y = modulate(layer_norm(x, self.eps), scale, shift)
        out = float32_layers(self.head, y)
        return (out if self.detail is None else out + float32_layers(self.detail, y)).to(
            x.dtype
        )


class SrDit(Dit):
    """Computes clean latents from noise and upsampled latents, group by group, in one
    step. Tokens stay in block order from the patches to the head, including padding if
    there are no kernels. ``by_lists`` determines how blocks are selected, see
    ``SparseLayout.of``.
    """

    TAKES_EMBEDDED: ClassVar[bool] = True

    def __init__(self, config: SrDitConfig, *, by_lists: bool | None = None) -> None:
        super().__init__(config, 2 * config.latent_channels)
        self.config = config
        self._by_lists = by_lists
        self.paired_caches = False
        """Whether caches have a second pair of buffers to avoid copies, only on a
        GPU."""
        self.make_embeddings()
        self.blocks = nn.ModuleList(
            DitBlock(
                config, SparseCausalSelfAttention(config.dim, config.num_heads, config.eps)
            )
            for _ in range(config.num_layers)
        )
        self.text_pool = None
        if config.pool_text:
            self.text_pool = nn.Linear(config.dim, config.dim, bias=False)
        self.head = SrDitHead(config)

    def to_fp8(self) -> "SrDit":
        """Convert attention, caches and linear layers, except those listed above, to
        8-bit floating point in place; for inference only."""
        of_text = KEPT_OF_TEXT if self.config.text_len else ()
        pooled = ("text_pool",) if self.config.pool_text else ()
        quantise_linears(self, keep=(*KEPT_IN_BF16, *of_text, *pooled))
        return self

    def fold_gates(self) -> "SrDit":
        """Fold the gates, which the single step's timestep makes constant, into the
        layers before them, in place; for inference only. Matmuls then add to the
        residual stream, and no pass does. Call it in the final dtype and on the final
        device, for a config without ``pool_text``, instead of ``to_fp8``.
        """
        assert not self.config.pool_text, "gates that depend on the prompt are not constant"
        _, time_six = self._times(self._timestep(1), ())
        offset = torch.zeros_like(time_six[0, 0])
        for block in cast("list[DitBlock]", self.blocks):
            offset = block.fold_gates(time_six[0], offset)
        return self

    @property
    def folded(self) -> bool:
        """Whether gates are folded, see ``fold_gates``."""
        return isinstance(cast("DitBlock", self.blocks[0]).ffn[2], FoldedLinear)

    @torch.no_grad()
    def init_state(
        self, *, batch: int, height: int, width: int, context: Tensor | None = None
    ) -> SrDitState:
        """Return the state before the first group, for latents of ``height`` x
        ``width``.

        ``context [B or 1, tokens, text_dim]`` is the prompt's embedding, at most
        ``text_len`` tokens; without one the context is all zeros. Raises ConfigError
        for latents that are not whole patches and for a context of the wrong shape.
        """
        config = self.config
        grid = self._grid(config.group_latents, height, width)
        weight = self.patch_embedding.weight
        shape = self._cache_shape(batch, config.longest_kv * grid.spatial_blocks, grid)
        return SrDitState(
            caches=tuple(
                KvRing.empty(
                    shape,
                    dtype=weight.dtype,
                    device=weight.device,
                    paired=self.paired_caches,
                    mean_dtype=getattr(torch, config.mask_dtype),
                    fp8=self.fp8,
                )
                for _ in self.blocks
            ),
            context=self.embed_context(context, batch=batch),
            frames=0,
            groups=0,
        )

    def group_size(self, state: SrDitState) -> int:
        """Return the number of latent frames in a group."""
        return self.config.group_latents

    @torch.no_grad()
    def step(self, state: SrDitState, group: SrDitInputs) -> tuple[SrDitState, Tensor]:
        """Return the clean latents of a group, of a shorter one at the end of a clip;
        consumes state."""
        assert group.noise_bcthw.shape == group.cond_bcthw.shape, (
            "a group has noise for every latent frame"
        )
        dtype = self.patch_embedding.weight.dtype
        noise = group.noise_bcthw.to(dtype)
        cond = group.cond_bcthw.to(dtype)

        result = self.forward_group(
            noise,
            cond,
            caches=state.caches,
            context=state.context,
            first_frame=state.frames,
            group=state.groups,
            reuse_caches=True,
        )
        after = dataclasses.replace(
            state,
            caches=result.caches,
            frames=state.frames + cond.shape[2],
            groups=state.groups + 1,
        )
        return after, self.clean(noise, cond, result.output_bcthw)

    def clean(
        self, noise_bcthw: Tensor, cond_bcthw: Tensor, output_bcthw: Tensor
    ) -> Tensor:
        """Return the clean latents for an output of the network."""
        return (
            noise_bcthw - output_bcthw
            if self.config.prediction == "flow"
            else cond_bcthw + output_bcthw
        )

    def forward_group(
        self,
        noise_bcthw: Tensor,
        cond_bcthw: Tensor,
        *,
        caches: tuple[KvRing, ...] | None = None,
        context: tuple[ContextKv, ...] | None = None,
        first_frame: int | Tensor = 0,
        group: int = 0,
        timestep: Tensor | None = None,
        reuse_caches: bool = False,
        recompute: bool = False,
    ) -> GroupResult:
        """Run the network over one group of up to any length; differentiable unless
        ``reuse_caches``.

        ``caches`` are those of the previous group (None at the start of a clip),
        ``context`` is the result of ``embed_context`` (None for no prompt),
        ``first_frame`` and ``group`` are the numbers of latent frames (optionally a
        tensor) and of groups before this one, and ``timestep [B]`` is that of each
        sample (None for the configured one). With ``reuse_caches`` the buffers of
        ``caches`` are overwritten. With ``recompute`` blocks keep only their inputs for
        the backward pass and are recomputed in it.
        """
        config = self.config
        batch, _, frames, height, width = cond_bcthw.shape
        grid = self._grid(frames, height, width)
        weight = self.patch_embedding.weight
        if caches is None:
            shape = self._cache_shape(batch, 0, grid)
            caches = tuple(
                KvRing.empty(shape, dtype=weight.dtype, device=weight.device)
                for _ in self.blocks
            )
        if context is None:
            context = self.embed_context(None, batch=batch)
        tables = self.rotations(first_frame, grid.frames, grid.rows, grid.cols)
        layout = SparseLayout.of(
            grid,
            remembered=caches[0].fill,
            window=config.local_range,
            chunk=max(1, config.chunk_frames // config.block[0]),
            budget=self.key_budget(frames, height, width),
            kv_len=config.kv_len_after(group),
            device=weight.device,
            mask_dtype=getattr(torch, config.mask_dtype),
            reuse_cache=reuse_caches,
            by_lists=self._by_lists,
            fp8=self.fp8,
        )

        assert timestep is None or not self.folded, "folded gates are of one timestep"
        timestep = self._timestep(batch) if timestep is None else timestep
        time, time_six = self._times(timestep, context)

        if config.sees_signal:
            noise_bcthw = noise_bcthw * (1 - timestep / TRAIN_STEPS).to(noise_bcthw).view(
                -1, 1, 1, 1, 1
            )

        def embed() -> Tensor:
            both = torch.cat([noise_bcthw, cond_bcthw], dim=1).to(weight.dtype)
            x = grid.to_blocks(both)
            if not layout.padded:
                x = drop_padding(x.flatten(1, 2), layout.size, grid.block)
            flat = weight.permute(0, 2, 3, 4, 1).flatten(1)
            return F.linear(x, flat, self.patch_embedding.bias)

        x, after = self.through_blocks(
            embed, time_six, (tables, layout), caches, context, recompute=recompute
        )
        x = self.head(x, time)
        if not layout.padded:
            whole = (math.prod(grid.blocks), grid.block_tokens)
            x = with_padding(x, layout.size, grid.block).unflatten(1, whole)
        x = grid.from_blocks(x, *config.patch[1:])
        return GroupResult(x, after)

    def key_budget(self, frames: int, height: int, width: int) -> int:
        """Return the number of block pairs shared by the query blocks of a temporal
        block in a group of this size."""
        config = self.config
        grid = self._grid(frames, height, width)
        return key_budget(
            grid,
            ratio=config.top_k_ratio,
            reference_tokens=config.ref_spatial_tokens,
            override=config.top_k,
        )

    def _timestep(self, batch: int) -> Tensor:
        """Return the configured timestep of every sample, ``[B]``."""
        device = self.patch_embedding.weight.device
        return torch.full((batch,), self.config.timestep, device=device)

    def _times(
        self, timestep: Tensor, context: tuple[ContextKv, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return the time vectors of the head, ``[B, dim]``, and of the blocks,
        ``[B, 6, dim]``, in float32."""
        embedded = sinusoid(timestep, self.config.freq_dim)
        time = float32_layers(self.time_embedding, embedded)
        if self.text_pool is not None:
            pooled = context[0].mean_value()
            time = time + float32_layers(self.text_pool, pooled)
        return time, float32_layers(self.time_projection, time).unflatten(1, (6, -1))

    def _grid(self, frames: int, height: int, width: int) -> BlockGrid:
        return BlockGrid(frames, *self.config.patches(height, width), self.config.block)

    def _cache_shape(
        self, batch: int, blocks: int, grid: BlockGrid
    ) -> tuple[int, int, int, int, int]:
        heads = self.config.num_heads
        return batch, heads, blocks, grid.block_tokens, self.config.dim // heads
