"""An emulator of what the attention kernels for Hopper use of Gluon, which has none.

A kernel's own source runs: its tasks take turns at random, copies arrive at any time,
and products read their operands only when they are waited for. What is overwritten while
it is read, read before it is there, or waited for in vain raises AssertionError.
"""

import math
import random
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.experimental.gluon import language as real_gl

from ultraflash_kernels import _token_kernels
from ultraflash_kernels.block_sparse_attention import copies_hopper_fp8, kernel, kernel_hopper, kernel_hopper_fp8

__all__ = ["THREAD", "Barrier", "FakeGluon", "emulated", "wait"]

THREAD = threading.local()
"""Its ``task``: the emulated one that a thread runs."""


class Stopped(BaseException):
    """Ends the threads of a program in which another task has failed."""


class Program:
    """One program: tasks that take turns at random, and copies in flight.

    A task gives up its turn before everything that other tasks can notice.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.copies: list[Callable[[], None]] = []
        self.turn = threading.Semaphore(0)
        self.failure: BaseException | None = None
        self.tasks: list[Task] = []

    def run(self, bodies: Sequence[tuple[Callable[..., None], Sequence[Any]]]) -> None:
        """Run the tasks to their end; raise what one raised, or AssertionError if all
        of them wait in vain."""
        self.tasks = [Task(self, body, given) for body, given in bodies]
        # Some orders have slow copies, others a slow task.
        haste = {task: self.random.choice((1, 1, 10)) for task in self.tasks}
        copying = self.random.choice((0.1, 1, 10))
        while self.failure is None and not all(task.done for task in self.tasks):
            able = [task for task in self.tasks if not task.done and task.ready()]
            weights = [haste[task] for task in able] + [copying] * bool(self.copies)
            if not weights:
                self.failure = AssertionError("every task waits: a deadlock")
                break
            chosen = self.random.choices(range(len(weights)), weights)[0]
            if chosen == len(able):
                self.copies.pop(self.random.randrange(len(self.copies)))()
            else:
                able[chosen].proceed()
        for task in self.tasks:
            task.end()
        if self.failure is not None:
            raise self.failure
        assert not self.copies, "a copy is in flight when the program ends"


class Task:
    """A warp or warp group; its products are asynchronous and complete in order."""

    def __init__(self, program: Program, body: Callable[..., None], given: Sequence[Any]):
        self.program = program
        self.ready: Callable[[], bool] = lambda: True
        self.done = False
        self.products: list[Product] = []
        self.written: list[Buffer] = []
        self.may_run = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._live, args=(body, given), daemon=True)
        self.thread.start()

    def _live(self, body: Callable[..., None], given: Sequence[Any]) -> None:
        THREAD.task = self
        try:
            self._take_turn()
            body(*given)
            assert not self.products, "a product is in flight when its task ends"
        except Stopped:
            pass
        except BaseException as error:
            self.program.failure = self.program.failure or error
        self.done = True
        self.program.turn.release()

    def proceed(self) -> None:
        """Let the task run up to its next pause."""
        self.may_run.release()
        self.program.turn.acquire()

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Give up the turn until ``ready``."""
        self.ready = ready
        self.program.turn.release()
        self._take_turn()

    def _take_turn(self) -> None:
        self.may_run.acquire()
        if self.program.failure is not None:
            raise Stopped

    def end(self) -> None:
        """Wait for the thread; it stops at its pause if the program has failed."""
        self.may_run.release()
        self.thread.join()


class Barrier:
    """An mbarrier: its phase ends when all arrivals and bytes have come."""

    def __init__(self) -> None:
        self.count = self.pending = self.phase = self.bytes = 0

    def arrive(self, count: int = 1) -> None:
        """Count an arrival."""
        self.pending -= count
        assert self.pending >= 0, "more arrivals than the barrier expects"
        self.settle()

    def settle(self) -> None:
        """Begin the next phase if this one is complete."""
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.count


class Buffer:
    """A buffer in shared memory and its parts."""

    def __init__(self) -> None:
        self.readers = 0
        """Products in flight that read it."""
        self.unfenced: Task | None = None
        """The task that has written to it without a fence, so that products may not
        see it."""
        self.parts: dict[int, Buffer] = {}


class Smem:
    """Shared memory, or a view of it."""

    def __init__(self, data: Tensor, buffer: "Buffer") -> None:
        self.data, self.buffer = data, buffer
        self.dtype, self.shape, self.numel = data.dtype, list(data.shape), data.numel()

    def index(self, at: int) -> "Smem":
        """Return one of several buffers."""
        part = self.buffer.parts.setdefault(int(at), Buffer())
        return Smem(self.data[int(at)], part)

    def reshape(self, shape: Sequence[int]) -> "Smem":
        """Return a view of another shape."""
        return Smem(self.data.view(list(shape)), self.buffer)

    def permute(self, order: Sequence[int]) -> "Smem":
        """Return a view with its axes in another order."""
        return Smem(self.data.permute(*order), self.buffer)

    def slice(self, start: int, length: int) -> "Smem":
        """Return a view of some rows."""
        return Smem(self.data[start : start + length], self.buffer)

    def load(self, layout: Any) -> Tensor:
        """Return the values."""
        THREAD.task.pause()
        return self.data.clone()

    def store(self, value: Tensor) -> None:
        """Overwrite the values; products see them after a fence."""
        THREAD.task.pause()
        assert self.buffer.readers == 0, "a buffer is overwritten while it is read"
        assert value.dtype == self.dtype
        self.data.copy_(value)
        self.buffer.unfenced = THREAD.task
        THREAD.task.written.append(self.buffer)


class Product:
    """An asynchronous product; it reads its operands, and has a value, only when a wait
    has returned it."""

    def __init__(self, a: Any, b: Smem, acc: Any, use_acc: bool) -> None:
        assert not isinstance(acc, Product), "sums of a product that is in flight"
        self.operands, self.acc, self.use_acc = (a, b), acc, use_acc
        self.value: Tensor | None = None
        for each in (a, b):
            if isinstance(each, Smem):
                assert each.buffer.unfenced is None, "a product may not see what was written"
                each.buffer.readers += 1

    def complete(self) -> None:
        """Multiply."""
        a, b = (each.data if isinstance(each, Smem) else each for each in self.operands)
        made = a.float() @ b.float()
        self.value = made + self.acc if self.use_acc else made
        for each in self.operands:
            if isinstance(each, Smem):
                each.buffer.readers -= 1


class Pointer:
    """An address: a tensor's elements and an offset, or several."""

    def __init__(self, elements: Tensor, at: Any = 0) -> None:
        self.elements, self.at = elements, at

        self.dtype = SimpleNamespace(element_ty=elements.dtype)

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.elements, self.at + offset)


def expect(barrier: Barrier, count: int) -> None:
    """Arrive, and hold the phase until as many bytes have come."""
    THREAD.task.pause()
    barrier.bytes += count
    barrier.arrive()


def wait(barrier: Barrier, phase: int, pred: Any = True) -> None:
    """Wait until the phase of this parity is over."""
    THREAD.task.pause((lambda: barrier.phase != int(phase)) if pred else (lambda: True))


def arrive(barrier: Barrier, count: int = 1) -> None:
    """Arrive without bytes."""
    THREAD.task.pause()
    barrier.arrive(count)


def init(barrier: Barrier, count: int) -> None:
    """Set the number of arrivals of a phase."""
    barrier.count = barrier.pending = count


def copy(desc: Any, place: Sequence[Any], barrier: Barrier, target: Smem) -> None:
    """Copy a block at some later time; it may not be read until then."""
    task: Task = THREAD.task
    task.pause()
    assert target.buffer.readers == 0, "a buffer is overwritten while it is read"
    target.data.fill_(math.nan)
    starts = [int(each) for each in place]
    assert len(starts) == desc.whole.ndim and target.shape == list(desc.block_shape)
    spans = zip(starts, target.shape, strict=True)
    found = desc.whole[tuple(slice(start, start + size) for start, size in spans)]

    def land() -> None:
        target.data.zero_()
        target.data[tuple(slice(0, size) for size in found.shape)] = found
        barrier.bytes -= target.data.nbytes
        assert barrier.bytes >= 0, "more bytes than the barrier expects"
        barrier.settle()

    task.program.copies.append(land)


def multiply(a: Any, b: Smem, acc: Any, *, use_acc: bool = True, is_async: bool = False) -> Product:
    """Begin a product."""
    assert is_async
    THREAD.task.pause()
    THREAD.task.products.append(Product(a, b, acc, use_acc))
    return THREAD.task.products[-1]


def wait_for_products(pending: int, deps: Sequence[Any]) -> Any:
    """Complete all products but the last ``pending``; return what has a value then."""
    task: Task = THREAD.task
    task.pause()
    while len(task.products) > pending:
        task.products.pop(0).complete()
    found = [each.value if isinstance(each, Product) else each for each in deps]
    assert all(each is not None for each in found), "a product is used before its wait"
    return found[0] if len(found) == 1 else found


def fence() -> None:
    """Show products what the task has written to shared memory."""
    written = getattr(getattr(THREAD, "task", None), "written", [])
    while written:
        written.pop().unfenced = None


def where(condition: Any, first: Any, second: Any) -> Any:
    """Choose between values, or between addresses."""
    if isinstance(first, Pointer):
        return first if condition else second
    return torch.where(condition, first, second)


class FakeGluon:
    """``triton.experimental.gluon.language`` for tensors on the CPU; ``seed`` selects
    the order of events."""

    int64, float32 = torch.int64, torch.float32

    def __init__(self, seed: int) -> None:
        self.seed, self.row = seed, 0
        self.written = torch.zeros(0, dtype=torch.bool)

    def __getattr__(self, name: str) -> Any:
        return getattr(real_gl, name)

    def program_id(self, axis: int) -> Tensor:
        """Return the number of the program that runs."""
        return torch.tensor(self.row)

    def load(self, pointer: Pointer, mask: Any = True, other: float = 0.0) -> Tensor:
        """Load a number, or some of them."""
        if not isinstance(pointer.at, Tensor):
            return pointer.elements[int(pointer.at)]
        found = pointer.elements[torch.where(torch.as_tensor(mask), pointer.at, 0)]
        return torch.where(torch.as_tensor(mask), found, other).to(found.dtype)

    def store(self, pointer: Pointer, value: Tensor, mask: Tensor) -> None:
        """Store a tile, which nothing has written before."""
        THREAD.task.pause()
        at = pointer.at.broadcast_to(value.shape)[mask.broadcast_to(value.shape)]
        if self.written.numel() == 0:
            self.written = torch.zeros(pointer.elements.numel(), dtype=torch.bool)
        assert not self.written[at].any(), "a result is written twice"
        self.written[at] = True
        pointer.elements[at] = value[mask.broadcast_to(value.shape)]

    def allocate_shared_memory(self, dtype: torch.dtype, shape: list[int], _: Any) -> Any:
        """Allocate shared memory or barriers."""
        if dtype == torch.int64:
            made = [Barrier() for _ in range(shape[0])]
            return SimpleNamespace(index=lambda at: made[int(at)]) if shape[1:] else made[0]
        return Smem(torch.full(shape, math.nan, dtype=dtype), Buffer())

    def warp_specialize(self, bodies: Any, warps: list[int], registers: list[int]) -> None:
        """Run the tasks of a program."""
        assert len(bodies) == 1 + len(warps) == 1 + len(registers)
        Program(self.seed * 1000 + self.row).run(bodies)

    static_range = staticmethod(range)
    where = staticmethod(where)
    maximum, exp2 = staticmethod(torch.maximum), staticmethod(torch.exp2)

    def max(self, x: Tensor, axis: int) -> Tensor:
        """Reduce an axis to its maximum."""
        return x.amax(axis)

    def sum(self, x: Tensor, axis: int) -> Tensor:
        """Reduce an axis to its sum."""
        return x.sum(axis)

    def inline_asm_elementwise(self, asm: str, _: str, given: list[Tensor], **options: Any) -> Tensor:
        """Round to 8 bits, the only thing that is done so."""
        assert asm.count("cvt.rn.satfinite.e4m3x2.f32") == 2 and options["pack"] == 4
        return given[0].clamp(-448, 448).to(torch.float8_e4m3fn)

    def full(self, shape: list[int], value: float, dtype: torch.dtype, _: Any) -> Tensor:
        """Fill a tensor."""
        return torch.full(shape, float(value), dtype=dtype)

    def arange(self, start: int, end: int, layout: Any) -> Tensor:
        """Count."""
        return torch.arange(start, end)

    def convert_layout(self, x: Tensor, layout: Any, assert_trivial: bool = False) -> Tensor:
        """Return the same values."""
        return x


class Launcher:
    """``attention_kernel[grid](...)``: every program after another."""

    def __init__(self, body: Callable[..., None], gl: FakeGluon) -> None:
        self.body, self.gl = body, gl

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*given: Any, num_warps: int, **options: Any) -> None:
            assert num_warps == 4
            self.gl.written = torch.zeros(0, dtype=torch.bool)
            for self.gl.row in range(grid[0]):
                self.body(*(self._seen(each) for each in given), **options)

        return launch

    def _seen(self, given: Any) -> Any:
        """Return an argument as the kernel sees it."""
        if isinstance(given, kernel_hopper.TensorDescriptor):
            whole = torch.as_strided(given.base, given.shape, given.strides)
            seen = {"dtype": whole.dtype, "layout": None, "block_shape": given.block_shape}
            return SimpleNamespace(whole=whole, **seen)
        if isinstance(given, Tensor):
            size = given.untyped_storage().nbytes() // given.itemsize
            return Pointer(given.as_strided((size,), (1,), 0), given.storage_offset())
        return given


def emulated(monkeypatch: pytest.MonkeyPatch) -> FakeGluon:
    """Make the kernels run on the CPU until ``monkeypatch`` is undone."""
    fake = FakeGluon(0)
    for module in (kernel, copies_hopper_fp8, kernel_hopper, kernel_hopper_fp8, _token_kernels):
        for name, value in list(vars(module).items()):
            if isinstance(value, real_gl.constexpr):
                monkeypatch.setattr(module, name, value.value)
            elif callable(getattr(value, "fn", None)):
                monkeypatch.setattr(module, name, value.fn)
        if hasattr(module, "tl"):
            tl = SimpleNamespace(maximum=torch.maximum, exp2=torch.exp2, minimum=min)
            tl.max = lambda x, axis: x.amax(axis)
            tl.sum = lambda x, axis: x.sum(axis)
            monkeypatch.setattr(module, "tl", tl)
    barriers = SimpleNamespace(expect=expect, wait=wait, arrive=arrive, init=init)
    barriers.MBarrierLayout = lambda: None
    products = {"warpgroup_mma": multiply, "warpgroup_mma_wait": wait_for_products}
    hopper = SimpleNamespace(**products, fence_async_shared=fence)
    tma = SimpleNamespace(async_copy_global_to_shared=copy)
    monkeypatch.setattr(kernel_hopper, "tma", tma)
    for module in (copies_hopper_fp8, kernel_hopper, kernel_hopper_fp8):
        monkeypatch.setattr(module, "gl", fake)
        monkeypatch.setattr(module, "mbarrier", barriers)
    for module in (kernel_hopper, kernel_hopper_fp8):
        monkeypatch.setattr(module, "hopper", hopper)
        launcher = Launcher(module.attention_kernel, fake)
        monkeypatch.setattr(module, "attention_kernel", launcher)
    return fake
