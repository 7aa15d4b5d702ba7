"""Export of `lite` to ONNX: one frame and the state in, the larger frame and the next
state out."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import MemoryBlock
from ultraflash_cli.engine.layers.resample import lanczos_upscale
from ultraflash_cli.engine.stages.pixel_path import PixelPath

__all__ = ["FrameStep", "input_names", "write_onnx"]

_EXAMPLE_PX = (48, 64)
"""Height and width of the frame for tracing the graph, in which both remain dynamic."""


class FrameStep(nn.Module):
    """A pixel path for one frame with its state as arguments, using operations that all
    runtimes support."""

    lanczos: Tensor

    def __init__(self, path: PixelPath) -> None:
        super().__init__()
        self.path = path
        self.register_buffer("lanczos", _lanczos_kernels(path.config.scale), persistent=False)

    def forward(self, frame: Tensor, first: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Enlarge a frame.

        Args:
            frame: RGB [1, 3, H, W], float32 in [0, 1]; H and W are even.
            first: [1, 1, 1, 1], 1 at the first frame of a scene, whose state is not read, else 0.
            states: The state after the previous frame, [1, C, H / 2, W / 2] for each block.

        Returns:
            The frame [1, 3, scale * H, scale * W], not clamped, and the next states.
        """
        path, config = self.path, self.path.config
        embedded = path.embed(F.pixel_unshuffle(frame, config.patch))
        x, after = embedded, []
        for block, state in zip(path.blocks, states, strict=True):
            assert isinstance(block, MemoryBlock)
            started = x if block.init == "replicate" else torch.zeros_like(x)
            past = first * started + (1 - first) * state
            after.append(x)
            opening, _, middle, _, closing = block.conv
            mixed = _act(opening(torch.cat([x, past], dim=1)), block.negative_slope)
            mixed = _act(middle(mixed), block.negative_slope)
            x = _act(closing(mixed) + x, block.trunk_slope)
        residual = path.project[str(config.scale)](x + embedded) * config.residual_gain
        lobes = self.lanczos.shape[-1] // 2
        padded = F.pad(frame.transpose(0, 1), (lobes, lobes, lobes, lobes), mode="replicate")
        plain = F.pixel_shuffle(F.conv2d(padded, self.lanczos), config.scale).transpose(0, 1)
        return plain + F.pixel_shuffle(residual, config.patch * config.scale), after


def _lanczos_kernels(scale: int) -> Tensor:
    """Return the kernels of ``lanczos_upscale`` [scale ** 2, 1, k, k], derived from its
    impulse response."""
    reach, at = 3, 9
    bright = torch.zeros(1, 1, 2 * at + 1, 2 * at + 1)
    bright[..., at, at] = 1
    phases = F.pixel_unshuffle(lanczos_upscale(bright, scale), scale)[0]
    return phases[:, at - reach : at + reach + 1, at - reach : at + reach + 1].flip(1, 2).unsqueeze(1).contiguous()


def _act(x: Tensor, slope: float) -> Tensor:
    return x if slope == 1 else F.leaky_relu(x, slope)


def input_names(path: PixelPath) -> list[str]:
    """Return the names of the inputs; the states are returned as ``next_state_0`` and
    so on."""
    return ["frame", "first", *(f"state_{number}" for number in range(path.config.blocks))]


def write_onnx(path: PixelPath, file: Path) -> None:
    """Write a pixel path in float32 on the CPU as an ONNX model, in one file, for frames of any even size."""
    height, width = _EXAMPLE_PX
    patch, blocks = path.config.patch, path.config.blocks
    state = torch.zeros(1, path.config.width, height // patch, width // patch)
    example = (torch.zeros(1, 3, height, width), torch.ones(1, 1, 1, 1), [state.clone() for _ in range(blocks)])
    rows, columns = torch.export.Dim("rows", min=8), torch.export.Dim("columns", min=8)
    torch.onnx.export(
        FrameStep(path).eval(),
        example,
        str(file),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=input_names(path),
        output_names=["enlarged", *(f"next_state_{number}" for number in range(blocks))],
        dynamic_shapes={
            "frame": {2: patch * rows, 3: patch * columns},
            "first": None,
            "states": [{2: rows, 3: columns}] * blocks,
        },
    )
