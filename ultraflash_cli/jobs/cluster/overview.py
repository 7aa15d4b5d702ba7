"""Progress of a plan, read from the folders of its units: for display, and per machine
for reports."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ultraflash_cli.jobs.cluster.units import Plan, PlannedFile, Unit, read_json
from ultraflash_cli.jobs.events import Chunk, Listener, Started

__all__ = ["LOOK_S", "Node", "Overview"]

LOOK_S = 0.5
"""Interval between two checks; at most a tenth of the time is spent on checking."""


@dataclass
class Node:
    """Work done by one machine."""

    host: str
    units: int = 0
    frames: int = 0
    busy_s: float = 0.0
    """Busy seconds, summed over its workers."""
    cpu_s: float = 0.0
    """CPU seconds, summed over its workers."""
    owners: set[str] = field(default_factory=set[str])
    bench_fps: float | None = None
    """Frames per second of one worker, as timed when its model was loaded."""

    @property
    def workers(self) -> int:
        """Number of its workers that have finished a unit."""
        return len(self.owners)


class Overview:
    """Follows the units of some files of a plan."""

    def __init__(
        self,
        plan: Plan,
        files: Iterable[PlannedFile],
        on_event: Listener,
        *,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        plan: the plan.
        files: the files of the plan to follow.
        on_event: receives `Started`, and `Chunk` with the total frames of all
            files.
        name: name of the whole in events.
        clock: seconds.
        """
        self.plan = plan
        self.files = {file.number: file for file in files}
        self.nodes: dict[str, Node] = {}
        self._units = [unit for unit in plan.units if unit.file.number in self.files]
        self._left = list(self._units)
        self._on_event = on_event
        self._name = name
        self._clock = clock
        self._started_s = clock()
        self._next_s = self._started_s
        self._total = sum(unit.estimate for unit in self._units)
        self._done = 0
        self._told = 0
        for unit in [unit for unit in self._left if plan.is_settled(unit)]:
            self._left.remove(unit)
            self._done += unit.estimate
        self._resumed = self._told = self._done

    @property
    def left(self) -> list[Unit]:
        """The units that were not settled at the last check, longest first."""
        return self._left

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started_s

    @property
    def frames(self) -> int:
        """Frames computed since the start."""
        return sum(node.frames for node in self.nodes.values())

    def begin(self, *, device: str) -> None:
        """Report the start; `device` describes where the units are computed."""
        files = self.files.values()
        count = len(self._units)
        self._on_event(
            Started(
                input=self._name,
                output=str(self.plan.folder),
                model=", ".join(sorted({file.model for file in files})),
                device=f"{device} ({count} {'unit' if count == 1 else 'units'})",
                precision=", ".join(sorted({str(file.job["precision"]) for file in files})),
                threads=max((file.threads for file in files), default=1),
                frames_total=self._total,
                frames_resumed=self._resumed,
                note=f"resuming after {self._resumed} finished frames" if self._resumed else None,
                label=self.plan.folder.name,
            )
        )

    def look(self) -> bool:
        """Check the units if it is time to; returns whether any are left."""
        now_s = self._clock()
        if now_s < self._next_s:
            return bool(self._left)
        running = 0
        left: list[Unit] = []
        for unit in self._left:
            if self.plan.is_settled(unit):
                self._done += unit.estimate
                self._count(unit)
                continue
            left.append(unit)
            lease = read_json(unit.folder / "lease") or {}
            running += int(lease.get("frames_done", 0))
        self._left = left
        self._tell(self._done + running, now_s)
        self._next_s = self._clock() + max(LOOK_S, 9 * (self._clock() - now_s))
        return bool(left)

    def as_json(self, *, executor: str, workers: int) -> dict[str, object]:
        """Return the report's section on machines. The efficiency is the number of
        frames relative to what the workers would have computed in this time without
        losses, according to the timing of each; None if unknown.
        """
        seconds = self.seconds
        bench = [node.bench_fps for node in self.nodes.values() if node.bench_fps is not None]
        full_fps = workers * sum(bench) / len(bench) if bench else None
        fps = self.frames / seconds if seconds > 0 else 0.0
        return {
            "executor": executor,
            "work_dir": str(self.plan.folder),
            "workers": workers,
            "units": len(self._units),
            "frames": self.frames,
            "seconds": round(seconds, 3),
            "fps": round(fps, 3),
            "efficiency": round(fps / full_fps, 3) if full_fps and self.frames else None,
            "nodes": [_node_as_json(node, seconds) for _, node in sorted(self.nodes.items())],
        }

    def _count(self, unit: Unit) -> None:
        told = read_json(unit.done_folder / "unit.json")
        if told is None:
            return  # its file has failed
        node = self.nodes.setdefault(told["host"], Node(told["host"]))
        node.units += 1
        node.frames += told["frames"] - told["resumed"]
        node.busy_s += told["seconds"]
        node.cpu_s += told["cpu_seconds"]
        node.owners.add(told["owner"])
        if told["bench_fps"] is not None:
            node.bench_fps = told["bench_fps"]

    def _tell(self, done: int, now_s: float) -> None:
        if done <= self._told:
            return
        self._told = done
        fps = (done - self._resumed) / max(now_s - self._started_s, 1e-9)
        left = max(self._total - done, 0)
        self._on_event(
            Chunk(
                input=self._name,
                frames_done=done,
                frames_safe=self._done,
                frames_total=max(self._total, done),
                fps=round(fps, 3),
                eta_s=round(left / fps, 1) if fps else None,
                limit="model",
            )
        )


def _node_as_json(node: Node, seconds: float) -> dict[str, Any]:
    return {
        "host": node.host,
        "workers": node.workers,
        "units": node.units,
        "frames": node.frames,
        "fps": round(node.frames / seconds, 3) if seconds > 0 else None,
        "busy_seconds": round(node.busy_s, 3),
        "cpu_seconds": round(node.cpu_s, 3),
        "bench_fps": node.bench_fps,
    }
