"""Steps of streaming stages as CUDA graphs: recorded once per shape, replayed over
static buffers."""

import warnings
import weakref
from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ultraflash_cli.engine.stage import (
    Leaf,
    Role,
    leaf_roles,
    state_leaves,
    with_leaves,
)

__all__ = [
    "EAGER",
    "CudaRecorder",
    "GraphCounts",
    "Graphs",
    "Recorder",
    "Recording",
    "Step",
]

StateT = TypeVar("StateT")
InputsT = TypeVar("InputsT")

Step = Callable[[StateT, InputsT], tuple[StateT, Tensor]]
"""A stage's step, from state and inputs to the next state and the finished output."""

MOST_GRAPHS = 64
"""Maximum number of recorded graphs; steps of further shapes run eagerly."""


class Recording(Protocol):
    """Recorded work."""

    def replay(self) -> dict[str, Tensor]:
        """Replay the work; results are in the same buffers each time."""
        ...


class Recorder(Protocol):
    """Records work to be replayed."""

    def record(self, work: Callable[[], dict[str, Tensor]]) -> Recording:
        """Record ``work`` without running it. Raises RuntimeError if it cannot be
        recorded.

        The device stays usable after a failure, but this recorder should not be reused.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs that share one memory pool, as they are replayed one after
    another.

    Each recorder captures on its own stream. cuBLAS keeps one workspace for every
    stream and its address becomes part of a graph, so graphs of two recorders, which
    may be replayed concurrently, must not share the stream that torch captures on by
    default.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, work: Callable[[], dict[str, Tensor]]) -> Recording:
        """Record ``work`` without running it; other threads may continue to use the
        device."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream(self._device)
            try:
                with torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ):
                    results = work()
            except Exception:
                self._recover(before)
                raise
        return _CudaRecording(graph, results)

    def _recover(self, stream: torch.cuda.Stream) -> None:
        """Clean up after a failed capture, which leaves its stream current and the
        allocator filling its pool."""
        torch.cuda.set_stream(stream)
        end_of_pool = getattr(torch._C, "_cuda_endAllocateToPool", None)  # pyright: ignore[reportPrivateUsage]
        if end_of_pool is not None:
            with suppress(RuntimeError):
                end_of_pool(torch.cuda.current_device(), self._pool)
        self._pool = torch.cuda.graph_pool_handle()


@dataclass(frozen=True)
class _CudaRecording:
    graph: torch.cuda.CUDAGraph
    results: dict[str, Tensor]

    def replay(self) -> dict[str, Tensor]:
        self.graph.replay()
        return self.results


class GraphCounts(NamedTuple):
    """Number of steps of a stage that were recorded, replayed or run eagerly."""

    recorded: int
    """Number of graphs."""
    replayed: int
    eager: int


@dataclass
class _Plan:
    """Facts about the steps of one shape."""

    stays: frozenset[str]
    """Tensors of the state with a fixed address: overwritten in place, or not at
    all."""
    after: dict[str, Leaf]
    """Numbers of the state after the step; for those with a role, their increments."""
    roles: Mapping[str, Role]
    """Numbers that may differ between steps of one shape."""
    refusal: str | None = None
    recording: Recording | None = None
    buffers: dict[str, Tensor] | None = None
    """Static buffers for everything else."""


class Graphs:
    """Runs stage steps as CUDA graphs where it can, eagerly otherwise; results are
    identical.

    After a failed recording the process records nothing more, because the state of the
    device is unknown. The first step of a shape runs eagerly: kernels are compiled and
    libraries set up, and it shows which tensors of the state keep their address. The
    second one is recorded; it and all later ones are replayed. Returned tensors belong
    to the caller, except those with a fixed address: they are shared by all streams of
    a stage, so a stream that starts while the state of another is alive runs eagerly.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        """Record with ``recorder``; without one every step runs eagerly."""
        self._recorder = recorder
        self._plans: dict[Hashable, _Plan] = {}
        self._static: dict[tuple[str, str], Tensor] = {}
        self._owners: dict[tuple[str, str], weakref.ref[Tensor]] = {}
        self._counts: dict[str, list[int]] = {}
        self._paused = False
        self._failed = False

    @property
    def on(self) -> bool:
        """Whether recording is enabled."""
        return self._recorder is not None

    @property
    def counts(self) -> dict[str, GraphCounts]:
        """Counts by stage; empty if nothing is recorded."""
        return {name: GraphCounts(*counts) for name, counts in self._counts.items()}

    @property
    def refusals(self) -> dict[str, str]:
        """Reasons why steps run eagerly, by stage."""
        return {
            key[0]: plan.refusal
            for key, plan in self._plans.items()
            if plan.refusal and isinstance(key, tuple)
        }

    @contextmanager
    def paused(self) -> Generator[None]:
        """Run everything inside the block eagerly, so that its operations can be
        counted."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def step(
        self,
        name: str,
        step: Step[StateT, InputsT],
        state: StateT,
        inputs: InputsT,
        *,
        key: Hashable = None,
    ) -> tuple[StateT, Tensor]:
        """Return what ``step`` returns for ``state`` and ``inputs``; consumes
        ``state``.

        Args:
            name: Name of the stage.
            step: The step to record.
            state: State of the stage. Whatever changes the operations must show in the
                shapes of its tensors, in its numbers or in ``key``; fields declared as
                ``Counter`` or ``Position`` may increase freely, and a position reaches
                the graph as a 0-dimensional tensor.
            inputs: Inputs of the step.
            key: Everything else that determines the operations.
        """
        if self._recorder is None or self._paused:
            return step(state, inputs)
        with torch.inference_mode():
            return self._step(name, step, state, inputs, key)

    def _step(
        self,
        name: str,
        step: Step[StateT, InputsT],
        state: StateT,
        inputs: InputsT,
        key: Hashable,
    ) -> tuple[StateT, Tensor]:
        leaves, given = state_leaves(state), state_leaves(inputs)
        roles = leaf_roles(state)
        counts = self._counts.setdefault(name, [0, 0, 0])
        shape = (name, key, _shape_of(leaves, frozenset(roles)), _shape_of(given))
        plan = self._plans.get(shape)
        if plan is None:
            after = step(state, inputs)
            counts[2] += 1
            if len(self._plans) < MOST_GRAPHS:
                self._plans[shape] = _planned(leaves, state_leaves(after[0]), roles)
            return after

        may_record = plan.recording is not None or not self._failed
        if plan.refusal is None and may_record and self._settle(name, plan, leaves):
            if plan.recording is None:
                self._record(name, plan, step, state, inputs)
                counts[0] += plan.recording is not None
            if plan.recording is not None:
                counts[1] += 1
                return self._replay(name, plan, plan.recording, state, leaves, given)

        counts[2] += 1
        return step(state, inputs)

    def _settle(self, name: str, plan: _Plan, leaves: Mapping[str, Leaf]) -> bool:
        """Copy the tensors with fixed addresses to those of the recorded work; return
        False if another stream uses them."""
        foreign: list[tuple[Tensor, Tensor]] = []
        for path in plan.stays:
            leaf = leaves[path]
            assert isinstance(leaf, Tensor), "only tensors have addresses"
            home = self._static.setdefault((name, _place(path, leaf)), leaf)
            if home.data_ptr() != leaf.data_ptr():
                tenant = self._owners.get((name, _place(path, leaf)))
                if tenant is not None and tenant() is not None:
                    return False
                foreign.append((home, leaf))
        for home, leaf in foreign:
            home.copy_(leaf)
        return True

    def _record(
        self,
        name: str,
        plan: _Plan,
        step: Step[Any, Any],
        state: Any,
        inputs: Any,
    ) -> None:
        """Record a step into ``plan``, or the reason it cannot be."""
        assert self._recorder is not None, "there is a recorder"
        leaves, given = state_leaves(state), state_leaves(inputs)
        buffers: dict[str, Tensor] = {}
        for path, leaf in leaves.items():
            if isinstance(leaf, Tensor) and path not in plan.stays:
                buffers[f"state:{path}"] = torch.empty_like(leaf)
            elif plan.roles.get(path) is Role.POSITION:
                buffers[f"state:{path}"] = torch.zeros(
                    (), dtype=torch.int64, device=_device_of(given)
                )
        buffers |= {
            f"input:{path}": torch.empty_like(leaf)
            for path, leaf in given.items()
            if isinstance(leaf, Tensor)
        }

        def before(path: str, leaf: Leaf) -> Leaf:
            if path in plan.stays and isinstance(leaf, Tensor):
                return self._static[name, _place(path, leaf)]
            return buffers.get(f"state:{path}", leaf)

        fixed = with_leaves(
            state, {path: before(path, leaf) for path, leaf in leaves.items()}
        )
        fixed_inputs = with_leaves(
            inputs,
            {path: buffers.get(f"input:{path}", leaf) for path, leaf in given.items()},
        )

        def work() -> dict[str, Tensor]:
            after, out = step(fixed, fixed_inputs)
            made = {
                p: leaf
                for p, leaf in state_leaves(after).items()
                if p not in plan.stays and p not in plan.roles
            }
            return {
                f"state:{p}": leaf for p, leaf in made.items() if isinstance(leaf, Tensor)
            } | {"out": out}

        try:
            plan.recording = self._recorder.record(work)
            plan.buffers = buffers
        except (RuntimeError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._failed = True
            plan.refusal = (
                f"{name}: cannot be recorded as a CUDA graph, runs eagerly: {reason}"
            )
            warnings.warn(plan.refusal, RuntimeWarning, stacklevel=5)

    def _replay(
        self,
        name: str,
        plan: _Plan,
        recording: Recording,
        state: StateT,
        leaves: Mapping[str, Leaf],
        given: Mapping[str, Leaf],
    ) -> tuple[StateT, Tensor]:
        assert plan.buffers is not None, "recorded work has buffers"
        for place, buffer in plan.buffers.items():
            kind, _, path = place.partition(":")
            leaf = (leaves if kind == "state" else given)[path]
            if isinstance(leaf, Tensor):
                buffer.copy_(leaf, non_blocking=True)
            else:
                assert leaf is not None, "a position is a number"
                buffer.fill_(leaf)

        made = recording.replay()
        after: dict[str, Leaf] = {}
        for path, leaf in leaves.items():
            if path in plan.stays and isinstance(leaf, Tensor):
                after[path] = self._own(name, path, leaf)
            elif isinstance(leaf, Tensor):
                after[path] = made[f"state:{path}"].clone()
            else:
                value = plan.after[path]
                if path in plan.roles:
                    assert isinstance(leaf, int) and isinstance(value, int), (
                        "a counter is a whole number"
                    )
                    value += leaf
                after[path] = value

        return with_leaves(state, after), made["out"].clone()

    def _own(self, name: str, path: str, leaf: Tensor) -> Tensor:
        """Return the named tensor of fixed address, which lives as long as the stream's
        state."""
        place = (name, _place(path, leaf))
        tenant = self._owners.get(place)
        if tenant is not None and tenant() is leaf:
            return leaf
        home = self._static[place].detach()
        self._owners[place] = weakref.ref(home)
        return home


EAGER = Graphs(None)
"""Runs every step eagerly."""


def _shape_of(
    leaves: Mapping[str, Leaf], without: frozenset[str] = frozenset()
) -> Hashable:
    return tuple(
        (path, tuple(leaf.shape), leaf.stride(), leaf.dtype)
        if isinstance(leaf, Tensor)
        else (path, leaf)
        for path, leaf in leaves.items()
        if path not in without
    )


def _place(path: str, leaf: Tensor) -> str:
    return f"{path} {tuple(leaf.shape)} {leaf.stride()} {leaf.dtype}"


def _device_of(given: Mapping[str, Leaf]) -> torch.device:
    return next(leaf.device for leaf in given.values() if isinstance(leaf, Tensor))


def _planned(
    before: Mapping[str, Leaf], after: Mapping[str, Leaf], roles: Mapping[str, Role]
) -> _Plan:
    """Derive the plan for later steps of the same shape from a finished one."""
    stays: set[str] = set()
    numbers: dict[str, Leaf] = {}
    refusal = None if before.keys() == after.keys() else "the state changes its structure"
    for path in before.keys() & after.keys():
        old, new = before[path], after[path]
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            if old.shape != new.shape or old.dtype != new.dtype:
                refusal = f"{path} changes its shape"
            elif old.data_ptr() == new.data_ptr() and old.stride() == new.stride():
                stays.add(path)
        elif isinstance(old, Tensor) or isinstance(new, Tensor):
            refusal = f"{path} changes its kind"
        elif path in roles:
            assert isinstance(old, int) and isinstance(new, int), (
                "a counter is a whole number"
            )
            numbers[path] = new - old
        else:
            numbers[path] = new
    return _Plan(frozenset(stays), numbers, roles, refusal)
