"""The fixed filter to which every residual is added."""

import pytest
import torch

from ultraflash_cli.engine.layers.resample import lanczos_resize, lanczos_upscale


@pytest.mark.parametrize("scale", [2, 3])
def test_the_two_paths_agree(scale: int) -> None:
    x = torch.rand(2, 3, 13, 17)
    torch.testing.assert_close(lanczos_upscale(x, scale), lanczos_resize(x, 13 * scale, 17 * scale), atol=1e-5, rtol=0)


def test_a_flat_picture_stays_flat() -> None:
    flat = torch.full((1, 3, 9, 11), 0.3)
    torch.testing.assert_close(lanczos_upscale(flat, 3), torch.full((1, 3, 27, 33), 0.3))
    torch.testing.assert_close(lanczos_resize(flat, 5, 40), torch.full((1, 3, 5, 40), 0.3))


def test_a_ramp_keeps_its_position() -> None:
    """Half a pixel of shift would show as an offset of a quarter step."""
    ramp = torch.arange(32.0).repeat(8, 1).view(1, 1, 8, 32)
    out = lanczos_upscale(ramp, 2)[0, 0, 8, 16:48]
    torch.testing.assert_close(out, (torch.arange(16, 48) + 0.5) / 2 - 0.5, atol=3e-2, rtol=0)


def test_enlarging_and_reducing_gives_the_picture_back() -> None:
    x = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 40, 40), 5, 1)
    back = lanczos_resize(lanczos_upscale(x, 2), 36, 36)
    assert (back - x)[..., 6:-6, 6:-6].abs().max() < 0.03


def test_an_edge_ten_times_closer_than_the_window_does_no_harm() -> None:
    assert lanczos_upscale(torch.rand(1, 3, 1, 2), 2).isfinite().all()
