"""The causal memory block, stacks of memory blocks, and growth and pooling in time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_kernels.memory_conv import activated_conv, memory_conv, residual_conv

__all__ = [
    "Joined",
    "MemoryBlock",
    "MemoryInit",
    "MemorySequential",
    "MemoryState",
    "TimeGrowth",
    "TimePool",
    "activation",
    "in_pieces",
    "to_channels_last",
    "to_clip",
    "to_frames",
]

_LAYOUT = torch.channels_last

MemoryInit = Literal["zeros", "replicate"]
"""The memory before the first frame of a stream: zeros, or the frame itself."""


def activation(negative_slope: float) -> nn.Module:
    """Return ReLU, or leaky ReLU if ``negative_slope`` > 0; a slope of 1 is the
    identity."""
    if negative_slope == 1:
        return nn.Identity()
    return (
        nn.LeakyReLU(negative_slope, inplace=True)
        if negative_slope > 0
        else nn.ReLU(inplace=True)
    )


def to_channels_last(network: nn.Module) -> nn.Module:
    """Convert the kernels of all 2D convolutions to channels-last, the format in which
    every stage computes."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


class MemoryBlock(nn.Module):
    """Three 3x3 convolutions over a frame and the block's own input one frame earlier,
    plus a residual.

    Source: reference/cascade.md 3.1. ``negative_slope`` 0 is the published ReLU. With a
    ``linear_trunk`` activations apply to the residual only, not to the sum.
    """

    def __init__(
        self,
        width: int,
        *,
        init: MemoryInit,
        negative_slope: float = 0.0,
        linear_trunk: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.init: MemoryInit = init
        self.negative_slope = negative_slope
        self.trunk_slope = 1.0 if linear_trunk else negative_slope
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            activation(negative_slope),
            nn.Conv2d(width, width, 3, padding=1),
            activation(negative_slope),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(
        self, x_nchw: Tensor, past_bchw: Tensor | None, batch: int
    ) -> tuple[Tensor, Tensor]:
        """Return (output, memory for the next call).

        ``x_nchw`` holds ``batch`` clips frame after frame, N = batch * T. ``past_bchw``
        is the memory, or None at the start of a stream. The memory is the block's input
        at the last frame.
        """
        x_btchw = x_nchw.unflatten(0, (batch, -1))
        if past_bchw is None:
            nothing = self.init == "zeros"
            past_bchw = (
                torch.zeros_like(x_btchw[:, 0], memory_format=torch.channels_last)
                if nothing
                else _one(x_btchw[:, 0])
            )

        first, _, second, _, last = cast("list[nn.Conv2d]", list(self.conv))
        like, slope = x_nchw.dtype, self.negative_slope  # under autocast weights are wider
        mixed = memory_conv(
            x_btchw,
            past_bchw,
            first.weight.to(like),
            _bias(first).to(like),
            negative_slope=slope,
        )
        mixed = activated_conv(
            mixed, second.weight.to(like), _bias(second).to(like), negative_slope=slope
        )
        out = residual_conv(
            mixed,
            x_nchw,
            last.weight.to(like),
            _bias(last).to(like),
            negative_slope=self.trunk_slope,
        )

        # For a longer piece, one frame is copied, so that the whole piece need not stay
        # in memory.
        return out, x_btchw[:, -1] if x_btchw.shape[1] == 1 else _one(x_btchw[:, -1])


def _one(frame_bchw: Tensor) -> Tensor:
    """Copy a frame out of a piece; a view would keep the piece's strides, with which
    libraries sum in a different order."""
    return frame_bchw.clone(memory_format=torch.channels_last)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None, "the convolutions of a memory block have biases"
    return layer.bias


@dataclass(frozen=True)
class MemoryState:
    """The recurrent state of a stack of memory blocks."""

    memories: tuple[Tensor, ...]
    """The last input of every block, ``[B, C, H, W]``, in the order of the blocks."""
    started: bool
    """Whether the stream has begun; until then the memories are zeros that are never
    read."""

    @classmethod
    def empty(cls, shapes: Iterable[tuple[int, ...]], *, like: Tensor) -> "MemoryState":
        """Return the state before a stream, with dtype and device of ``like``."""
        empty = (torch.zeros(s, dtype=like.dtype, device=like.device) for s in shapes)
        return cls(tuple(x.contiguous(memory_format=_LAYOUT) for x in empty), False)

    @property
    def past(self) -> tuple[Tensor, ...] | None:
        """The memories; None at the start of a stream."""
        return self.memories if self.started else None


class Joined(NamedTuple):
    """Consecutive layers that are computed together."""

    end: int
    """Index of the layer after them."""
    run: Callable[[Tensor], Tensor]
    """What they compute."""


class MemorySequential(nn.Sequential):
    """Sequential layers, including memory blocks; weights are named as in a list."""

    def stream(
        self,
        x_nchw: Tensor,
        past: tuple[Tensor, ...] | None,
        batch: int,
        *,
        added: Tensor | None = None,
        at: int = 0,
        joined: Mapping[int, Joined] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a piece of ``batch`` clips, frame after frame; differentiable.

        Args:
            x_nchw: Frames, N = batch * T.
            past: Memories after the previous piece; None at the start of a stream.
            batch: Clips.
            added: Added to the input of a layer.
            at: Index of that layer.
            joined: Layers that are computed together, by the index of the first.

        Returns:
            The result, and the memory of each memory block after the last frame.
        """
        x = x_nchw
        after: list[Tensor] = []
        done = 0
        for number, layer in enumerate(self):
            if number < done:
                continue
            if added is not None and number == at:
                x = x + added
            if isinstance(layer, MemoryBlock):
                x, memory = layer(x, None if past is None else past[len(after)], batch)
                after.append(memory)
            elif joined and number in joined:
                x = joined[number].run(x)
                done = joined[number].end
            else:
                x = layer(x)
        return x, tuple(after)


Run = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""A function from a piece ``[B, C, T, H, W]``, the memories before it or None, and the
same piece of a companion input, if any, to the result and the memories after it."""


def in_pieces(
    run: Run,
    state: MemoryState,
    clip_bcthw: Tensor,
    *,
    size: int,
    beside_bcthw: Tensor | None = None,
) -> tuple[MemoryState, Tensor]:
    """Run a clip and its companion input in pieces of ``size`` frames; return the state
    after it and the result."""
    memories = state.past
    out: Tensor | None = None
    done = 0
    clips = (clip_bcthw,) if beside_bcthw is None else (clip_bcthw, beside_bcthw)
    for piece, *beside in zip(*(clip.split(size, dim=2) for clip in clips), strict=True):
        part, memories = run(piece, memories, *beside)
        if out is None:
            growth = part.shape[2] // piece.shape[2]
            shape = (*part.shape[:2], growth * clip_bcthw.shape[2], *part.shape[3:])
            out = part.new_empty(shape)
        out[:, :, done : done + part.shape[2]] = part
        done += part.shape[2]
        del part  # or it would stay while the next one is made

    assert out is not None and memories is not None, "a group is not empty"
    return MemoryState(memories, True), out


def to_frames(clip_bcthw: Tensor) -> Tensor:
    """Return the frames of clips in sequence, ``[B * T, C, H, W]``, channels last."""
    return clip_bcthw.transpose(1, 2).flatten(0, 1).contiguous(memory_format=_LAYOUT)


def to_clip(frames_nchw: Tensor, batch: int) -> Tensor:
    """Return ``batch`` clips ``[B, C, T, H, W]`` of frames in sequence."""
    return frames_nchw.unflatten(0, (batch, -1)).transpose(1, 2)


class TimeGrowth(nn.Module):
    """A bias-free 1x1 convolution that turns a frame into ``factor`` frames, earlier
    channels first."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(width, width * factor, 1, bias=False)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N * factor, C, H, W], in time order."""
        grown = self.conv(x_nchw)
        if self.factor == 1:
            return grown
        frames = (
            grown.permute(0, 2, 3, 1).unflatten(3, (self.factor, -1)).permute(0, 3, 1, 2, 4)
        )
        return frames.contiguous().flatten(0, 1).permute(0, 3, 1, 2)


class TimePool(nn.Module):
    """A bias-free 1x1 convolution that joins ``factor`` consecutive frames, earlier
    frames first."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(width * factor, width, 1, bias=False)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Map [N, C, H, W] with N a multiple of ``factor`` to [N / factor, C, H, W]."""
        if self.factor == 1:
            return self.conv(x_nchw)
        frames, kernels = (
            x_nchw.unflatten(0, (-1, self.factor)),
            self.conv.weight.chunk(self.factor, dim=1),
        )
        # As in the memory block, no concatenation: each frame is multiplied by its own
        # part of the kernel.
        pooled = F.conv2d(
            frames[:, 0].contiguous(memory_format=torch.channels_last), kernels[0]
        )
        for i in range(1, self.factor):
            pooled.add_(
                F.conv2d(
                    frames[:, i].contiguous(memory_format=torch.channels_last), kernels[i]
                )
            )
        return pooled
