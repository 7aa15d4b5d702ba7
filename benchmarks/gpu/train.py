"""Train the generator of `lite` further on a GPU that is at hand for a few minutes.

    PYTHONPATH=.:kernels python -m benchmarks.gpu.train --work FOLDER --out OUT --within 420

The first call renders and encodes scenes on all cores (for at most a third of its time)
and then trains from the shipped weights until its time is over; the same command goes on
from there as long as FOLDER is kept. OUT receives the averaged weights, the log and the
record, 30 MB in all: `python -m benchmarks.built_in` makes them the shipped ones. Needs
torch, numpy, safetensors and av; with stlpips-pytorch the learned distance is in the
loss, too.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from ultraflash_cli.train.record import RECORD

__all__ = ["Enough", "encoded", "main", "trained"]

WEIGHTS = Path(__file__).resolve().parents[1] / "training" / "lite2"
START = (WEIGHTS / "autoencoder.safetensors", WEIGHTS / "generator.safetensors")
SHARD = 10
"""Scenes per file."""
RESULTS = ("average.safetensors", "log.jsonl", RECORD, "losses.png")
LENGTHS: list[dict[str, Any]] = [
    {"latents": 1, "clips": 4.0, "odds": [0.35, 0.2], "anywhere": True},
    {"latents": 3, "clips": 1.25, "odds": [0.1, 0.1], "anywhere": True},
    {"latents": 6, "odds": [0.35, 0.4], "anywhere": True},
    {"latents": 9, "clips": 0.75, "odds": [0.2, 0.3], "anywhere": True},
]
"""Lengths of clips, as in the last run of the shipped weights."""
REWARDS = (("lpips", 0.05), ("texture", 0.03))


class Enough(Exception):
    """The time is over; the last checkpoint is written."""


def _encode(folder: Path, first: int, latents: int) -> None:
    """Render and encode the scenes of one file, in a process of its own."""
    import torch

    from ultraflash_cli.train.latents import EncodeScenesJob, encode_scenes
    from ultraflash_cli.weights.load import read_tensors

    torch.set_num_threads(1)
    job = EncodeScenesJob(
        out=folder,
        weights=read_tensors(START[0]),
        count=SHARD,
        first=first,
        latents=latents,
        shard=SHARD,
        precision="bf16",
    )
    encode_scenes(job)


def encoded(folder: Path, *, scenes: int, latents: int, processes: int, ends_s: float) -> int:
    """Render and encode scenes until there are enough or ``time.monotonic()`` reaches
    ``ends_s``, at least one file; return the number in the folder."""
    firsts = iter(range(0, scenes, SHARD))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(_encode, folder, first, latents) for first in islice(firsts, processes)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                each.result()
                if time.monotonic() < ends_s and (first := next(firsts, None)) is not None:
                    running.add(pool.submit(_encode, folder, first, latents))
    return SHARD * len(list(folder.glob("scenes_*.safetensors")))


def trained(
    data: Path,
    run: Path,
    *,
    steps: int,
    batch: int,
    save_every: int,
    device: Literal["cpu", "cuda"],
    lengths: list[dict[str, Any]],
    ends_s: float,
    tell: Callable[[int], None],
) -> bool:
    """Train, or go on, until ``steps`` are done or ``time.monotonic()`` reaches
    ``ends_s`` at a checkpoint; return whether all steps are done."""
    from ultraflash_cli.errors import UsageError
    from ultraflash_cli.metrics.lpips import weights_path
    from ultraflash_cli.train.run import TrainJob
    from ultraflash_cli.train.run import run as train

    try:
        weights_path("alex")
        rewards = REWARDS
    except UsageError:
        rewards = REWARDS[1:]

    def on_save(step: int) -> None:
        tell(step)
        if time.monotonic() >= ends_s and step < steps:
            raise Enough

    job = TrainJob(
        recipe="generator",
        data=data,
        out=run,
        steps=steps,
        threads=1 if device == "cpu" else 4,
        workers=0 if device == "cpu" else 4,
        start_from=START,
        device=device,
        precision="bf16",
        batch=batch,
        save_every=save_every,
        log_every=min(25, save_every),
        rewards=rewards,
        changes=(("pure_share", 0.95), ("thing_weight", 12.0), ("lengths", lengths)),
    )
    try:
        train(job, on_save=on_save)
    except Enough:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Encode and train as time allows."""
    began_s = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder that is kept between calls")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--within", type=float, default=420, metavar="S", help="seconds in all (420)")
    parser.add_argument("--scenes", type=int, default=600, help="scenes at most (600)")
    parser.add_argument("--latents", type=int, default=21, help="latent frames per scene (21)")
    parser.add_argument("--steps", type=int, default=6000, help="steps in all, over which the rate decays (6000)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints (200)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    asked = parser.parse_args(arguments)
    data, run = asked.work / "scenes", asked.work / "run"
    if not (run / RECORD).exists():
        ends_s = began_s + asked.within / 3
        processes = max(1, (os.cpu_count() or 1) - 1)
        count = encoded(data, scenes=asked.scenes, latents=asked.latents, processes=processes, ends_s=ends_s)
        print(f"{count} scenes after {time.monotonic() - began_s:.0f} s", flush=True)
    done = trained(
        data,
        run,
        steps=asked.steps,
        batch=asked.batch,
        save_every=asked.save_every,
        device=asked.device,
        lengths=[each for each in LENGTHS if each["latents"] <= asked.latents],
        ends_s=began_s + asked.within,
        tell=lambda step: print(f"{step} steps after {time.monotonic() - began_s:.0f} s", flush=True),
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        shutil.copy2(run / name, asked.out / name)
    print("done" if done else "no time left; the same command goes on", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
