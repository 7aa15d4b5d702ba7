"""The state of a run on disk: one file, or sharded, written while training continues."""

import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import async_save

from ultraflash_cli.train.learning import Trainee
from ultraflash_cli.train.process_group import ProcessGroup
from ultraflash_cli.train.shards import whole

__all__ = ["Checkpoints", "Progress"]

STATE = "state.pt"
"""The state of a run in one file."""

SHARDS = "state"
"""Folder of sharded states, one folder for each step."""

PROGRESS = "progress.json"
"""Steps done and losses of a sharded state."""

DONE = ".metadata"
"""File that torch writes last; without it a sharded state is incomplete."""

Progress = tuple[int, dict[str, list[float]]]
"""Steps done, and the sums and counts of losses since the last line of the log."""


class Checkpoints:
    """Saves and loads the state of learners in a run's folder.

    Whole networks go to ``state.pt``. Sharded ones go to ``state/STEP``, every process
    writing its own part in the background (torch.distributed.checkpoint); such a state
    is loaded by any number of processes, sharded or not.
    """

    def __init__(self, folder: Path, group: ProcessGroup) -> None:
        self.folder = folder
        self.group = group
        self._pending: tuple[Future[Any], Path] | None = None
        # Saves in the background must not mix with the collectives of training.
        self._saving: dist.ProcessGroup | None = None
        if group.shards:
            self._saving = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))

    def save(self, trainees: list[Trainee], progress: Progress) -> None:
        """Save the state after a step; every process calls it."""
        step, sums = progress
        facts = {"step": step, "sums": sums}
        if not self.group.shards:
            if self.group.is_main:
                state = {"pupils": [whole(each.state()) for each in trainees], **facts}
                partial = self.folder / "state.tmp"
                torch.save(state, partial)
                partial.replace(self.folder / STATE)
            return
        self.wait()
        target = self.folder / SHARDS / f"{step:08d}"
        if self.group.is_main:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            (target / PROGRESS).write_text(json.dumps(facts), encoding="utf-8")
        self.group.barrier()
        saving = async_save(_named(trainees), checkpoint_id=target, process_group=self._saving)
        assert isinstance(saving, Future), "a save in the background is a future"
        self._pending = (saving, target)

    def wait(self) -> None:
        """Wait for the save in the background, then drop older states."""
        if self._pending is None:
            return
        saving, target = self._pending
        self._pending = None
        saving.result()
        self.group.barrier()
        if not self.group.is_main:
            return
        for other in target.parent.iterdir():
            if other != target:
                shutil.rmtree(other)
        (self.folder / STATE).unlink(missing_ok=True)

    def close(self) -> None:
        """Wait for a save in the background to finish; its files are kept."""
        if self._pending is not None:
            self._pending[0].result()

    def load(self, trainees: list[Trainee], device: torch.device) -> Progress:
        """Load the latest state into the learners and return its progress; (0, no sums)
        if there is none."""
        sharded = _latest(self.folder / SHARDS)
        if sharded is not None:
            facts = json.loads((sharded / PROGRESS).read_text(encoding="utf-8"))
            _load_sharded(sharded, trainees)
            return int(facts["step"]), facts["sums"]
        path = self.folder / STATE
        if not path.exists():
            return 0, {}
        saved = torch.load(path, weights_only=True, map_location=device)
        for trainee, state in zip(trainees, saved["pupils"], strict=True):
            trainee.load(state)
        return int(saved["step"]), saved["sums"]


def _latest(folder: Path) -> Path | None:
    """Return the newest complete sharded state."""
    done = sorted(path.parent for path in folder.glob(f"*/{DONE}"))
    return done[-1] if done else None


def _named(trainees: list[Trainee]) -> dict[str, Any]:
    """Return the tensors of all learners under names that do not depend on the number
    of processes."""
    named: dict[str, Any] = {}
    for trainee in trainees:
        state, name = trainee.state(), trainee.learner.name
        for part in ("parameters", "average"):
            named |= {f"{name}/{part}/{key}": value for key, value in state[part].items()}
        for at, optimiser in enumerate(state["optimisers"]):
            for number, values in optimiser["state"].items():
                for key, value in values.items():
                    named[f"{name}/optimiser/{at}/{number}/{key}"] = value
    return named


def _load_sharded(folder: Path, trainees: list[Trainee]) -> None:
    """Load tensors into buffers sharded like this process's own, then into the
    learners."""
    reader = FileSystemReader(folder)
    metadata = reader.read_metadata()
    places: dict[str, Any] = {}
    for trainee in trainees:
        places |= _places(trainee, metadata)
    load_shards(places, storage_reader=reader, no_dist=not dist.is_initialized())
    for trainee in trainees:
        name, state = trainee.learner.name, trainee.state()
        for part in ("parameters", "average"):
            state[part] = {key: places[f"{name}/{part}/{key}"] for key in trainee.names}
        for at, optimiser in enumerate(state["optimisers"]):
            optimiser["state"] = {}
            for place, value in places.items():
                owner, kind, *rest = place.split("/")
                if (owner, kind, rest[0]) == (name, "optimiser", str(at)):
                    optimiser["state"].setdefault(int(rest[1]), {})[rest[2]] = value
        trainee.load(state)


def _places(trainee: Trainee, metadata: Metadata) -> dict[str, Tensor]:
    """Return empty tensors for the saved ones, sharded as the learner's parameters are."""
    name, places = trainee.learner.name, dict[str, Tensor]()
    for key, p in zip(trainee.names, trainee.parameters, strict=True):
        for part in ("parameters", "average"):
            places[f"{name}/{part}/{key}"] = torch.empty_like(p.detach())
    for at, optimiser in enumerate(trainee.optimisers):
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        prefix = f"{name}/optimiser/{at}/"
        for place, saved in metadata.state_dict_metadata.items():
            if not place.startswith(prefix) or not isinstance(saved, TensorStorageMetadata):
                continue
            p = parameters[int(place.removeprefix(prefix).split("/")[0])]
            alike = tuple(saved.size) == tuple(p.shape)
            places[place] = (
                torch.empty_like(p.detach()) if alike else torch.empty(saved.size, dtype=saved.properties.dtype)
            )
    return places
