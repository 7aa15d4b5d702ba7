"""The loop: batches in order, the same losses after a stop, averages, optimisers."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ultraflash_cli.train.loop import Batch, LoopConfig, Prefetcher, run_loop


def numbered(number: int) -> Batch:
    """A batch that is a function of its number."""
    low = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(number))
    return low, low.roll(1, dims=-1) + 0.5, number


class Toy(nn.Module):
    """A convolution for the kernels' optimiser and a bias for the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv3d(3, 3, 3, padding=1)
        with torch.no_grad():
            self.mix.weight.copy_(torch.linspace(-0.1, 0.1, self.mix.weight.numel()).view_as(self.mix.weight))
            self.mix.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


def squares(losses: list[float], model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    low, high, _ = batch
    loss = (model(low) - high).square().mean()
    losses.append(loss.item())
    return {"squares": loss}


def train(folder: Path, *, stop: int | None = None, steps: int = 12) -> tuple[list[float], nn.Module]:
    """Train the toy; with ``stop``, leave by an error at that step, as a killed run would."""
    losses: list[float] = []
    config = LoopConfig(steps=steps, warmup=2, save_every=4, rate=1e-2, kernel_rate=0.01, batch=2)

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if batch[2] == stop:
            raise KeyboardInterrupt
        return squares(losses, model, batch)

    model = Toy()
    batches = Prefetcher(numbered, workers=0)
    run_loop(model, loss, batches, config, folder, is_kernel=lambda name: name.endswith("weight"))
    return losses, model


def test_a_run_that_was_stopped_goes_on_with_the_same_losses_and_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, model = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stop=10)
    rest, resumed = train(tmp_path / "stopped")
    assert rest == whole[8:]  # the last checkpoint was at 8
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_it_learns_and_returns_the_average(tmp_path: Path) -> None:
    losses, model = train(tmp_path, steps=100)
    assert losses[-1] < 0.5 * losses[0]
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for value, mean in zip(model.parameters(), state["average"], strict=True):
        assert torch.equal(value, mean)
    assert not torch.equal(state["parameters"][0], state["average"][0])


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    _, model = train(tmp_path)
    losses, again = train(tmp_path)
    assert losses == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_log_has_a_line_every_fifty_steps(tmp_path: Path) -> None:
    losses, _ = train(tmp_path, steps=100)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100]
    assert rows[0]["squares"] == pytest.approx(sum(losses[:50]) / 50, abs=1e-5)


def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"nan": model(batch[0]).mean() * float("nan")}

    model, before = Toy(), Toy()
    config = LoopConfig(steps=2, warmup=1)
    run_loop(model, broken, Prefetcher(numbered, workers=0), config, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_saving_shows_the_average_and_puts_the_weights_back(tmp_path: Path) -> None:
    seen: list[tuple[int, Tensor]] = []

    def look(model: nn.Module, step: int) -> None:
        seen.append((step, next(model.parameters()).detach().clone()))

    watched: list[float] = []
    alone: list[float] = []
    config = LoopConfig(steps=8, warmup=2, save_every=4, rate=1e-2)
    batches = Prefetcher(numbered, workers=0)
    model = run_loop(Toy(), partial(squares, watched), batches, config, tmp_path / "a", on_save=look)
    run_loop(Toy(), partial(squares, alone), batches, config, tmp_path / "b")
    assert [step for step, _ in seen] == [4, 8]
    assert torch.equal(seen[1][1], next(model.parameters()))
    assert watched == alone


def test_the_rate_rises_and_falls() -> None:
    config = LoopConfig(steps=1000, warmup=100, rate=1e-3, last_rate=1e-5)
    shares = [config.share_at(step) for step in (0, 49, 99, 100, 550, 999)]
    assert shares[:4] == pytest.approx([0.01, 0.5, 1.0, 1.0])
    assert shares[4] == pytest.approx(0.505, abs=0.01)
    assert shares[5] == pytest.approx(0.01, abs=1e-4)


def test_a_kernel_step_moves_all_directions_alike(tmp_path: Path) -> None:
    model = nn.Conv2d(4, 8, 3, bias=False)
    before = model.weight.detach().clone()
    target = torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(1))

    def pull(_model: nn.Module, _batch: Batch) -> dict[str, Tensor]:
        return {"pull": (model.weight * target).sum()}

    config = LoopConfig(steps=1, warmup=0, kernel_rate=0.1)
    batches = Prefetcher(numbered, workers=0)
    # The average of the first step is one tenth old; it still lies on the line of the step.
    run_loop(model, pull, batches, config, tmp_path, is_kernel=lambda _: True)
    values = torch.linalg.svdvals((model.weight.detach() - before).flatten(1))
    assert values.max() < 2 * values.min()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_any_number_of_workers(workers: int) -> None:
    batches = Prefetcher(numbered, workers=workers, ahead=3)
    got = list(batches.batches(3, 11))
    batches.close()
    assert [number for _, _, number in got] == list(range(3, 11))
    assert torch.equal(got[2][0], numbered(5)[0])


def test_no_batches_come_where_none_are_left() -> None:
    assert list(Prefetcher(numbered, workers=0).batches(5, 5)) == []
