"""The critic that distinguishes real frames from generated ones, and the loss that
trains both sides at once."""

import torch

from ultraflash_cli.train.critic import Critic, relativistic_loss, reversed_gradient


def test_one_loss_teaches_the_critic_and_draws_frames_in_opposite_directions() -> None:
    torch.manual_seed(0)
    critic, true = Critic(width=4), torch.rand(1, 3, 3, 16, 16)
    drawn = torch.full_like(true, 0.5, requires_grad=True)

    relativistic_loss(critic(reversed_gradient(drawn)), critic(true)).backward()
    assert drawn.grad is not None
    reversed_, weights = drawn.grad.clone(), [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    drawn.grad = None
    critic.zero_grad()
    relativistic_loss(critic(drawn), critic(true)).backward()

    assert drawn.grad is not None and reversed_.abs().max() > 0
    assert torch.equal(reversed_, -drawn.grad)
    again = [p.grad for p in critic.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True)) and weights


def test_a_critic_learns_to_tell_texture_from_its_mean() -> None:
    torch.manual_seed(0)
    critic = Critic(width=4)
    optimiser = torch.optim.Adam(critic.parameters(), 1e-2)
    losses: list[float] = []
    for _ in range(30):
        true = 0.5 + 0.1 * torch.randn(1, 3, 2, 16, 16)
        loss = relativistic_loss(critic(true.mean((3, 4), keepdim=True).expand_as(true)), critic(true))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
