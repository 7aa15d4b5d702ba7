"""Rewards of the generator's decoded prediction."""

from dataclasses import replace

import pytest
import torch

from ultraflash_cli.errors import UsageError
from ultraflash_cli.train.loop import generator_of
from ultraflash_cli.train.recipes import generator
from ultraflash_cli.train.roles import TOY, CascadeRoles

CONFIG = replace(generator.configure(steps=1, seed=1, toy=True), decoded=(3, 4), text_drop=0.0)


@pytest.fixture(scope="module")
def roles() -> CascadeRoles:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        made = CascadeRoles(TOY, ("decoder", "generator", "text_encoder"), words=CONFIG.words)
        torch.nn.init.normal_(made.generator.head.head.weight, std=0.1)
    return made


def test_a_reward_of_decoded_frames_teaches_the_generator(roles: CascadeRoles) -> None:
    roles.learn("generator", "text_encoder")
    clean = torch.randn((2, 8, 2, 4, 6), generator=torch.Generator().manual_seed(1))
    batch = clean, ("a ball", "a boat"), None, torch.zeros((2, 2, 4, 6), dtype=torch.bool)
    plain = generator.loss(CONFIG, roles, batch, generator_of("reward"))
    losses = generator.loss(replace(CONFIG, rewards=(("texture", 0.5),)), roles, batch, generator_of("reward"))
    assert set(losses) - set(plain) == {"reward_texture"} and losses["flow"] == plain["flow"]
    assert -0.5 <= losses["reward_texture"].item() < 0

    losses["reward_texture"].backward()
    weight = roles.generator.get_parameter("head.head.weight")
    assert weight.grad is not None and weight.grad.abs().max() > 0
    roles.zero_grad()


def test_what_is_decoded_is_often_where_the_thing_is() -> None:
    cover = torch.zeros((2, 12, 20), dtype=torch.bool)
    cover[1, 11, 19] = True
    parts = [generator.part_of(CONFIG, cover, generator_of(number)) for number in range(40)]
    assert all(rows.stop - rows.start == 3 and columns.stop - columns.start == 4 for rows, columns in parts)
    assert all(rows.start >= 0 and rows.stop <= 12 and 0 <= columns.start <= 16 for rows, columns in parts)
    hits = sum(rows.stop == 12 and columns.stop == 20 for rows, columns in parts)
    assert 10 <= hits < 35, "the corner is hardly ever hit by chance"
    whole = generator.part_of(replace(CONFIG, decoded=(99, 99)), cover, generator_of(0))
    assert cover[0][whole].shape == (12, 20)


def test_an_unknown_reward_is_refused_before_training() -> None:
    with pytest.raises(UsageError, match="unknown reward 'beauty'"):
        replace(CONFIG, rewards=(("beauty", 1.0),))
