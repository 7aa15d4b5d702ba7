"""The courses that a generator learns to choose are those of the scenes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ultraflash_cli.engine.layers.moving_places import Course
from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, GENERATED_FPS, LATENT_PX
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.canvas import Patch
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.latents import SPEEDS, scene_course, training_scene
from ultraflash_cli.train.recipes import generator as recipe
from ultraflash_cli.train.roles import TOY
from ultraflash_cli.train.scenes import Kind, Motion, Scene, Thing
from ultraflash_cli.train.things import Things

assert LITE.generator is not None
COURSES = LITE.generator.courses
ROWS = LITE.base_size[0] / LATENT_PX / LITE.generator.patch[1]
"""Of tokens in a picture."""
A_LATENT_S = FRAMES_PER_LATENT / GENERATED_FPS
"""Seconds."""


def test_every_scene_moves_along_a_course_of_the_built_in_generator() -> None:
    units = torch.tensor([ROWS * A_LATENT_S, ROWS * A_LATENT_S, ROWS, A_LATENT_S])
    moves = torch.tensor([scene_course(1, number) for number in range(1, 700)]) * units
    courses = torch.tensor([(each.down, each.right, each.hop, each.rate) for each in COURSES])
    distance, nearest = torch.cdist(moves, courses).min(dim=1)
    assert distance.max() < 1e-3 and len(nearest.unique()) == len(COURSES)


class WatchedThings(Things):
    """Records how high balls are above the floor, in picture heights."""

    heights: list[float]

    def disc(self, x: float, y: float, radius: float) -> Patch:
        if radius == 0.075:
            self.heights.append(0.92 - radius - y)
        return super().disc(x, y, radius)


@pytest.mark.parametrize("way", range(3))
def test_balls_hop_as_the_course_of_the_generator_says(way: int) -> None:
    course = [each for each in COURSES if each.hop and each.right > 0][way]
    thing = Thing(kind="ball", colour="red", motion="right", count=3, speed=SPEEDS[way])
    scene = Scene(time="day", place="field", weather="clear", thing=thing, thing_seed=way)
    things = WatchedThings(scene, (48, 83))
    for latent in (1, 7, 20):
        things.heights = []
        last = FRAMES_PER_LATENT * latent
        things.move((last - (FRAMES_PER_LATENT - 1) / 2) / GENERATED_FPS)
        hops = [course.hop * abs(math.sin(course.rate * latent + phase)) for phase in course.phases]
        assert [ROWS * height for height in things.heights] == pytest.approx(hops, abs=0.01)


@pytest.mark.parametrize(("kind", "motion"), [("car", "right"), ("car", "left"), ("balloon", "up")])
def test_things_come_back_after_a_lap_of_the_generator(kind: Kind, motion: Motion) -> None:
    """Balloons also sway; the slow ones are as high as before after a lap."""
    assert LITE.generator is not None and LITE.generator.laps is not None
    down, right = LITE.generator.laps
    thing = Thing(kind=kind, colour="red", motion=motion, count=1, speed=0.2)
    renderer = Renderer(Scene(time="day", place="field", weather="clear", thing=thing), height_px=30, width_px=52)
    lap_s = (down if motion == "up" else right) / ROWS / thing.speed
    first, later, half = (renderer.frame(second).astype(int) for second in (3.0, 3.0 + lap_s, 3.0 + lap_s / 2))
    moved, same = np.abs(half - first).mean(), np.abs(later - first).mean()
    assert same < (0.4 if motion == "up" else 0.05) * moved


def test_directions_are_those_of_the_captions() -> None:
    for number in range(1, 60):
        thing = training_scene(1, number).thing
        down, right = scene_course(1, number)[:2]
        motion = None if thing is None else thing.motion
        assert (
            (down, right) == (0, 0)
            if motion is None
            else (motion == "up", motion == "right", motion == "left")
            == (
                down < 0,
                right > 0,
                right < 0,
            )
        )


def test_the_choice_of_courses_is_learned_from_captions_alone() -> None:
    config = recipe.configure(steps=4, seed=1, toy=True)
    assert TOY.generator is not None
    rows, columns = (side // LATENT_PX // 2 for side in TOY.base_size)
    moving = replace(
        TOY.generator,
        grid=(rows, columns),
        pool_text=True,
        courses=(Course(right=0.3), Course(right=-0.3)),
        patch=(1, 2, 2),
    )
    config = replace(config, profile=replace(TOY, generator=moving), course_captions=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        roles = recipe.CascadeRoles(config.profile, ("encoder", "decoder", *recipe.NETWORKS), words=config.words)
    roles.learn(*recipe.NETWORKS)
    batch = recipe.make(config, None)(1)
    losses = recipe.loss(config, roles, batch, torch.Generator().manual_seed(0))
    losses["course"].backward()
    assert roles.generator.moving_places is not None
    reached = [*roles.generator.moving_places.choice.parameters(), *roles.text_encoder.parameters()]
    assert sum(float(p.grad.abs().sum()) > 0 for p in reached if p.grad is not None) > len(reached) / 2

    with pytest.raises(ConfigError, match="no courses"):
        replace(config, profile=TOY)
