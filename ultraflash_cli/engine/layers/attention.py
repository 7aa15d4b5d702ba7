"""Attention layers of the transformers: windowed self-attention and
cross-attention."""

from dataclasses import dataclass

from torch import Tensor, nn

from ultraflash_cli.engine.cache import WindowRing
from ultraflash_cli.engine.layers.context import ContextKv
from ultraflash_cli.engine.layers.dense_attention import dense_attention
from ultraflash_cli.engine.layers.norm import RmsNorm
from ultraflash_cli.engine.layers.residual import add_linear
from ultraflash_kernels.block_sparse_attention import dense_attention_fp8
from ultraflash_kernels.fp8_linear import Fp8Linear, Fp8Rows
from ultraflash_kernels.rms_norm_rope import (
    AxisTables,
    rms_norm_rope,
    rms_norm_rope_fp8,
)
from ultraflash_kernels.text_attention import text_attention, text_attention_fp8

__all__ = [
    "AttentionLayer",
    "CrossAttention",
    "WindowSelfAttention",
    "WindowSpan",
]


class AttentionLayer(nn.Module):
    """Projections to queries, keys and values and back; queries and keys are normed."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = RmsNorm(width, eps), RmsNorm(width, eps)

    def project_out(self, x: Tensor | Fp8Rows, into: Tensor | None = None) -> Tensor:
        """Project what the heads returned, ``[B, *tokens, width]``; if ``into`` is
        given, add to it by ``add_linear``."""
        if into is None:
            return self.o(x)
        assert isinstance(x, Tensor), "a layer in 8 bits does not add to the stream"
        return add_linear(into, x, self.o)


class CrossAttention(AttentionLayer):
    """Attention to a context that is constant for a whole clip."""

    def project(self, context: Tensor) -> ContextKv:
        """Return the keys and values of ``context [B, context tokens, width]``."""
        return ContextKv(
            self._split(self.norm_k(self.k(context))), self._split(self.v(context))
        )

    def forward(
        self, x: Tensor | Fp8Rows, context: ContextKv, *, into: Tensor | None = None
    ) -> Tensor:
        """Attend from ``x [B, *tokens, width]`` and return ``[B, tokens, width]``,
        without a mask, or ``into`` with the result added, see ``project_out``."""
        q, norm = self.q(x).flatten(1, -2), self.norm_q
        attend = text_attention_fp8 if isinstance(self.o, Fp8Linear) else text_attention
        return self.project_out(attend(q, norm.weight, *context, eps=norm.eps), into)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@dataclass(frozen=True)
class WindowSpan:
    """The position of a chunk in its stream, in tokens; the same for every layer."""

    start: int
    """Number of tokens in the stream before the chunk."""
    capacity: int
    """Maximum number of tokens in the cache, including the chunk's."""
    sink: int
    """Number of tokens at the start of the stream that are never dropped."""
    reuse_rings: bool = False
    """Whether the rings' buffers may be overwritten."""

    @property
    def place(self) -> dict[str, int]:
        """The position as arguments of a ring."""
        return {"start": self.start, "capacity": self.capacity, "sink": self.sink}


class WindowSelfAttention(AttentionLayer):
    """Unmasked self-attention within a chunk and to the window of earlier chunks."""

    def forward(
        self,
        x: Tensor | Fp8Rows,
        tables: AxisTables,
        span: WindowSpan,
        ring: WindowRing,
        *,
        into: Tensor | None = None,
    ) -> tuple[Tensor, WindowRing]:
        """Attend from ``x [B, frames, tokens of a frame, width]``; return the result,
        or ``into`` with the result added (see ``project_out``), and the ring with the
        chunk appended. ``tables`` are the rotations of the chunk's tokens; keys are
        cached rotated. If the ring may be overwritten, keys and values are computed
        directly in its buffers. With a ring in 8 bits, queries, keys and values are
        rounded to it, each token of each head once.
        """
        q, k, v = self.q(x), self.k(x), self.v(x)
        attend = self._attend_in_8_bits if ring.fp8 else self._attend
        attended, ring = attend((q, k, v), tables, span, ring)
        rows = attended.transpose(1, 2).flatten(2).view(q.shape)
        return self.project_out(rows, into), ring

    def _attend(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        tables: AxisTables,
        span: WindowSpan,
        ring: WindowRing,
    ) -> tuple[Tensor, WindowRing]:
        """Return the result ``[B, heads, tokens, D]`` and the ring with the chunk."""
        batch, frames, tokens, width = qkv[0].shape
        size, dtype = tables.positions, qkv[0].dtype
        weights = self.norm_q.weight.to(dtype), self.norm_k.weight.to(dtype)
        block, out = (1, *size[1:]), None
        straight = span.reuse_rings and ring.k.dtype == dtype
        if straight:
            ring, slots = ring.reserve(frames * tokens, **span.place)
            shape = (batch, frames, tokens, self.heads, width // self.heads)
            out = (
                # Heads of a token are adjacent: attention returns the layout of its
                # queries, and the next layer reads tokens.
                qkv[0].new_empty(shape).permute(0, 3, 1, 2, 4),
                slots.k.unflatten(2, (frames, tokens)),
                slots.v.unflatten(2, (frames, tokens)),
            )

        q, k, v = rms_norm_rope(
            *qkv, *weights, tables, size=size, block=block, eps=self.norm_q.eps, out=out
        )
        if not straight:
            ring = ring.write(
                k.flatten(2, 3), v.flatten(2, 3), **span.place, in_place=span.reuse_rings
            )
        return dense_attention(q.flatten(2, 3), ring.used.k, ring.used.v), ring

    def _attend_in_8_bits(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        tables: AxisTables,
        span: WindowSpan,
        ring: WindowRing,
    ) -> tuple[Tensor, WindowRing]:
        """Like ``_attend``, with each token of each head rounded to 8 bits once."""
        assert span.reuse_rings, "attention in 8 bits overwrites its cache"
        q, k, v = (x.flatten(1, 2) for x in qkv)
        ring, slots = ring.reserve(q.shape[1], **span.place)
        q_rows, _, _ = rms_norm_rope_fp8(
            q,
            k,
            v,
            self.norm_q.weight.to(q.dtype),
            self.norm_k.weight.to(q.dtype),
            tables,
            size=tables.positions,
            eps=self.norm_q.eps,
            kv_out=slots.rows,
        )
        return dense_attention_fp8(q_rows, *ring.used.rows, dtype=q.dtype), ring
