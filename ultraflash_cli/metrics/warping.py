"""Warping error: the change of a clip along the motion of its reference, which should
be zero."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Flow", "optical_flow", "warping_error"]

Plane = NDArray[np.float32]
Flow = NDArray[np.float32]
"""Motion [2, H, W] in pixels: the offset down and right of a pixel's content in the
previous frame."""

_WINDOW_PX = 9
_ROUNDS = 3
"""Number of refinements on each level of the pyramid."""
_SMALLEST_PX = 24
_STEADY = 1e-4
"""Term added to the structure tensor, so that flat areas do not move."""
_OCCLUDED_LEVELS = 12.0
"""If the reference itself changes by more along the motion, there is an occlusion or
the motion is wrong."""


def warping_error(
    output_hw: Plane, output_before_hw: Plane, reference_hw: Plane, reference_before_hw: Plane
) -> tuple[float, float]:
    """Return the root mean square change of output and of reference along the reference's motion, in 8-bit levels.

    All planes are luma of one size. Pixels where the reference itself does not follow its motion (occlusions) are left
    out of both.
    """
    flow = optical_flow(reference_hw, reference_before_hw)
    reference_error = reference_hw - _warped(reference_before_hw, flow)
    seen = np.abs(reference_error) <= _OCCLUDED_LEVELS
    if not seen.any():
        return 0.0, 0.0
    output_error = (output_hw - _warped(output_before_hw, flow))[seen]
    return float(np.sqrt(np.mean(output_error**2))), float(np.sqrt(np.mean(reference_error[seen] ** 2)))


def optical_flow(now_hw: Plane, before_hw: Plane) -> Flow:
    """Estimate where each pixel of ``now_hw`` was in ``before_hw``: Lucas-Kanade over a pyramid of halved sizes."""
    pyramid = [(now_hw, before_hw)]
    while min(pyramid[-1][0].shape) // 2 >= _SMALLEST_PX:
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    flow = np.zeros((2, *pyramid[-1][0].shape), np.float32)
    for now, before in reversed(pyramid):
        if flow.shape[1:] != now.shape:
            flow = _doubled(flow, now.shape)
        for _ in range(_ROUNDS):
            flow += _step(now, _warped(before, flow))
    return flow


def _step(now: Plane, warped: Plane) -> Flow:
    """Solve the least-squares problem of one refinement in a window around each
    pixel."""
    middle = (now + warped) / 2
    down, right = np.gradient(middle, axis=0), np.gradient(middle, axis=1)
    change = now - warped
    a, b, c = (_window(x) for x in (down * down, down * right, right * right))
    u, v = (_window(x) for x in (down * change, right * change))
    ridge = _STEADY * 255**2
    determinant = (a + ridge) * (c + ridge) - b * b
    move = np.stack([(c + ridge) * u - b * v, (a + ridge) * v - b * u]) / determinant
    return np.clip(move, -2, 2).astype(np.float32)


def _warped(plane: Plane, flow: Flow) -> Plane:
    """Sample ``plane`` bilinearly where each pixel's content was; edges are
    replicated."""
    height, width = plane.shape
    rows = np.clip(np.arange(height, dtype=np.float32)[:, None] + flow[0], 0, height - 1)
    columns = np.clip(np.arange(width, dtype=np.float32)[None, :] + flow[1], 0, width - 1)
    top, left = rows.astype(np.int32), columns.astype(np.int32)
    bottom, far = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, right = rows - top, columns - left
    upper = plane[top, left] * (1 - right) + plane[top, far] * right
    lower = plane[bottom, left] * (1 - right) + plane[bottom, far] * right
    return (upper * (1 - down) + lower * down).astype(np.float32)


def _window(x: NDArray[np.floating]) -> Plane:
    """Return the mean over a square window around each pixel, computed by running
    sums."""
    half, mean = _WINDOW_PX // 2, x.astype(np.float64)
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (half + 1, half)
        total = np.cumsum(np.pad(mean, pad, mode="edge"), axis=axis)
        size = x.shape[axis]
        ends, starts = (np.take(total, range(at, at + size), axis) for at in (_WINDOW_PX, 0))
        mean = (ends - starts) / _WINDOW_PX
    return mean.astype(np.float32)


def _halved(x: Plane) -> Plane:
    height, width = (side // 2 * 2 for side in x.shape)
    x = x[:height, :width]
    return ((x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4).astype(np.float32)


def _doubled(flow: Flow, shape: tuple[int, ...]) -> Flow:
    """Upsample motion to twice the size, doubling its values."""
    height, width = shape
    rows = np.minimum(np.arange(height) // 2, flow.shape[1] - 1)
    columns = np.minimum(np.arange(width) // 2, flow.shape[2] - 1)
    return 2 * flow[:, rows[:, None], columns[None, :]]
