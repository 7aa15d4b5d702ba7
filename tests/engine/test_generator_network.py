"""What the generator's network computes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.generators import HEIGHT, SCHEDULE, TINY, WIDTH, build, clean_latents
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.errors import ConfigError


def test_clean_latents_and_the_flow_that_leads_to_them_are_one_thing() -> None:
    """The same last layer: as a flow it is subtracted, as clean latents it is the answer."""
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


def test_a_network_that_sees_signal_alone_answers_pure_noise_as_it_answers_any_other() -> None:
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


@pytest.mark.parametrize("drift", [(0, 1), (0, -1), (-1, 0), (1, 0)])
def test_what_moves_a_token_a_chunk_stays_in_one_place_of_a_grid_that_drifts_along(drift: tuple[int, int]) -> None:
    stage = build(replace(TINY, grid=(2, 3), drifts=(drift,), drift_frames=9, slide=True))
    with torch.no_grad():
        for name, value in stage.named_parameters():
            if name.endswith("attn.o.weight") or name in ("row_places", "column_places"):
                value.zero_()  # tokens tell each other nothing, and know only where they are in the moving grid
    x = torch.ones(1, 4, 3, HEIGHT, WIDTH)

    def flow(position: int | Tensor) -> Tensor:
        return stage.forward_chunk(x, 500.0, position=position).flow_bcthw

    now, then = flow(2), flow(5)
    down, right = (2 * step for step in drift)  # two latent pixels a token
    moved = now.roll((down, right), dims=(3, 4))
    here = [slice(max(0, step), step if step < 0 else None) for step in (down, right)]
    torch.testing.assert_close(then[..., here[0], here[1]], moved[..., here[0], here[1]])
    assert not torch.allclose(then, now, atol=1e-2)
    torch.testing.assert_close(flow(torch.tensor(5)), then)
    torch.testing.assert_close(flow(900), flow(903))  # everything that moves has left by then


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


def test_drifts_are_single_steps_on_a_grid() -> None:
    for wrong in ((1, 1), (0, 2), (0, 0)):
        with pytest.raises(ConfigError, match="drifts are"):
            replace(TINY, grid=(2, 3), drifts=(wrong,))
    with pytest.raises(ConfigError, match="need a grid"):
        replace(TINY, drifts=((0, 1),))
