"""The sampler: noise levels, warped steps, from flow to clean latents and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ultraflash_cli.engine.flow_matching import FlowSchedule, fewer_steps
from ultraflash_cli.errors import ConfigError

SCHEDULE = FlowSchedule()


def test_the_published_steps_are_warped_by_the_shift() -> None:
    assert SCHEDULE.warp((1000, 750, 500, 250)) == (1000.0, 937.5, torch.tensor(2500 / 3).item(), 625.0)


def test_step_0_is_the_end() -> None:
    assert SCHEDULE.warp((1000, 0)) == (1000.0, 0.0)


def test_without_a_shift_a_step_is_its_own_timestep() -> None:
    assert FlowSchedule(1.0).warp((1000, 500, 250)) == (1000.0, 500.0, 250.0)


def test_a_timestep_means_the_nearest_entry_of_the_table() -> None:
    assert SCHEDULE.sigma(1000.0) == 1.0
    assert SCHEDULE.sigma(0.0) == pytest.approx(0.00498, abs=1e-5)
    assert SCHEDULE.sigma(625.01) == SCHEDULE.sigma(625.0) == 0.625


@given(step=st.integers(1, 1000), shift=st.floats(0.5, 12))
def test_the_flow_leads_back_to_the_clean_latents(step: int, shift: float) -> None:
    schedule = FlowSchedule(shift)
    (timestep,) = schedule.warp([step])
    draw = torch.Generator().manual_seed(step)
    clean, noise = torch.randn(2, 3, generator=draw), torch.randn(2, 3, generator=draw)
    noisy = schedule.renoise(clean, noise, timestep)
    torch.testing.assert_close(schedule.clean(noisy, noise - clean, timestep), clean, rtol=0, atol=1e-6)


def test_half_precision_is_rounded_once() -> None:
    draw = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1000, generator=draw).bfloat16() for _ in range(2))
    got = SCHEDULE.renoise(clean, noise, 937.5)
    assert torch.equal(got, SCHEDULE.renoise(clean.float(), noise.float(), 937.5).bfloat16())
    got = SCHEDULE.clean(clean, noise, 937.5)
    assert torch.equal(got, (clean.double() - 0.9375 * noise.double()).bfloat16())


def test_the_tables_are_numbers_wherever_a_network_is_built() -> None:
    with torch.device("meta"):
        schedule = FlowSchedule()
    assert schedule.sigma(625.0) == 0.625


def test_fewer_steps_round_half_to_even() -> None:
    assert [fewer_steps((0, 1, 2, 3), count) for count in (1, 2, 3, 4)] == [(0,), (0, 3), (0, 2, 3), (0, 1, 2, 3)]


@given(length=st.integers(1, 12), data=st.data())
def test_fewer_steps_keep_the_order_and_both_ends(length: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, length))
    steps = fewer_steps(tuple(range(length)), count)
    assert len(set(steps)) == count and list(steps) == sorted(steps)
    assert steps[0] == 0 and (count == 1 or steps[-1] == length - 1)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="shift"):
        FlowSchedule(0.0)
    for step in (-1, 1001):
        with pytest.raises(ConfigError, match="steps must be within"):
            SCHEDULE.warp([step])
    for count in (0, 5):
        with pytest.raises(ConfigError, match="1 to 4"):
            fewer_steps((4, 3, 2, 1), count)
