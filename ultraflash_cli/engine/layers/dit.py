"""The parts shared by generator and SR transformer: sizes, blocks, context embedding
and head (reference/cascade.md 1 and 4)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.attention import CrossAttention, WindowSelfAttention
from ultraflash_cli.engine.layers.context import ContextKv, Folding
from ultraflash_cli.engine.layers.feed_forward import feed_forward
from ultraflash_cli.engine.layers.modulation import Addend, sum_and_norm
from ultraflash_cli.engine.layers.norm import LayerNorm
from ultraflash_cli.engine.layers.recompute import recomputed
from ultraflash_cli.engine.layers.residual import FoldedLinear, stream_for
from ultraflash_cli.engine.layers.rope import rotation_tables
from ultraflash_cli.engine.layers.sparse_attention import SparseCausalSelfAttention
from ultraflash_cli.errors import ConfigError
from ultraflash_kernels.adaln_modulate import gated_residual
from ultraflash_kernels.fp8_linear import Fp8Linear
from ultraflash_kernels.rms_norm_rope import AxisTables

__all__ = ["Dit", "DitBlock", "DitConfig", "DitHead"]

CacheT = TypeVar("CacheT")
SelfAttention = SparseCausalSelfAttention | WindowSelfAttention


@dataclass(frozen=True, kw_only=True)
class DitConfig:
    """Sizes common to both transformers; the defaults are the published ones."""

    NAME: ClassVar[str] = "transformer"
    """Name of the transformer in messages."""

    dim: int = 1536
    """Model width."""
    num_heads: int = 12
    """Attention heads; each is ``dim / num_heads`` wide, an even number."""
    num_layers: int = 30
    """Number of blocks."""
    ffn_dim: int = 8960
    """Hidden width of the feed-forward layers."""
    freq_dim: int = 256
    """Width of the sinusoidal timestep embedding, an even number."""
    text_dim: int = 4096
    """Width of a prompt embedding."""
    text_len: int = 512
    """Number of context tokens, including zero rows."""
    latent_channels: int = 16
    """Number of channels of the noise and the result."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns per token; frames must be 1."""
    sees_signal: bool = False
    """Whether to scale the noisy input by its signal fraction, ``1 - sigma``. At pure
    noise the network then sees only the prompt, which a narrow network can learn."""
    pool_text: bool = False
    """Whether to add the mean of the context to the timestep embedding, so that the
    modulation depends on the prompt."""
    head_dim: int = 0
    """Width of a hidden layer parallel to the last projection, for patches with more
    values than ``dim``; 0 for none."""
    eps: float = 1e-6
    """Added to variances and mean squares."""

    def check_sizes(self, *more: str) -> None:
        """Raise ConfigError for invalid sizes; ``more`` are fields of a subclass that
        must also be positive."""
        positive = ("dim", "num_heads", "num_layers", "ffn_dim", "freq_dim", "text_dim")
        for name in (*positive, "latent_channels", "eps", *more):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{self.NAME}: {name} must be positive, got {getattr(self, name)}"
                )
        if self.dim % self.num_heads or self.dim // self.num_heads % 2:
            raise ConfigError(
                f"{self.NAME}: {self.dim} channels do not split into "
                f"{self.num_heads} heads of even width"
            )
        if self.freq_dim % 2:
            raise ConfigError(f"{self.NAME}: freq_dim must be even, got {self.freq_dim}")
        if len(self.patch) != 3 or self.patch[0] != 1 or min(self.patch) < 1:
            raise ConfigError(
                f"{self.NAME}: a patch must be (1, rows, columns), got {self.patch}"
            )

    def patches(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of tokens of latents. Raises ConfigError if they
        are not whole patches."""
        _, py, px = self.patch
        if height % py or width % px or min(height, width) < 1:
            raise ConfigError(
                f"latents of {height} x {width} are not whole patches of {py} x {px}"
            )
        return height // py, width // px


class DitBlock(nn.Module):
    """Modulated self-attention, cross-attention if there is text, modulated
    feed-forward."""

    def __init__(self, config: DitConfig, self_attn: SelfAttention) -> None:
        super().__init__()
        dim, self.eps = config.dim, config.eps
        self.self_attn = self_attn
        if config.text_len:
            self.norm3 = LayerNorm(dim, config.eps)
            self.cross_attn = CrossAttention(dim, config.num_heads, config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / math.sqrt(dim))

    @torch.no_grad()
    def fold_gates(self, time: Tensor, offset: Tensor) -> Tensor:
        """Fold gates that never change into the layers before them, in place; see
        ``FoldedLinear``.

        ``time [6, dim]`` is the block's only time vector and ``offset [dim]`` that of
        the block before, both float32; returns the offset after this block.
        """
        gates = self.modulation[0] + time
        layers: list[tuple[nn.Module, str, Tensor | None]] = [
            (self.self_attn, "o", gates[2]),
            (self.ffn, "2", gates[5]),
        ]
        if hasattr(self, "cross_attn"):
            layers.insert(1, (self.cross_attn, "o", None))
        for parent, name, gate in layers:
            layer = getattr(parent, name)
            assert type(layer) is nn.Linear, "folded once, and not in 8 bits"
            folded = FoldedLinear(layer, gate, offset)
            setattr(parent, name, folded)
            offset = folded.offset
        return offset

    def forward(
        self,
        x: Tensor,
        addend: Addend,
        time: Tensor,
        where: Sequence[object],
        context: ContextKv | None,
    ) -> tuple[Tensor, Addend, Any]:
        """Run the residual stream through the block; sums are fused with the following
        norm, or with the matmul before it.

        Args:
            x: The stream, ``[B, frames or blocks, tokens of one, dim]``, or ``[B,
                tokens, dim]``; a block with folded gates overwrites it.
            addend: Pending addition of the previous block; empty in the first block.
            time: ``[B, 6, dim]``, or for every frame ``[B or 1, frames or 1, 6, dim]``.
            where: Further arguments of self-attention: rotations, position of the
                group, cache.
            context: Keys and values of the text; None without.

        Returns:
            The stream, what is yet to be added to it, and the cache after the group.
        """
        vectors = self.modulation + time
        vectors = vectors.expand(*x.shape[: vectors.ndim - 2], -1, -1).unbind(-2)
        attn_shift, attn_scale, attn_gate, ffn_shift, ffn_scale, ffn_gate = vectors
        x, y = sum_and_norm(self.self_attn.q, x, addend, attn_shift, attn_scale, self.eps)
        layer = self.self_attn.o
        into = stream_for(layer, x, gated=True)
        attended = self.self_attn(y, *where, into=into)
        addend = _pending(layer, attended[0], attn_gate, into, addend)

        if context is not None:
            norm, cross = self.norm3, self.cross_attn
            x, y = sum_and_norm(
                cross.q, x, addend, norm.bias, norm.weight, norm.eps, affine=True
            )
            into = stream_for(cross.o, x, gated=False)
            added = cross(y, context, into=into).view_as(x)
            addend = _pending(cross.o, added, None, into, addend)

        x, y = sum_and_norm(self.ffn[0], x, addend, ffn_shift, ffn_scale, self.eps)
        layer = self.ffn[2]
        into = stream_for(layer, x, gated=True)
        added = feed_forward(self.ffn, y, into=into)
        return x, _pending(layer, added, ffn_gate, into, addend), attended[1]


def _pending(
    layer: nn.Module,
    added: Tensor,
    gate: Tensor | None,
    into: Tensor | None,
    before: Addend,
) -> Addend:
    """Return what the residual stream lacks after ``layer``, the last one of attention
    or feed-forward: its result ``added``, or only an offset if that was added to
    ``into``. ``before`` was pending at the norm in front."""
    if into is None:
        return Addend(added, gate, before.offset_after)
    if isinstance(layer, FoldedLinear):
        return Addend(offset=layer.offset)
    assert before.offset_after is None, "only folded layers sum up offsets"
    return Addend(offset=cast("nn.Linear", layer).bias)


def _completed(x: Tensor, addend: Addend) -> Tensor:
    """Return the stream with what is still pending after the last block."""
    y, gate, offset = addend
    if y is None:
        assert offset is not None, "there is a block"
        return x.add_(offset)
    assert gate is not None, "a block ends with a gate"
    return gated_residual(x, y.to(x.dtype), gate, offset=offset)


class DitHead(nn.Module):
    """Weights of the modulated norm and the projection to patches, plus a hidden layer
    if configured; initialised to zero."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        dim, self.eps = config.dim, config.eps
        values = math.prod(config.patch) * config.latent_channels
        self.head = nn.Linear(dim, values)
        self.detail = None
        if config.head_dim:
            hidden = nn.Linear(dim, config.head_dim)
            self.detail = nn.Sequential(
                hidden, nn.GELU("tanh"), nn.Linear(config.head_dim, values)
            )
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / math.sqrt(dim))
        for name, parameter in self.named_parameters():
            if name.startswith(("head.", "detail.2.")):
                nn.init.zeros_(parameter)


class Dit(nn.Module):
    """Layers and code shared by both transformers."""

    TAKES_EMBEDDED: ClassVar[bool] = False
    """Whether a context of width ``dim`` is taken as already projected."""
    blocks: nn.ModuleList

    def __init__(self, config: DitConfig, channels: int) -> None:
        super().__init__()
        self.sizes = config
        self.patch_embedding = nn.Conv3d(
            channels, config.dim, config.patch, stride=config.patch
        )

    @property
    def fp8(self) -> bool:
        """Whether layers, self-attention and its caches are in 8-bit floating point."""
        return isinstance(cast("DitBlock", self.blocks[0]).ffn[0], Fp8Linear)

    def make_embeddings(self) -> None:
        """Create the layers that embed texts and timesteps."""
        sizes, dim = self.sizes, self.sizes.dim
        if sizes.text_len:
            self.text_embedding = nn.Sequential(
                nn.Linear(sizes.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim)
            )
        self.time_embedding = nn.Sequential(
            nn.Linear(sizes.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def embed_context(self, context: Tensor | None, *, batch: int) -> tuple[ContextKv, ...]:
        """Return the context's keys and values for every layer, or none without a text
        path; differentiable. Padding is folded where that saves keys.

        ``context [B or 1, tokens, text_dim]`` has at most ``text_len`` tokens; None is
        all zeros. Raises ConfigError for one that does not fit.
        """
        sizes, weight = self.sizes, self.patch_embedding.weight
        if not sizes.text_len:
            if context is not None:
                raise ConfigError(
                    f"this {sizes.NAME} has no text path, but a context was given"
                )
            return ()
        if context is None:
            context = weight.new_zeros(1, 0, sizes.text_dim)
        embedded = self.TAKES_EMBEDDED and context.shape[-1] == sizes.dim
        if (
            context.ndim != 3
            or context.shape[1] > sizes.text_len
            or not (embedded or context.shape[2] == sizes.text_dim)
        ):
            expected = f"[batch, up to {sizes.text_len} tokens, {sizes.text_dim}]"
            raise ConfigError(f"the context must be {expected}, got {list(context.shape)}")

        tokens = context.to(weight.device, weight.dtype)
        folding = Folding.of(context.shape[1], sizes.text_len)
        rows = sizes.text_len if folding is None else folding.rows
        tokens = F.pad(tokens, (0, 0, 0, rows - context.shape[1]))
        tokens = tokens if embedded else self.text_embedding(tokens)
        tokens = tokens.expand(batch, -1, -1)
        projected = [
            block.cross_attn.project(tokens)
            for block in cast("list[DitBlock]", self.blocks)
        ]
        if folding is None:
            return tuple(projected)
        weights = folding.log_weights(tokens.device)
        return tuple(
            ContextKv(folding.fill_up(k), folding.fill_up(v), weights)
            for k, v, _ in projected
        )

    def rotations(
        self, first_frame: int | Tensor, frames: int, rows: int, cols: int
    ) -> AxisTables:
        """Return the rotary tables of tokens starting at ``first_frame`` of the
        stream."""
        return rotation_tables(
            self.sizes.dim // self.sizes.num_heads,
            first_frame=first_frame,
            frames=frames,
            rows=rows,
            cols=cols,
            device=self.patch_embedding.weight.device,
        )

    def through_blocks(
        self,
        embed: Callable[[], Tensor],
        time: Tensor,
        where: tuple[object, ...],
        caches: Sequence[CacheT],
        context: Sequence[ContextKv],
        *,
        recompute: bool = False,
    ) -> tuple[Tensor, tuple[CacheT, ...]]:
        """Run the residual stream through all blocks; returns it and the caches after
        the group. ``embed`` creates the stream inside, so that the first block can free
        it. The other arguments are those of ``DitBlock.forward``, with one cache and
        context per layer. With ``recompute`` blocks keep only their inputs for the
        backward pass.
        """
        x = embed()
        after: list[CacheT] = []
        addend = Addend()
        for block, cache, text in zip_longest(self.blocks, caches, context):
            run = recomputed(block) if recompute else block
            x, addend, cache = run(x, addend, time, (*where, cache), text)
            after.append(cache)

        return _completed(x, addend), tuple(after)
