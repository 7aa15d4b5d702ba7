"""The velocities that a generator learns to choose are those of the scenes."""

from dataclasses import replace

import pytest
import torch

from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, GENERATED_FPS, LATENT_PX
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.latents import scene_velocity, training_scene
from ultraflash_cli.train.recipes import generator as recipe
from ultraflash_cli.train.roles import TOY


def test_every_scene_moves_at_a_velocity_of_the_built_in_generator() -> None:
    config = LITE.generator
    assert config is not None
    tokens = LITE.base_size[0] / LATENT_PX / config.patch[1]
    unit = tokens * FRAMES_PER_LATENT / GENERATED_FPS
    moves = torch.tensor([scene_velocity(1, number) for number in range(1, 400)]) * unit
    distance, nearest = torch.cdist(moves, torch.tensor(config.velocities)).min(dim=1)
    assert distance.max() < 1e-3 and len(nearest.unique()) == len(config.velocities)


def test_directions_are_those_of_the_captions() -> None:
    for number in range(1, 60):
        thing = training_scene(1, number).thing
        down, right = scene_velocity(1, number)
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


def test_the_choice_of_velocities_is_learned_from_captions_alone() -> None:
    config = recipe.configure(steps=4, seed=1, toy=True)
    assert TOY.generator is not None
    rows, columns = (side // LATENT_PX // 2 for side in TOY.base_size)
    moving = replace(
        TOY.generator, grid=(rows, columns), pool_text=True, velocities=((0.0, 0.3), (0.0, -0.3)), patch=(1, 2, 2)
    )
    config = replace(config, profile=replace(TOY, generator=moving), velocity_captions=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        roles = recipe.CascadeRoles(config.profile, ("encoder", "decoder", *recipe.NETWORKS), words=config.words)
    roles.learn(*recipe.NETWORKS)
    batch = recipe.make(config, None)(1)
    losses = recipe.loss(config, roles, batch, torch.Generator().manual_seed(0))
    losses["velocity"].backward()
    assert roles.generator.moving_places is not None
    reached = [*roles.generator.moving_places.choice.parameters(), *roles.text_encoder.parameters()]
    assert sum(float(p.grad.abs().sum()) > 0 for p in reached if p.grad is not None) > len(reached) / 2

    with pytest.raises(ConfigError, match="no velocities"):
        replace(config, profile=TOY)
