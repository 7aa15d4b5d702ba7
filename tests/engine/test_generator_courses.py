"""Moving frames of reference, whose course the prompt selects."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.generators import TINY, build, clean_latents
from ultraflash_cli.engine.layers.moving_places import Course, MovingPlaces
from ultraflash_cli.errors import ConfigError

GRID = (4, 8)
COURSES = (Course(right=0.5), Course(down=-1.0))
CONFIG = replace(TINY, grid=GRID, pool_text=True, slide=True, courses=COURSES, taught_frames=12)


def moving_places(courses: tuple[Course, ...] = COURSES, laps: tuple[float, float] | None = None) -> MovingPlaces:
    torch.manual_seed(0)
    made = MovingPlaces(TINY.dim, GRID, courses, taught_frames=12, laps=laps)
    torch.nn.init.zeros_(made.clock.weight)
    return made


def prompt_for(made: MovingPlaces, course: int) -> Tensor:
    """Return a pooled prompt, after making the network choose this course for every
    prompt."""
    with torch.no_grad():
        torch.nn.init.zeros_(made.choice[2].get_parameter("weight"))
        made.choice[2].get_parameter("bias").copy_(1000.0 * torch.eye(len(made.courses))[course])
    return torch.zeros(1, TINY.dim)


@torch.no_grad()
def test_what_moves_along_the_chosen_course_keeps_its_embedding() -> None:
    made = moving_places()
    right = made(prompt_for(made, 0), 3, 0).places
    torch.testing.assert_close(right[:, 2, :, 1:], right[:, 0, :, :-1])  # half a token per frame
    assert not torch.allclose(right[:, 1], right[:, 0], atol=1e-3)

    up = made(prompt_for(made, 1), 2, 0).places
    torch.testing.assert_close(up[:, 1, :-1], up[:, 0, 1:])


@torch.no_grad()
@pytest.mark.parametrize("member", range(3))
def test_each_object_of_a_group_that_hops_has_a_frame_of_its_own(member: int) -> None:
    """Two tokens up and down again in four latent frames, each object at another time."""
    phases = (0.0, math.pi / 4, math.pi / 2)
    made = moving_places((Course(hop=2.0, rate=math.pi / 4, phases=phases), Course()))
    for swing in (made.swing, made.swing_modulation):
        torch.nn.init.zeros_(swing.weight)
    each = made.rows.weight.unflatten(1, (3, -1))
    each[:, [other for other in range(3) if other != member]] = 0

    hopping = made(prompt_for(made, 0), 5, 0).places
    top, floor = (2 - member) % 4, (4 - member) % 4
    torch.testing.assert_close(hopping[:, top, :-2], hopping[:, floor, 2:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hopping[:, 4], hopping[:, 0], rtol=1e-4, atol=1e-4)
    still = made(prompt_for(made, 1), 1, 0).places
    torch.testing.assert_close(hopping[:, floor], still[:, 0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_embeddings_depend_on_the_phase_of_a_swing_unless_nothing_swings() -> None:
    made = moving_places((Course(rate=1.0, phases=(0.0, 1.0, 2.0)), Course(phases=(0.0, 1.0, 2.0))))
    torch.nn.init.zeros_(made.modulation.weight)
    swinging = made(prompt_for(made, 0), 3, 0)
    assert swinging.places.flatten(2).std(dim=1).max() > 1e-3 and swinging.time.std(dim=1).max() > 1e-3
    still = made(prompt_for(made, 1), 3, 0)
    assert torch.equal(still.places[:, 0], still.places[:, 2]) and not still.time.any()


@torch.no_grad()
def test_a_chunk_has_the_positions_of_its_frames_and_time_ends_with_training() -> None:
    made = moving_places()
    torch.nn.init.normal_(made.clock.weight)
    text = prompt_for(made, 0)
    whole = made(text, 6, 3)
    for part in (made(text, 3, 6), made(text, 3, torch.tensor(6))):
        torch.testing.assert_close(whole.places[:, 3:], part.places)
        torch.testing.assert_close(whole.time[:, 3:], part.time)
    assert not torch.allclose(made(text, 1, 10).places, made(text, 1, 11).places, atol=1e-3)
    last, later = made(text, 1, 11), made(text, 1, 500)
    assert torch.equal(last.places, later.places) and torch.equal(last.time, later.time)


@torch.no_grad()
def test_what_leaves_the_picture_comes_back_on_the_other_side() -> None:
    """Half a token per frame: after 24 frames a lap of 12 tokens is complete, long after the clock has stopped."""
    made = moving_places(laps=(7.0, 12.0))
    text = prompt_for(made, 0)
    first, second = made(text, 3, 0).places, made(text, 3, 24).places
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first[:, 0], moving_places()(text, 1, 0).places[:, 0])

    # A lap is 12 tokens long, and the picture shows 8. A shift of two pushes the right columns out; a shift of eight
    # brings them back on the left.
    leaving, back = made(text, 1, 4).places[0, 0], made(text, 1, 16).places[0, 0]
    torch.testing.assert_close(leaving[:, 2:], first[0, 0, :, :6], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back[:, :4], first[0, 0, :, 4:], rtol=1e-4, atol=1e-4)
    up = prompt_for(made, 1)
    torch.testing.assert_close(made(up, 1, 14).places, made(up, 1, 0).places, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_hops_and_wing_beats_do_not_end_where_courses_have_laps() -> None:
    hopping = Course(hop=2.0, rate=math.pi / 4, phases=(0.0, 0.5, 1.0))
    made = moving_places((hopping, Course()), laps=(7.0, 12.0))
    text = prompt_for(made, 0)
    later, much_later = made(text, 8, 16), made(text, 8, 48)
    torch.testing.assert_close(later.places, much_later.places, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(later.places[:, 0], later.places[:, 2], atol=1e-2)


@torch.no_grad()
def test_a_slow_clock_and_waves_tell_the_time_when_the_clock_has_stopped() -> None:
    torch.manual_seed(0)
    made = MovingPlaces(TINY.dim, GRID, (Course(), Course()), 12, slow_frames=40, rates=(math.pi / 6,))
    text = prompt_for(made, 1)

    def at(frame: int) -> Tensor:
        return made(text, 1, frame).time

    assert not torch.allclose(at(15), at(25), atol=1e-3), "the slow clock goes on"
    assert not torch.allclose(at(100), at(103), atol=1e-3), "waves never stop"
    torch.testing.assert_close(at(100), at(112), rtol=1e-4, atol=1e-4)  # a wave of twelve frames
    for weight in (made.modulation.weight, made.clock.weight):
        weight[:, -2:] = 0
    torch.testing.assert_close(at(100), at(103))
    assert not torch.allclose(at(38), at(30), atol=1e-3)


def test_the_prompt_chooses() -> None:
    stage = build(replace(CONFIG, grid=(2, 3)))
    for block in stage.blocks:
        torch.nn.init.zeros_(block.get_parameter("cross_attn.o.weight"))
    assert stage.text_pool is not None and stage.moving_places is not None
    torch.nn.init.zeros_(stage.text_pool.weight)
    one, other = (stage.embed_context(torch.randn(1, 3, TINY.text_dim), batch=1) for _ in range(2))
    logits = [stage.course_logits(each) for each in (one, other)]
    assert logits[0].shape == (1, 2)
    with torch.no_grad():  # the first prompt chooses the first course, the second one the second
        last = stage.moving_places.choice[2]
        apart = (logits[0] - logits[1])[0, 0]
        last.get_parameter("weight")[1] = -last.get_parameter("weight")[0]
        last.get_parameter("weight").mul_(100 / apart)
        middle = (logits[0] + logits[1])[0, 0] / 2 - last.get_parameter("bias")[0]
        last.get_parameter("bias").copy_(torch.stack([-middle, middle]) * 100 / apart)
    assert [int(stage.course_logits(each).argmax()) for each in (one, other)] == [0, 1]
    flows = [stage.forward_chunk(clean_latents(3), 500.0, context=each).flow_bcthw for each in (one, other)]
    assert (flows[0] - flows[1]).abs().max() > 1e-4, "nothing else depends on the prompt here"


def test_courses_require_positions_and_a_prompt() -> None:
    with pytest.raises(ConfigError, match="require a grid and pool_text"):
        replace(CONFIG, pool_text=False)
    with pytest.raises(ConfigError, match="require a grid and pool_text"):
        replace(CONFIG, grid=None)
    with pytest.raises(ConfigError, match="no courses"):
        build().course_logits(())
