"""The guard: pixels that deviate from the source are corrected, and no others
change."""

import numpy as np
import torch
from torch import Tensor

from tests.engine.upscalers import pictures, run, upscaler
from ultraflash_cli.engine.guard import Guard, _blended
from ultraflash_cli.engine.layers.resample import lanczos_resize, lanczos_upscale
from ultraflash_cli.engine.upscaler import Upscaler

LIMIT = 16


def scene() -> tuple[Tensor, Tensor]:
    """A soft source, and its plain resample at twice the size."""
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    source = 0.5 + 0.2 * torch.stack([torch.sin(rows / 9), torch.cos(columns / 7), torch.sin((rows + columns) / 11)])
    return source[None], lanczos_upscale(source[None], 2)


def strays(picture: Tensor, source: Tensor) -> Tensor:
    return 255 * (lanczos_resize(picture, *source.shape[2:]) - source).abs().amax(1)[0]


def test_what_strays_is_brought_back_to_the_limit_and_the_rest_stays_bit_for_bit() -> None:
    source, plain = scene()
    made_up = plain.clone()
    made_up[..., 40:60, 40:60] += 60 / 255
    guard = Guard(LIMIT)
    held = guard.hold(made_up, source, lambda: plain)
    assert strays(made_up, source).max() > 55
    assert strays(held, source).max() < LIMIT + 1
    far = torch.ones(96, 128, dtype=torch.bool)
    far[24:76, 24:76] = False
    assert torch.equal(held[..., far], made_up[..., far])
    share = float((strays(made_up, source) > LIMIT).float().mean())
    assert guard.share is not None and abs(guard.share - share) < 1e-6


def test_detail_that_is_gone_when_made_small_again_is_not_touched() -> None:
    source, plain = scene()
    checkers = (torch.arange(96)[:, None] + torch.arange(128)) % 2 * 2 - 1
    detailed = plain + checkers * 40 / 255
    guard = Guard(LIMIT)

    def unwanted() -> Tensor:
        raise AssertionError("nothing strays, nothing is blended")

    assert torch.equal(guard.hold(detailed, source, unwanted), detailed)
    assert guard.share == 0
    within = strays(detailed, source)[None, None] / 255
    assert torch.equal(_blended(detailed, plain, within, LIMIT / 255), detailed), "a GPU does not look first"


def test_a_result_that_is_not_larger_is_compared_at_its_own_size() -> None:
    source, _ = scene()
    same = source.clone()
    same[..., 10:20, 10:20] -= 50 / 255
    assert strays(Guard(LIMIT).hold(same, source, lambda: source), source).max() < LIMIT + 1
    smaller = lanczos_resize(source, 24, 32)
    bent = smaller.clone()
    bent[..., 10:14, 10:14] += 50 / 255
    held = Guard(LIMIT).hold(bent, source, lambda: smaller)
    assert 255 * (held - smaller).abs().max() < LIMIT + 1


def test_an_upscaler_with_a_guard_stays_near_its_source_and_warming_up_is_not_counted() -> None:
    guard = Guard(LIMIT)
    free, held = upscaler(color="off"), upscaler(color="off", guard=guard)
    held.warm_up()
    assert guard.share is None
    frames = pictures(6)
    sources = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255

    def mean_stray(up: Upscaler) -> float:
        made = torch.from_numpy(np.stack(run(up, frames))).permute(0, 3, 1, 2) / 255
        return float(strays(made, sources).mean())

    assert mean_stray(held) < 0.7 * mean_stray(free)
    assert guard.share is not None and guard.share > 0.5, "a random network strays everywhere"
