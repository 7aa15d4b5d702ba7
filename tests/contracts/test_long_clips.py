"""In long clips of the shipped model objects move on."""

from dataclasses import replace

import torch

from benchmarks.drift import followed
from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.models.shelf import Shelf

CAR = 1007
"""A held-out scene: one car that moves to the right, over hills."""


def test_after_five_seconds_a_car_is_where_it_should_be_and_without_laps_it_is_not() -> None:
    assert LITE.generator is not None
    stopped = replace(LITE, generator=replace(LITE.generator, laps=None))
    ends: list[float] = []
    for profile in (LITE, stopped):
        [clip] = followed(Shelf(), profile, [CAR], seconds=8, scale=1)
        errors = [float(torch.mean((made - drawn) ** 2)) for made, drawn in clip]
        assert errors[4] < 2 * errors[0]
        ends.append(errors[-1] / errors[0])
    assert ends[0] < 2 and ends[1] > 4, ends
