"""The size plan: any size in, the exact size out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.errors import UsageError


@pytest.mark.parametrize(
    ("source", "res", "target", "scale"),
    [
        ((832, 480), "1k", (1664, 960), 2),
        ((832, 480), "2k", (2496, 1440), 3),
        ((480, 832), "1k", (960, 1664), 2),
        ((854, 480), "1k", (1708, 960), 2),
        ((853, 481), "2x", (1706, 962), 2),
        ((853, 481), "3x", (2559, 1443), 3),
        ((640, 360), "1k", (1706, 960), 3),
        ((200, 150), "2k", (1920, 1440), 3),
        ((720, 576), "1664x960", (1664, 960), 3),
    ],
)
def test_a_target_is_reached_to_the_pixel(
    source: tuple[int, int], res: str, target: tuple[int, int], scale: int
) -> None:
    plan = plan_upscale(*source, res=res)
    assert (plan.target[1], plan.target[0], plan.scale) == (*target, scale)


@pytest.mark.parametrize(
    ("source", "short"),
    [((832, 480), 960), ((1280, 800), 960), ((1280, 801), 1440), ((1920, 1080), 1440), ((2560, 1440), 2880)],
)
def test_without_a_target_the_first_worthwhile_one_is_taken(source: tuple[int, int], short: int) -> None:
    assert min(plan_upscale(*source).target) == short


@given(width=st.integers(2, 2000), height=st.integers(2, 2000), res=st.sampled_from([None, "1k", "2k", "2x", "3x"]))
def test_every_plan_goes_up_and_never_shrinks_before_the_model(width: int, height: int, res: str | None) -> None:
    try:
        plan = plan_upscale(width, height, res=res)
    except UsageError:
        assert res in ("1k", "2k") or max(width, height) > 6 * min(width, height)
        return
    assert plan.scale in (2, 3)
    for axis in (0, 1):
        assert plan.enlarged[axis] >= plan.source[axis]
        assert plan.padded[axis] >= plan.enlarged[axis] and plan.padded[axis] % 16 == 0
        assert plan.padded[axis] - plan.enlarged[axis] < 16
        assert plan.model_size[axis] >= plan.target[axis]
    if plan.growth <= 3:
        assert plan.enlarged == plan.source


def test_a_target_of_a_turned_clip_is_as_shown() -> None:
    plan = plan_upscale(640, 360, res="720x1280", quarter_turn=True)
    assert plan.target == (720, 1280)


@pytest.mark.parametrize(
    ("res", "target"),
    [
        ("1K", (960, 1664)),
        ("1080p", (1080, 1872)),
        ("960P", (960, 1664)),
        ("600p", (600, 1040)),
        ("1.5x", (720, 1248)),
        ("2.33X", (1118, 1938)),
        ("4k", (2160, 3744)),
        ("4X", (1920, 3328)),
        ("1x", (480, 832)),
        (" 1664X960 ", (960, 1664)),
    ],
)
def test_targets_are_read_in_any_case(res: str, target: tuple[int, int]) -> None:
    assert plan_upscale(832, 480, res=res).target == target


@pytest.mark.parametrize("res", ["1x1", "1x1000", "0x0"])
def test_a_target_without_pixels_is_reported_as_too_small(res: str) -> None:
    with pytest.raises(UsageError, match="at least 2 pixels"):
        plan_upscale(832, 480, res=res)


@pytest.mark.parametrize("res", ["5k", "", "1664", "1664x", "x960", "0x", "1664x960x3", "-2x"])
def test_a_target_that_cannot_be_read_is_refused(res: str) -> None:
    with pytest.raises(UsageError, match="--res must be"):
        plan_upscale(832, 480, res=res)


@pytest.mark.parametrize("res", ["1k", "1920x1080", "960x2160"])
def test_a_target_no_larger_than_the_source_is_refused(res: str) -> None:
    with pytest.raises(UsageError, match="nothing to upscale"):
        plan_upscale(1920, 1080, res=res)


def test_with_downscale_the_model_runs_and_its_result_is_reduced() -> None:
    plan = plan_upscale(1920, 1080, res="1k", downscale=True)
    assert plan.target == (960, 1706) and plan.scale == 2 and plan.enlarged == plan.source


def test_a_monstrous_target_is_refused() -> None:
    with pytest.raises(UsageError, match="16384"):
        plan_upscale(12000, 400, res="2x")
