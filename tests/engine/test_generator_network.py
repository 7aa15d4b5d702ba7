"""The computation of the generator's network."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.generators import SCHEDULE, TINY, build, clean_latents
from ultraflash_cli.engine.layers.moving_places import Course
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.errors import ConfigError


def test_clean_latents_and_the_flow_that_leads_to_them_are_one_thing() -> None:
    """The output of the same last layer is subtracted as a flow, and is the result as
    clean latents."""
    flow, clean = build(), build(replace(TINY, prediction="clean"))
    clean.load_state_dict(flow.state_dict())
    x, timestep = clean_latents(3), 600.0
    given = flow.forward_chunk(x, timestep).flow_bcthw
    torch.testing.assert_close(clean.forward_chunk(x, timestep).flow_bcthw, (x - given) / 0.6)
    answer = SCHEDULE.clean(x, clean.forward_chunk(x, 1000.0).flow_bcthw, 1000.0)
    torch.testing.assert_close(answer, flow.forward_chunk(x, 1000.0).flow_bcthw, rtol=1e-4, atol=1e-4)


def test_frames_of_different_timesteps_have_flows_of_their_own_levels() -> None:
    stage = build(replace(TINY, prediction="clean"))
    x, levels = clean_latents(2), torch.tensor([[900.0, 200.0]])
    flow = stage.forward_chunk(x, levels).flow_bcthw
    clean = x - torch.tensor([0.9, 0.2]).view(1, 1, 2, 1, 1) * flow
    assert clean.abs().max() < 5, "both are answers of the same network, neither is divided by a wrong level"
    assert torch.isfinite(stage.forward_chunk(x, 0.0).flow_bcthw).all()


def test_a_network_that_sees_signal_alone_handles_pure_noise_like_any_other() -> None:
    stage = build(replace(TINY, prediction="clean", sees_signal=True))
    x, other = clean_latents(3), clean_latents(3).flip(2)

    def answer(noisy: Tensor, timestep: float) -> Tensor:
        return noisy - timestep / 1000 * stage.forward_chunk(noisy, timestep).flow_bcthw

    torch.testing.assert_close(answer(x, 1000.0), answer(other, 1000.0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(answer(x, 500.0), answer(other, 500.0), atol=1e-2)
    plain = build(replace(TINY, prediction="clean"))
    plain.load_state_dict(stage.state_dict())
    clean = stage.forward_chunk(x, 0.0), plain.forward_chunk(x, 0.0)
    torch.testing.assert_close(clean[0].flow_bcthw, clean[1].flow_bcthw)
    levels = torch.tensor([[1000.0, 0.0, 0.0]])
    changed = x.clone()
    changed[:, :, 0] += 1
    seen = [stage.forward_chunk(each, levels) for each in (x, changed)]
    torch.testing.assert_close(seen[0].flow_bcthw[:, :, 1:], seen[1].flow_bcthw[:, :, 1:])


def test_a_pooled_prompt_reaches_every_token_at_once() -> None:
    stage = build(replace(TINY, pool_text=True))
    for block in stage.blocks:
        torch.nn.init.zeros_(block.get_parameter("cross_attn.o.weight"))
    words = stage.embed_context(torch.randn(1, 3, TINY.text_dim), batch=1)
    others = stage.embed_context(torch.randn(1, 3, TINY.text_dim), batch=1)
    one, two = (stage.forward_chunk(clean_latents(3), 500.0, context=each).flow_bcthw for each in (words, others))
    assert ((one - two).abs().amax((1, 3, 4)) > 1e-6).all(), "cross-attention is silent, modulation is not"


@pytest.mark.parametrize("velocity", [(0.0, 0.5), (0.0, -0.5), (-0.5, 0.0), (0.5, 0.0)])
def test_what_moves_as_prompted_stays_in_one_position_of_a_moving_frame(
    velocity: tuple[float, float],
) -> None:
    stage = build(
        replace(
            TINY,
            grid=(2, 3),
            pool_text=True,
            courses=(Course(down=velocity[0], right=velocity[1]), Course()),
            slide=True,
        )
    )
    assert stage.moving_places is not None
    with torch.no_grad():
        stage.moving_places.clock.weight.zero_()
        last = stage.moving_places.choice[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.tensor([50.0, -50.0]))  # the prompt chooses the first

    def places(position: int | Tensor) -> Tensor:
        assert stage.moving_places is not None
        return stage.moving_places(torch.zeros(1, TINY.dim), 1, position).places[0, 0]

    now, then = places(2), places(4)
    down, right = (int(2 * speed) for speed in velocity)  # tokens in two latent frames
    moved = now.roll((down, right), dims=(0, 1))
    here = [slice(max(0, step), step if step < 0 else None) for step in (down, right)]
    torch.testing.assert_close(then[here[0], here[1]], moved[here[0], here[1]], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(then, now, atol=1e-2)
    torch.testing.assert_close(places(torch.tensor(4)), then)
    torch.testing.assert_close(places(900), places(903))  # the clock stands still
    assert not torch.allclose(places(TINY.taught_frames - 1), places(TINY.taught_frames - 2), atol=1e-3)


def test_constants_of_moving_positions_are_those_of_the_config_however_it_is_loaded() -> None:
    config = replace(
        TINY, grid=(2, 3), pool_text=True, courses=(Course(down=0.4875, right=0.1, hop=1.3, rate=0.7), Course())
    )
    plain = build(config)
    with torch.device("meta"):
        served = Generator(config)
    served.load_state_dict({name: x.bfloat16() for name, x in plain.state_dict().items()}, assign=True)
    assert served.moving_places is not None and plain.moving_places is not None
    text = torch.randn(1, TINY.dim, generator=torch.Generator().manual_seed(1))
    exact = plain.moving_places(text, 3, 9).places
    error = (served.moving_places(text.bfloat16(), 3, 9).places.float() - exact).square().mean()
    assert error < 1e-4 * exact.square().mean()


def test_a_hidden_layer_of_the_head_starts_as_nothing_and_tells_more_than_the_width_of_the_network() -> None:
    plain, hidden = build(replace(TINY, dim=12)), Generator(replace(TINY, dim=12, head_dim=32)).eval()
    left_out = hidden.load_state_dict(plain.state_dict(), strict=False)
    assert sorted({name.split(".")[1] for name in left_out.missing_keys}) == ["detail"]
    noise = clean_latents(3)
    with torch.no_grad():
        before = [each.forward_chunk(noise, 1000.0).flow_bcthw for each in (plain, hidden)]
        assert torch.equal(*before)
        assert hidden.head.detail is not None
        for parameter in hidden.head.detail.parameters():
            torch.nn.init.normal_(parameter)
        tokens, time = torch.randn(1, 1, 500, 12), torch.zeros(1, 1, 12)
        ranks = [int(torch.linalg.matrix_rank(each.head(tokens, time)[0, 0])) for each in (plain, hidden)]
    assert ranks[0] <= 13 and ranks[1] == 16, "at most 12 channels and a bias, or all 16 values of a patch"


def test_courses_need_a_grid_and_a_prompt() -> None:
    for without in ({"grid": (2, 3)}, {"pool_text": True}):
        with pytest.raises(ConfigError, match="courses require"):
            replace(TINY, courses=(Course(right=1.0),), **without)
