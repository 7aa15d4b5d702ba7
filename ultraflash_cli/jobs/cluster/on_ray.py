"""Workers on a Ray cluster: actors that compute units; only paths and numbers are sent
through Ray."""

import shutil
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultraflash_cli.errors import DeviceError, UltraflashError, UsageError
from ultraflash_cli.files import sync_file
from ultraflash_cli.jobs.cluster.lease import revoke
from ultraflash_cli.jobs.cluster.overview import LOOK_S, Overview
from ultraflash_cli.jobs.cluster.units import DEATHS, Unit, read_plan
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.settings import Settings, keep_compiled_kernels, quieten_libraries, wait_passively

__all__ = ["UnitActor", "compute_on_ray", "stage_weights"]

_IN_FLIGHT = 2
"""Maximum number of units per actor: the current one and the next one, so that it never waits for the driver."""
_STARTS = 2
"""Attempts to start Ray on this machine; on a busy one it times out after 30
seconds."""
_PATIENCE_S = 60.0
"""Time that actors have to finish the current group when asked to stop."""


class UnitActor:
    """One worker of the cluster. Everything heavy is imported on its own machine."""

    def __init__(self, folder: str, store: str, device: str | None) -> None:
        settings = Settings.from_environment()
        quieten_libraries()
        wait_passively()
        keep_compiled_kernels(settings.home)
        stage_weights(Path(store), settings.home)
        from ultraflash_cli.jobs.cluster.worker import Worker

        self._stop = Stop()
        self._plan = read_plan(Path(folder))
        self._worker = Worker(self._plan, lambda event: None, stop=self._stop, store=settings.home, device=device)

    def owner(self) -> str:
        """Return the name that this actor uses in its leases; available once the actor is ready."""
        return self._worker.holder.owner

    def compute(self, file: int, number: int) -> dict[str, Any]:
        """Compute a unit; returns its outcome as `worker --json` prints it.

        The state is `busy` if another worker has the unit, and `refused`, with error
        and exit code, if this machine cannot compute it.
        """
        unit = self._plan.units_of(self._plan.files[file])[number]
        try:
            self._worker.check_stop()
            outcome = self._worker.compute(unit)
        except UltraflashError as error:
            return {"state": "refused", "error": str(error), "exit_code": error.exit_code}
        return {"state": "busy"} if outcome is None else outcome.as_json()

    def stop(self) -> None:
        """Finish the current group; the unit is kept for another worker."""
        self._stop.request()


@dataclass
class _Actor:
    handle: Any
    ready: Any
    owner: str | None = None
    flying: dict[Any, Unit] = field(default_factory=dict[Any, Unit])


def compute_on_ray(
    overview: Overview,
    *,
    address: str | None,
    workers: int | None,
    device: str,
    store: Path,
    stop: Stop,
    wait: Callable[[float], None] = time.sleep,
) -> int:
    """Compute the units of a plan with the actors of a Ray cluster; returns the number
    of actors.

    Args:
        overview: follows the plan; units finished by an earlier driver are not computed
            again.
        address: the cluster to use; None for this machine alone, or the one that Ray's
            own settings name.
        workers: number of actors; None for one per GPU or, without GPUs, one per
            `--threads` CPU cores.
        device: where the model runs, as in the plan.
        store: folder of the downloaded weights, copied once to each machine that sees
            it and has none of its own.
        stop: requests the end.
        wait: sleeps for the given number of seconds.

    Raises UsageError without Ray, Interrupted, and the error if all machines fail.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("--executor ray needs Ray; pip install '.[cluster]' in the source folder") from error

    mine = not ray.is_initialized()
    if mine:
        _connect(ray, address)
    try:
        driver = _Driver(ray, overview, workers=workers, device=device, store=store)
        overview.begin(device=f"{driver.count} Ray {'worker' if driver.count == 1 else 'workers'}")
        driver.run(stop, wait)
        return driver.count
    finally:
        if mine:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    for tries_left in reversed(range(_STARTS)):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
            return
        except Exception as error:  # Ray has no class for a cluster that does not answer in time
            ray.shutdown()
            if address is None and tries_left:
                continue
            reason = str(error).partition("\n")[0].removesuffix(".")
            if address is None:
                message = f"Ray cannot be started here ({reason}); try `ray start --head` and --address auto"
            else:
                message = f"the Ray cluster {address} cannot be reached ({reason}); see `ray status`"
            raise DeviceError(message) from error


class _Driver:
    """Assigns units to actors, at most two at a time to each."""

    def __init__(self, ray: Any, overview: Overview, *, workers: int | None, device: str, store: Path) -> None:
        self._ray = ray
        self._overview = overview
        self._arguments = str(overview.plan.folder.absolute()), str(store.absolute())
        self._device = device
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        threads = max((file.threads for file in overview.files.values()), default=1)
        uses_gpus = gpus > 0 and device != "cpu"
        self.count = workers or (gpus if uses_gpus else max(1, cpus // threads))
        # An actor sees only the GPU that Ray has assigned to it.
        needs = {"num_gpus": 1, "num_cpus": 1} if uses_gpus else {"num_cpus": min(threads, cpus)}
        kind: Any = ray.remote(**needs, concurrency_groups={"stop": 1})(UnitActor)
        self._kind = kind
        self._queue: deque[Unit] = deque(overview.left)
        self._busy: list[Unit] = []
        self._actors: list[_Actor] = []
        self._deaths = 0
        self._refusal: UltraflashError | None = None

    def run(self, stop: Stop, wait: Callable[[float], None]) -> None:
        """Work until all units are settled. Raises Interrupted, or the last machine's refusal if no machine is left."""
        self._actors = [self._start() for _ in range(min(self.count, max(1, len(self._queue))))]

        try:
            while self._overview.look():
                if stop.requested:
                    self._end_in_order()
                    raise stop.interruption(
                        "interrupted; finished units and segments are kept, the same command resumes"
                    )
                if not self._actors:
                    raise self._refusal or DeviceError(f"{self._deaths} Ray workers died in a row; see the Ray logs")
                for actor in self._actors:
                    self._feed(actor)
                if not self._collect():
                    # Nothing is in flight: the rest is computed by other workers, or
                    # was settled a moment ago.
                    wait(LOOK_S)
                    self._requeue_busy()
        finally:
            for actor in self._actors:
                self._ray.kill(actor.handle)

    def _start(self) -> _Actor:
        device = "cuda" if self._device.startswith("cuda") else self._device
        handle = self._kind.remote(*self._arguments, device)
        return _Actor(handle, handle.owner.remote())

    def _feed(self, actor: _Actor) -> None:
        while self._queue and len(actor.flying) < _IN_FLIGHT:
            unit = self._queue.popleft()
            if not self._overview.plan.is_settled(unit):
                actor.flying[actor.handle.compute.remote(unit.file.number, unit.number)] = unit

    def _collect(self) -> bool:
        """Collect what is ready; returns whether anything is still in flight."""
        flying = [reference for actor in self._actors for reference in actor.flying]
        waiting = [actor.ready for actor in self._actors if actor.owner is None]
        if not flying and not waiting:
            return False
        ready, _ = self._ray.wait([*flying, *waiting], num_returns=1, timeout=LOOK_S)
        for reference in ready:
            actor = next(each for each in self._actors if reference in each.flying or reference == each.ready)
            try:
                told = self._ray.get(reference)
            except self._ray.exceptions.RayActorError:
                self._bury(actor)
                continue
            if reference == actor.ready:
                actor.owner = told
            else:
                self._take(actor, actor.flying.pop(reference), told)
        if not self._queue and self._busy:
            self._requeue_busy()
        return True

    def _take(self, actor: _Actor, unit: Unit, told: dict[str, Any]) -> None:
        state = told["state"]
        if state == "done":
            self._deaths = 0
        elif state == "retried":
            self._queue.append(unit)
        elif state == "busy":
            self._busy.append(unit)
        elif state == "refused":
            self._refusal = UltraflashError(f"Ray worker: {told['error']}")
            self._refusal.exit_code = told["exit_code"]
            self._queue.extendleft([unit, *actor.flying.values()])
            self._actors.remove(actor)
            self._ray.kill(actor.handle)

    def _requeue_busy(self) -> None:
        self._queue.extend(unit for unit in self._busy if not self._overview.plan.is_settled(unit))
        self._busy.clear()

    def _bury(self, actor: _Actor) -> None:
        """Reassign the units of a dead actor, and start another one."""
        self._actors.remove(actor)
        for unit in actor.flying.values():
            if actor.owner is not None:
                with suppress(OSError):
                    revoke(unit.folder / "lease", actor.owner)
            self._queue.appendleft(unit)
        self._deaths += 1
        if self._deaths < DEATHS * self.count:
            self._actors.append(self._start())

    def _end_in_order(self) -> None:
        """Let the actors finish their current groups."""
        for actor in self._actors:
            actor.handle.stop.options(concurrency_group="stop").remote()
        flying = [reference for actor in self._actors for reference in actor.flying]
        if flying:
            self._ray.wait(flying, num_returns=len(flying), timeout=_PATIENCE_S)


def stage_weights(source: Path, home: Path) -> int:
    """Copy downloaded weights to this machine, once for all its workers; returns how many files were copied.

    Nothing is done if `source` is not reachable from here or is `home` itself. Every
    file appears whole. Raises OSError.
    """
    folder = source / "weights"
    if source.absolute() == home.absolute() or not folder.is_dir():
        return 0
    copied = 0
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".staging").open("w") as lock:
        with suppress(ImportError):  # Windows
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        # A receipt marks a file as usable, and is therefore copied last.
        files = sorted((each for each in folder.rglob("*") if each.is_file()), key=lambda each: each.suffix == ".json")
        for path in files:
            target = home / path.relative_to(source)
            if target.exists() and target.stat().st_size == path.stat().st_size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(path, part)
            sync_file(part)
            part.replace(target)
            copied += 1
    return copied
