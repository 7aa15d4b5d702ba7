"""Properties that the losses reward or do not reward."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.train.made import moving_shapes
from ultraflash_cli.train.losses import (
    charbonnier,
    detail_loss,
    information_loss,
    luma,
    temporal_loss,
    to_ycbcr,
)

STRUCTURAL = [pytest.param(information_loss, id="information"), pytest.param(detail_loss, id="detail")]
Structural = Callable[[Tensor, Tensor], Tensor]


def planes() -> Tensor:
    """Return luma planes [4, 1, 64, 64] of a generated clip."""
    frames = torch.from_numpy(moving_shapes(3, frames=4, side=64)).permute(3, 0, 1, 2).float() / 255
    return luma(frames[None]).transpose(1, 2).flatten(0, 1)


def blurred(x: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(F.pad(x, (side // 2,) * 4, mode="replicate"), side, 1)


@pytest.mark.parametrize("loss", STRUCTURAL)
def test_identical_pictures_score_zero(loss: Structural) -> None:
    assert loss(planes(), planes()).item() == pytest.approx(0, abs=2e-3)


def test_identical_clips_score_zero_in_pixels_and_in_time() -> None:
    clip = planes().unsqueeze(0).transpose(1, 2)
    assert charbonnier(clip, clip).item() == pytest.approx(1e-3)
    assert temporal_loss(clip, clip).item() == pytest.approx(1e-3)


@pytest.mark.parametrize("loss", STRUCTURAL)
def test_more_blur_scores_worse(loss: Structural) -> None:
    x = planes()
    scores = [loss(blurred(x, side), x).item() for side in (1, 3, 5, 9)]
    assert scores == sorted(scores)
    assert scores[1] > 0.02 and scores[-1] > 1.5 * scores[1]


@pytest.mark.parametrize("loss", STRUCTURAL)
def test_noise_does_not_hide_blur(loss: Structural) -> None:
    x = planes()
    soft = blurred(x, 5)
    noisy = soft + 0.05 * torch.randn(soft.shape, generator=torch.Generator().manual_seed(1))
    assert loss(noisy, x) > 0.8 * loss(soft, x)


@pytest.mark.parametrize("loss", STRUCTURAL)
@pytest.mark.parametrize("gain", [1.2, 1.5, 2.0])
def test_more_contrast_than_the_target_has_is_not_rewarded(loss: Structural, gain: float) -> None:
    x = planes() * 0.4 + 0.2
    enhanced = (x - x.mean()) * gain + x.mean()
    assert loss(enhanced, x) >= loss(x, x) - 1e-4


@pytest.mark.parametrize("loss", STRUCTURAL)
def test_the_gradient_is_finite_even_on_flat_pictures(loss: Structural) -> None:
    for target in (planes(), torch.full((1, 1, 64, 64), 0.5)):
        out = target.clone().requires_grad_()
        loss(out, target).backward()
        assert out.grad is not None and torch.isfinite(out.grad).all()


def test_flicker_costs_in_time_and_a_constant_error_does_not() -> None:
    clip = planes().unsqueeze(0).transpose(1, 2)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 4, 1, 1)
    steady, flickering = (temporal_loss(clip + 0.02 * way, clip).item() for way in (sign.abs(), sign))
    assert steady == pytest.approx(1e-3, rel=0.01)
    assert flickering == pytest.approx(0.04, rel=0.01)


def test_grey_has_no_chroma_and_luma_is_its_first_plane() -> None:
    grey = torch.full((1, 3, 1, 2, 2), 0.3)
    torch.testing.assert_close(to_ycbcr(grey)[0, :, 0, 0, 0], torch.tensor([0.3, 0.0, 0.0]))
    green = torch.zeros(1, 3, 1, 1, 1)
    green[:, 1] = 1
    assert luma(green).item() == pytest.approx(0.587)
