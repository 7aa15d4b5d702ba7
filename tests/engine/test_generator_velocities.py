"""Moving frames of reference, whose velocity the prompt selects."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.generators import TINY, build, clean_latents
from ultraflash_cli.engine.stages.generator import GeneratorConfig, MovingPlaces
from ultraflash_cli.errors import ConfigError

GRID = (4, 8)
CONFIG = replace(TINY, grid=GRID, pool_text=True, slide=True, velocities=((0.0, 0.5), (-1.0, 0.0)), taught_frames=12)


def places(config: GeneratorConfig = CONFIG) -> MovingPlaces:
    torch.manual_seed(0)
    made = MovingPlaces(config)
    torch.nn.init.zeros_(made.clock.weight)
    return made


def speaking_for(made: MovingPlaces, velocity: int) -> Tensor:
    """Return a pooled prompt, after making the network choose this velocity for every
    prompt."""
    with torch.no_grad():
        torch.nn.init.zeros_(made.choice[2].get_parameter("weight"))
        made.choice[2].get_parameter("bias").copy_(100.0 * torch.eye(2)[velocity])
    return torch.zeros(1, TINY.dim)


@torch.no_grad()
def test_what_moves_at_the_chosen_velocity_keeps_its_embedding() -> None:
    made = places()
    right = made(speaking_for(made, 0), 3, 0)
    torch.testing.assert_close(right[:, 2, :, 1:], right[:, 0, :, :-1])  # half a token per frame
    assert not torch.allclose(right[:, 1], right[:, 0], atol=1e-3)

    up = made(speaking_for(made, 1), 2, 0)
    torch.testing.assert_close(up[:, 1, :-1], up[:, 0, 1:])


@torch.no_grad()
def test_a_chunk_has_the_positions_of_its_frames_and_time_ends_with_training() -> None:
    made = places()
    torch.nn.init.normal_(made.clock.weight)
    text = speaking_for(made, 0)
    whole = made(text, 6, 3)
    torch.testing.assert_close(whole[:, 3:], made(text, 3, 6))
    torch.testing.assert_close(whole[:, 3:], made(text, 3, torch.tensor(6)))
    assert not torch.allclose(made(text, 1, 10), made(text, 1, 11), atol=1e-3)
    assert torch.equal(made(text, 1, 11), made(text, 1, 500)) and torch.equal(made.beat(1, 11), made.beat(1, 500))


def test_the_prompt_chooses() -> None:
    stage = build(replace(CONFIG, grid=(2, 3)))
    for block in stage.blocks:
        torch.nn.init.zeros_(block.get_parameter("cross_attn.o.weight"))
    assert stage.text_pool is not None and stage.moving_places is not None
    torch.nn.init.zeros_(stage.text_pool.weight)
    torch.nn.init.normal_(stage.moving_places.choice[2].get_parameter("weight"), std=30)
    one, other = (stage.embed_context(torch.randn(1, 3, TINY.text_dim), batch=1) for _ in range(2))
    assert stage.velocity_logits(one).shape == (1, 2)
    flows = [stage.forward_chunk(clean_latents(3), 500.0, context=each).flow_bcthw for each in (one, other)]
    assert (flows[0] - flows[1]).abs().max() > 1e-4, "nothing else depends on the prompt here"


def test_velocities_require_positions_and_a_prompt() -> None:
    with pytest.raises(ConfigError, match="require a grid and pool_text"):
        replace(CONFIG, pool_text=False)
    with pytest.raises(ConfigError, match="require a grid and pool_text"):
        replace(CONFIG, grid=None)
    with pytest.raises(ConfigError, match="no velocities"):
        build().velocity_logits(())
