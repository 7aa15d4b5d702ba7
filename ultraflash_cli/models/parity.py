"""Compare a device with the CPU before trusting its pixels."""

import numpy as np
import torch

from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.upscaler import Upscaler
from ultraflash_cli.errors import DeviceError
from ultraflash_cli.models.backend import backend_of
from ultraflash_cli.models.build import build_upscaler
from ultraflash_cli.models.device import choose_precision
from ultraflash_cli.models.shelf import Shelf

__all__ = ["require_parity"]

_FRAMES = 7
_SIZE_PX = (52, 36)
"""Width and height, not powers of two, so that padding and cropping are covered."""
_WORST_LEVELS = {torch.float32: 2, torch.bfloat16: 24}
"""Maximum error of a single value, in levels of 255."""
_MEAN_LEVELS = {torch.float32: 0.1, torch.bfloat16: 1.0}


def require_parity(
    shelf: Shelf, profile: Profile, *, scale: int, device: torch.device, precision: str, detail: float = 1.0
) -> None:
    """Upscale a tiny clip on ``device`` and on the CPU; raise DeviceError if the pixels differ.

    CPUs and CUDA are skipped, as they have their own tests.
    """
    if backend_of(device) is None:
        return
    plan = plan_upscale(*_SIZE_PX, res=f"{scale}x", multiple_px=profile.multiple_px)

    def made(on: torch.device, precision: str) -> np.ndarray:
        # Colour matching would hide errors in broad areas, and is itself computed on
        # the device.
        ways = [
            build_upscaler(shelf, profile, plan, device=on, precision=precision, detail=detail, color=color)
            for color in ("off", "match")
        ]
        return np.stack([_upscaled(upscaler, _clip()) for upscaler in ways])

    dtype = choose_precision(precision, device)
    wrong = np.abs(made(device, precision).astype(int) - made(torch.device("cpu"), "fp32").astype(int))
    if wrong.max() > _WORST_LEVELS[dtype] or wrong.mean() > _MEAN_LEVELS[dtype]:
        raise DeviceError(
            f"{device} computes incorrect pixels: off by up to {wrong.max()} of 255 levels on a test clip; "
            "use --device cpu, or another version of torch"
        )


def _clip() -> np.ndarray:
    """Return frames [T, H, W, 3]: a moving grid over noise, always the same."""
    width, height = _SIZE_PX
    rows, columns = np.mgrid[:height, :width]
    frames = [((rows + 2 * t) // 5 + (columns + 3 * t) // 7) % 2 * 160 for t in range(_FRAMES)]
    noise = np.random.default_rng(0).integers(0, 96, (_FRAMES, height, width, 3))
    return (np.stack(frames)[..., None] + noise).astype(np.uint8)


def _upscaled(upscaler: Upscaler, clip: np.ndarray) -> np.ndarray:
    """Return a clip enlarged, group by group."""
    pictures: list[np.ndarray] = []
    state, waiting = upscaler.init_state(), list(clip)
    while waiting:
        count = upscaler.group_frames(first=state.is_first)
        state, done = upscaler.step(state, waiting[:count])
        waiting = waiting[count:]
        pictures += done
    return np.stack(pictures)
