"""The loop: batches in order, the same losses after a stop, averages, optimisers."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.train import two_processes
from ultraflash_cli.errors import ConfigError, UsageError
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig, Prefetcher, run_loop
from ultraflash_cli.train.process_group import joined_group
from ultraflash_cli.train.run_log import RunLog


def numbered(number: int) -> Batch:
    """Return a batch that depends only on its number."""
    low = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(number))
    return low, low.roll(1, dims=-1) + 0.5, number


class Toy(nn.Module):
    """A convolution for the kernel optimiser and a bias for the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv3d(3, 3, 3, padding=1)
        with torch.no_grad():
            self.mix.weight.copy_(torch.linspace(-0.1, 0.1, self.mix.weight.numel()).view_as(self.mix.weight))
            self.mix.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


def squares(losses: list[float], model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """A loss with random numbers of both kinds: from the given generator, and from
    torch's global one."""
    low, high, _ = batch
    shaken = low + 0.1 * torch.randn(low.shape, generator=rng) + 0.1 * torch.randn(low.shape)
    loss = (model(shaken) - high).square().mean()
    losses.append(loss.item())
    return {"squares": loss}


def train(folder: Path, *, stop: int | None = None, steps: int = 12) -> tuple[list[float], nn.Module]:
    """Train the toy; with ``stop``, raise an error at that step, like a killed run."""
    losses: list[float] = []
    config = LoopConfig(steps=steps, warmup=2, save_every=4, rate=1e-2, kernel_rate=0.01, batch=2, log_every=3)

    def loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        if batch[2] == stop:
            raise KeyboardInterrupt
        return squares(losses, model, batch, rng)

    model = Toy()
    batches = Prefetcher(numbered, workers=0)
    run_loop(model, (Learner(loss=loss, is_kernel=lambda name: name.endswith("weight")),), batches, config, folder)
    return losses, model


def test_a_run_that_was_stopped_resumes_with_the_same_losses_and_ends_in_the_same_weights(tmp_path: Path) -> None:
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
    (pupil,) = state["pupils"]
    for value, mean in zip(model.parameters(), pupil["average"].values(), strict=True):
        assert torch.equal(value, mean)
    assert not torch.equal(next(iter(pupil["parameters"].values())), next(iter(pupil["average"].values())))


def test_a_finished_run_is_left_unchanged(tmp_path: Path) -> None:
    _, model = train(tmp_path)
    losses, again = train(tmp_path)
    assert losses == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_log_of_a_stopped_run_that_went_on_is_that_of_a_whole_one(tmp_path: Path) -> None:
    losses, _ = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stop=10)  # its log has a row for step 9, after the checkpoint
    train(tmp_path / "stopped")
    whole, stopped = (RunLog(tmp_path / name).rows() for name in ("whole", "stopped"))
    assert [row["step"] for row in whole] == [3, 6, 9, 12]
    assert whole[0]["squares"] == pytest.approx(sum(losses[:3]) / 3, abs=1e-5)
    for a, b in zip(whole, stopped, strict=True):
        assert a | {"s_per_step": 0} == b | {"s_per_step": 0}


def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Batch, _: torch.Generator) -> dict[str, Tensor]:
        return {"nan": model(batch[0]).mean() * float("nan")}

    model, before, warned = Toy(), Toy(), list[str]()
    config = LoopConfig(steps=2, warmup=1)
    run_loop(model, (Learner(loss=broken),), Prefetcher(numbered, workers=0), config, tmp_path, warn=warned.append)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert [row["skipped"] for row in RunLog(tmp_path).rows()] == [2]
    assert len(warned) == 1 and warned[0].startswith("2 of the last 2 steps skipped, up to step 2")


def test_saving_shows_the_average_and_puts_the_weights_back(tmp_path: Path) -> None:
    seen: list[tuple[int, Tensor]] = []

    def look(model: nn.Module, step: int) -> None:
        seen.append((step, next(model.parameters()).detach().clone()))

    watched: list[float] = []
    alone: list[float] = []
    config = LoopConfig(steps=8, warmup=2, save_every=4, rate=1e-2)
    batches = Prefetcher(numbered, workers=0)
    watching, lonely = (Learner(loss=partial(squares, losses)) for losses in (watched, alone))
    model = run_loop(Toy(), (watching,), batches, config, tmp_path / "a", on_save=look)
    run_loop(Toy(), (lonely,), batches, config, tmp_path / "b")
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

    def pull(_model: nn.Module, _batch: Batch, _: torch.Generator) -> dict[str, Tensor]:
        return {"pull": (model.weight * target).sum()}

    config = LoopConfig(steps=1, warmup=0, kernel_rate=0.1)
    batches = Prefetcher(numbered, workers=0)
    # The average after the first step has a share of one tenth of the old weights, so
    # it lies on the line of the step.
    run_loop(model, (Learner(loss=pull, is_kernel=lambda _: True),), batches, config, tmp_path)
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


class Roles(nn.Module):
    """Two trained networks and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.student, self.critic, self.teacher = (nn.Conv3d(3, 3, 1) for _ in range(3))


def towards(role: str, target: str, turns: list[str], roles: nn.Module, batch: Batch, rng: torch.Generator) -> Any:
    """Pull a role's output to another's; also record the current learner and the roles
    with gradients."""
    able = {name.split(".")[0] for name, p in roles.named_parameters() if p.requires_grad}
    assert able - {"teacher"} == {role}
    turns.append(role)
    mine, other = (roles.get_submodule(name)(batch[0]) for name in (role, target))
    return {"distance": (mine - other).square().mean()}


def test_learners_take_turns_by_their_ratio_and_move_their_own_roles_only(tmp_path: Path) -> None:
    roles, turns = Roles(), list[str]()
    roles.teacher.requires_grad_(False)
    before = {name: value.clone() for name, value in roles.state_dict().items()}
    learners = (
        Learner(name="critic", roles=("critic",), loss=partial(towards, "critic", "student", turns)),
        Learner(name="student", roles=("student",), every=3, loss=partial(towards, "student", "teacher", turns)),
    )
    config = LoopConfig(steps=6, warmup=0, rate=1e-2, log_every=6)
    run_loop(roles, learners, Prefetcher(numbered, workers=0), config, tmp_path)
    assert turns == 2 * (["critic"] * 3 + ["student"])
    moved = {name.split(".")[0] for name, value in roles.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"critic", "student"}
    assert {"critic.distance", "student.distance"} <= RunLog(tmp_path).rows()[0].keys()
    assert {p.requires_grad for p in roles.student.parameters()} == {True}


def test_two_small_batches_make_the_step_of_one_large_one(tmp_path: Path) -> None:
    def halves(number: int) -> Batch:
        low, high, _ = numbered(number // 2)
        half = slice(number % 2, number % 2 + 1)
        return low[half], high[half], number

    def plain(model: nn.Module, batch: Batch, _: torch.Generator) -> dict[str, Tensor]:
        return {"squares": (model(batch[0]) - batch[1]).square().mean()}

    made: list[nn.Module] = []
    for name, make, accumulate in (("whole", numbered, 1), ("halves", halves, 2)):
        config = LoopConfig(steps=5, warmup=0, rate=1e-2, accumulate=accumulate)
        batches = Prefetcher(make, workers=0)
        made.append(run_loop(Toy(), (Learner(loss=plain),), batches, config, tmp_path / name))
    for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_mixed_precision_multiplies_in_bfloat16_and_keeps_float32_weights(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    def loss(model: nn.Module, batch: Batch, _: torch.Generator) -> dict[str, Tensor]:
        out = model(batch[0])
        seen.add(out.dtype)
        return {"squares": (out.float() - batch[1]).square().mean()}

    config = LoopConfig(steps=2, warmup=0, precision="bf16")
    model = run_loop(Toy(), (Learner(loss=loss),), Prefetcher(numbered, workers=0), config, tmp_path)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="accumulate"):
        LoopConfig(steps=1, accumulate=0)
    with pytest.raises(ConfigError, match="precision"):
        LoopConfig(steps=1, precision="fp8")  # pyright: ignore[reportArgumentType]


def torchrun(repository: Path, *arguments: str) -> None:
    """Run `tests/train/two_processes.py` in two processes."""
    program = repository / "tests" / "train" / "two_processes.py"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=repository,
        env=os.environ | {"PYTHONPATH": f"{repository}:{repository / 'kernels'}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Train one process with the batches of two; return its weights and its log."""
    folder = tmp_path_factory.mktemp("alone")
    weights = two_processes.train(folder, accumulate=2).state_dict()
    return weights, RunLog(folder).rows()


@pytest.mark.parametrize("way", ["copied", "sharded"])
def test_two_processes_do_what_one_does_with_twice_the_accumulation(
    way: str,
    alone: tuple[dict[str, Tensor], list[dict[str, Any]]],
    tmp_path: Path,
    repository: Path,
) -> None:
    """Tested with all networks in each process, and with learners sharded over both and
    a kill in between. One process can also continue from the checkpoint of two sharded
    ones."""
    weights, rows = alone
    if way == "sharded":
        folder = tmp_path / "killed"
        torchrun(repository, str(folder), way, "stop", "6")  # after the checkpoint of step 2
        assert (folder / "state" / "00000002" / ".metadata").exists()
        assert [row["step"] for row in RunLog(folder).rows()] == [3]
        shutil.copytree(folder, tmp_path / "resumed")
        resumed = two_processes.train(folder, accumulate=2).state_dict()
        assert_same_end(resumed, RunLog(folder).rows(), weights, rows)
    folder = tmp_path / "resumed"
    torchrun(repository, str(folder), way)
    end = torch.load(folder / "end.pt", weights_only=True)
    assert_same_end(end["weights"], RunLog(folder).rows(), weights, rows)
    assert torch.equal(end["shown"][-1], end["weights"]["mix.weight"])


def assert_same_end(
    weights: dict[str, Tensor],
    rows: list[dict[str, Any]],
    expected: dict[str, Tensor],
    expected_rows: list[dict[str, Any]],
) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=name)
    names = ("step", "critic.flow", "student.flow")
    assert [[row[name] for name in names] for row in rows] == [
        pytest.approx([row[name] for name in names], rel=1e-4) for row in expected_rows
    ]


def test_sharding_needs_processes() -> None:
    with pytest.raises(UsageError, match="torchrun"), joined_group(torch.device("cpu"), shards=True):
        pass
