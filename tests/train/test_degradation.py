"""Low-resolution counterparts: deterministic, and aligned with the original."""

import numpy as np
import numpy.typing as npt
import pytest

from tests.train.made import CLEAN, SOFT, moving_shapes
from ultraflash_cli.train.degradation import KINDS, DegradationConfig, Kind, degrade, draw
from ultraflash_cli.train.operators import Deliver, Grain

COMPRESSED: tuple[tuple[Kind, float], ...] = (("compressed", 1.0),)
CONFIGS = [
    pytest.param(CLEAN, id="clean"),
    pytest.param(SOFT, id="blur and codec"),
    *(
        pytest.param(DegradationConfig(shares=COMPRESSED, kernels=((kernel, 1.0),), crf=(20, 20)), id=kernel)
        for kernel in ("area", "bilinear", "bicubic", "lanczos")
    ),
]


def centroid(frames_thwc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return the luma centroid as fractions of height and width."""
    luma = (frames_thwc.astype(np.float64) @ (0.299, 0.587, 0.114)).mean(axis=0) - 16
    luma = luma.clip(4) - 4
    rows, columns = ((np.arange(size) + 0.5) / size for size in luma.shape)
    return np.array([(luma.sum(1) * rows).sum(), (luma.sum(0) * columns).sum()]) / luma.sum()


def lopsided(side: int) -> npt.NDArray[np.uint8]:
    """Return a still of an asymmetric white shape, off centre, on black."""
    clip = np.full((4, side, side, 3), 16, dtype=np.uint8)
    clip[:, side // 4 : side // 2, side // 3 : side * 3 // 4] = 235
    clip[:, side // 2 : side * 2 // 3, side // 3 : side // 2 - 3] = 200
    return clip


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("scale", [2, 3])
def test_it_keeps_positions(config: DegradationConfig, scale: int) -> None:
    high = lopsided(96)
    low = degrade(high, scale, config, np.random.default_rng(3))
    assert low.shape == (4, 96 // scale, 96 // scale, 3)
    shift_px = (centroid(low) - centroid(high)) * low.shape[1]
    assert np.abs(shift_px).max() < 0.05


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[1], pytest.param(DegradationConfig(), id="default")])
def test_it_is_a_pure_function_of_its_arguments(config: DegradationConfig) -> None:
    high = moving_shapes(1, frames=4, side=64)
    kept = high.copy()
    first = degrade(high, 2, config, np.random.default_rng(5))
    assert (first == degrade(high, 2, config, np.random.default_rng(5))).all()
    assert (high == kept).all()


def test_the_draws_matter() -> None:
    high = moving_shapes(1, frames=4, side=64)
    made = [degrade(high, 2, DegradationConfig(shares=COMPRESSED), np.random.default_rng(seed)) for seed in (1, 2)]
    assert (made[0] != made[1]).any()


def test_the_clean_kind_is_close_to_the_clip_and_the_strongest_is_not() -> None:
    high = moving_shapes(2, frames=4, side=64)
    wanted = high.astype(np.float64).reshape(4, 32, 2, 32, 2, 3).mean((2, 4))
    errors = [np.abs(degrade(high, 2, config, np.random.default_rng(0)) - wanted).mean() for config in (CLEAN, SOFT)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_drawn_and_ends_at_the_small_size(kind: Kind, scale: int) -> None:
    config = DegradationConfig(shares=((kind, 1.0),))
    for seed in range(5):
        drawn, operators = draw(config, (48, 96), scale, np.random.default_rng(seed))
        sizes = [each.size for each in operators if isinstance(each, Deliver) and each.size is not None]
        assert drawn == kind and sizes[-1] == (48 // scale, 96 // scale)
        assert any(isinstance(each, Grain) for each in operators) == (kind == "noisy")


def test_kinds_come_as_often_as_their_shares_say() -> None:
    config = DegradationConfig(shares=(("clean", 1.0), ("noisy", 3.0)))
    kinds = [draw(config, (48, 96), 2, np.random.default_rng(seed))[0] for seed in range(400)]
    assert 0.65 < kinds.count("noisy") / 400 < 0.85 and kinds.count("compressed") == 0
