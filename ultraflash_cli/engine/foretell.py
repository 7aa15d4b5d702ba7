"""Predict the time per frame from a small crop."""

import math
import time
from collections.abc import Callable

import numpy as np

from ultraflash_cli.engine.clock import wait_for
from ultraflash_cli.engine.guard import Guard
from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.engine.upscaler import Upscaler

__all__ = ["LOOK_PX", "WORTH_LOOKING_PX", "foretold_frame_seconds"]

LOOK_PX = 192 * 112
"""Size of the crop that is timed on a CPU, in pixels. Two groups of frames are upscaled
(13 with `lite`, 0.4 s of a core), within the memory plan."""
WORTH_LOOKING_PX = 200 * LOOK_PX
"""Pixels of all frames of a clip, from which on measuring takes less than a tenth of
the whole time."""


def foretold_frame_seconds(
    upscaler: Upscaler, *, clock: Callable[[], float] = time.perf_counter
) -> float | None:
    """Measure the model's time per frame if that is cheap; return None otherwise.

    On a GPU whole frames are timed after `Upscaler.warm_up`; on a CPU a small crop is
    timed, and only for pure pixel models, as refining latents takes minutes there.
    """
    cascade = upscaler.cascade
    if cascade.device.type == "cuda":
        wait_for(cascade.device)
        started_s = clock()
        upscaler.warm_up()
        wait_for(cascade.device)
        return (clock() - started_s) / upscaler.group_frames(first=True)
    if cascade.profile.pixels is None:
        return None

    height, width = upscaler.plan.padded
    multiple = cascade.profile.multiple_px
    shrink = min(1.0, math.sqrt(LOOK_PX / (height * width)))
    corner = plan_upscale(
        max(multiple, int(width * shrink)),
        max(multiple, int(height * shrink)),
        res=f"{upscaler.plan.scale}x",
        multiple_px=multiple,
    )
    small = Upscaler(
        cascade,
        corner,
        strength=upscaler.strength,
        color=upscaler.color,
        context=upscaler.context,
        yuv=upscaler.yuv,
        guard=None if upscaler.guard is None else Guard(upscaler.guard.levels),
    )
    black = np.zeros((*corner.source, 3), np.uint8)

    # The first group compiles kernels and allocates memory.
    state, _ = small.step(small.init_state(), [black] * small.group_frames(first=True))
    frames = small.group_frames(first=False)
    started_s = clock()
    small.step(state, [black] * frames)
    took_s = clock() - started_s
    return took_s / frames * (height * width) / (corner.padded[0] * corner.padded[1])
