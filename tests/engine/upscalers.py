"""Tiny upscalers and functions to run them."""

from collections.abc import Sequence

import numpy as np

from tests.contracts.stages import pixel_cascade, tiny_cascade
from ultraflash_cli.engine.pictures import Picture
from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.engine.upscaler import Upscaler, UpscalerState

__all__ = ["pictures", "run", "upscaler"]


def upscaler(
    width: int = 40, height: int = 24, res: str = "2x", *, enlarges_frames: bool = False, **options: object
) -> Upscaler:
    plan = plan_upscale(width, height, res=res)
    cascade = pixel_cascade if enlarges_frames else tiny_cascade
    return Upscaler(cascade(scale=plan.scale), plan, **options)  # pyright: ignore[reportArgumentType]


def pictures(count: int, width: int = 40, height: int = 24, dtype: type = np.uint8) -> list[Picture]:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, np.iinfo(dtype).max, (count, height // 4 + 1, width // 4 + 1, 3))
    return [np.kron(c, np.ones((4, 4, 1)))[:height, :width].astype(dtype) for c in coarse]


def run(up: Upscaler, frames: Sequence[Picture], *, seed: int = 0, first_frame: int = 0) -> list[Picture]:
    return go_on(up, up.init_state(seed=seed, first_frame=first_frame), frames)


def go_on(up: Upscaler, state: UpscalerState, frames: Sequence[Picture]) -> list[Picture]:
    """Upscale frames group by group to the end of the scene."""
    out: list[Picture] = []
    while True:
        size = up.group_frames(first=state.is_first)
        state, done = up.step(state, frames[:size])
        out += done
        if len(frames) < size:
            return out
        frames = frames[size:]
