"""Script that the tests run under torchrun: a small transformer with a critic, and a
convolution, sharded or not."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.train.flows import group_flow
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig, Prefetcher, run_loop
from ultraflash_cli.train.process_group import joined_group
from ultraflash_cli.train.roles import TOY

__all__ = ["CONFIG", "Duo", "batch", "learners", "train"]

CONFIG = LoopConfig(steps=4, warmup=1, save_every=2, rate=1e-2, kernel_rate=0.01, log_every=3, average=0.9)


class Duo(nn.Module):
    """A student, a critic of its class, a frozen teacher, and a convolution that only every second batch uses."""

    def __init__(self) -> None:
        super().__init__()
        assert TOY.sr_dit is not None
        config = replace(TOY.sr_dit, dim=16, ffn_dim=24, num_layers=2, text_len=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.student, self.critic, self.teacher = (SrDit(config) for _ in range(3))
            for parameter in self.parameters():
                parameter.data.add_(0.05 * torch.randn(parameter.shape))
            self.mix = nn.Conv3d(8, 8, 3, padding=1)
        self.mix.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        self.teacher.requires_grad_(False)


def batch(number: int) -> Batch:
    """Return latents and their number."""
    return torch.randn(1, 8, 4, 4, 4, generator=torch.Generator().manual_seed(number)), number


def towards(role: str, other: str, roles: Duo, made: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Pull a role's flow to another's, with random numbers and, in every second batch,
    a convolution before it."""
    clip, number = made
    if number % 2 and role == "student":
        clip = roles.mix(clip)
    noise, level = torch.randn(clip.shape, generator=rng), torch.rand(1, generator=rng)
    with torch.no_grad():
        wanted = group_flow(roles.get_submodule(other), noise, clip, level, None)  # pyright: ignore[reportArgumentType]
    got = group_flow(roles.get_submodule(role), noise, clip, level, None)  # pyright: ignore[reportArgumentType]
    return {"flow": (got - wanted).square().mean()}


def learners() -> tuple[Learner, ...]:
    """Return a critic that follows the student, and a student that follows the teacher
    in every second step."""
    student = Learner(
        name="student",
        roles=("student", "mix"),
        every=2,
        loss=partial(towards, "student", "teacher"),
        is_kernel=lambda name: name == "mix.weight",
    )
    return (Learner(name="critic", roles=("critic",), loss=partial(towards, "critic", "student")), student)


def train(folder: Path, **changes: Any) -> nn.Module:
    """Train in one process, with as many batches per step as the two processes
    together."""
    return run_loop(Duo(), learners(), Prefetcher(batch, workers=0), replace(CONFIG, **changes), folder)


def main(folder: Path, *, shards: bool, stop: int | None) -> None:
    """Train in the process group; stop at a given batch, like a killed run."""

    def until(number: int) -> Batch:
        if stop is not None and number >= stop:
            raise KeyboardInterrupt
        return batch(number)

    shown: list[Tensor] = []
    with joined_group(torch.device("cpu"), shards=shards) as (group, _):
        try:
            roles = run_loop(
                Duo(),
                learners(),
                Prefetcher(until, workers=0),
                CONFIG,
                folder,
                group=group,
                on_save=lambda model, _: shown.append(model.get_parameter("mix.weight").detach().clone()),
            )
        except KeyboardInterrupt:
            return
        if group.is_main:
            torch.save({"weights": roles.state_dict(), "shown": shown}, folder / "end.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), shards="sharded" in sys.argv, stop=int(sys.argv[-1]) if "stop" in sys.argv else None)
