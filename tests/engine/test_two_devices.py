"""A generator on one device and everything after it on another: the order of work, the
copies between them, and states in two places."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.engine.standins import LazyCopyEngine, LoggedStream
from tests.engine.videos import frames_of, run, start, video
from ultraflash_cli.engine import bridge as bridges
from ultraflash_cli.engine import clock as clocks
from ultraflash_cli.engine import gpu_streams
from ultraflash_cli.engine.bridge import Bridge, bridge_between
from ultraflash_cli.engine.clock import StageClock
from ultraflash_cli.engine.gpu_streams import WorkStream
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.schedule import plan_generation
from ultraflash_cli.engine.snapshot import Snapshots, SnapshotsOfTwo, snapshots_for
from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors
from ultraflash_cli.engine.text_to_video import TextToVideo

CPU = torch.device("cpu")
PLAN = plan_generation(9)
"""Two groups."""


def logged_bridge() -> tuple[Bridge, list[str]]:
    log: list[str] = []
    first, second = (LoggedStream(name, log) for name in ("first", "second"))
    return Bridge(first, second, CPU), log


def in_pieces(model: TextToVideo) -> TextToVideo:
    assert model.refiner is not None
    model.refiner.decode_latents = 1
    return model


@pytest.mark.parametrize("refined", [True, False], ids=["refined", "at the base size"])
def test_two_devices_make_the_frames_of_one(refined: bool) -> None:
    options: dict[str, Any] = {"refined": refined, "low": True}
    both, one = run(video(PLAN, bridge=logged_bridge()[0], **options), seed=3), run(video(PLAN, **options), seed=3)
    for here, there in zip(both, one, strict=True):
        for got, expected in zip(here, there, strict=True):
            assert (got is None) == (expected is None)
            assert got is None or expected is None or torch.equal(got, expected)
    assert len(both) == len(PLAN.groups) == 2


def test_the_second_device_waits_for_each_groups_latents_and_the_first_for_nothing() -> None:
    bridge, log = logged_bridge()
    model = video(PLAN, bridge=bridge)
    state, _ = model.step(start(model))
    crossing = ["first works", "second waits for first", "second works"]  # a copy out, a wait, a copy in
    assert log == ["first works", *crossing, "second works", "first works"], "the next group follows at once"
    log.clear()
    model.step(state)
    assert log == [*crossing, "second works"], "nothing is generated after the last group"


def test_before_a_refiner_that_makes_the_host_wait_the_next_group_is_generated() -> None:
    bridge, log = logged_bridge()
    model, plain = in_pieces(video(PLAN, bridge=bridge)), video(PLAN)
    assert torch.equal(frames_of(run(model)), frames_of(run(plain)))
    assert log[: log.index("second waits for first") + 4][-3:] == ["second works", "first works", "second works"]


def test_a_state_between_groups_continues_on_one_device_and_on_two() -> None:
    model, plain = video(PLAN, bridge=logged_bridge()[0]), video(PLAN)
    whole = run(plain, seed=4)
    state, _ = model.step(start(model, seed=4))
    assert state.ahead == PLAN.groups[1]
    saved = state_to_tensors(state)
    for goes_on in (model, plain):
        _, group = goes_on.step(state_from_tensors(start(goes_on, seed=4), saved))
        assert group.frames_bcthw is not None and whole[1].frames_bcthw is not None
        assert torch.equal(group.frames_bcthw, whole[1].frames_bcthw)


def test_a_state_is_whole_once_the_second_device_waits_for_the_first() -> None:
    bridge, log = logged_bridge()
    model = video(PLAN, bridge=bridge)
    log.clear()
    model.settle()
    assert log == ["second waits for first"]


def test_one_way_of_working_ahead_excludes_the_others() -> None:
    bridge = logged_bridge()[0]
    with pytest.raises(AssertionError, match="parked"):
        video(PLAN, bridge=bridge, park=CPU)


class Late:
    """A copy to the host that is garbage until a stream has waited for it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.unfinished = torch.full_like(tensor, torch.nan)

    def finish(self) -> None:
        with torch.inference_mode():
            self.unfinished.copy_(self.tensor)


def test_latents_are_read_on_the_second_device_only_after_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Late] = []

    class Finishing(LoggedStream):
        def wait_for(self, *others: WorkStream) -> None:
            for copy in begun:
                copy.finish()
            begun.clear()

    def to_host(tensor: Tensor) -> Late:
        begun.append(Late(tensor))
        return begun[-1]

    monkeypatch.setattr(bridges, "to_host", to_host)
    late = Bridge(LoggedStream("first", []), Finishing("second", []), CPU)
    assert torch.equal(frames_of(run(video(PLAN, bridge=late))), frames_of(run(video(PLAN))))
    never = Bridge(LoggedStream("first", []), LoggedStream("second", []), CPU)
    assert frames_of(run(video(PLAN, bridge=never))).isnan().any(), "the stand-in is strict"


class FakeStreams:
    """Current streams of several GPUs, and what is done on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.current = "cuda:0"
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "current_stream", lambda device=None: FakeStream(str(device or self.current), self))
        monkeypatch.setattr(cuda, "stream", self.entered)
        monkeypatch.setattr(cuda, "Event", lambda **_: FakeEvent(self))

    @contextmanager
    def entered(self, stream: "FakeStream") -> Generator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before


class FakeStream:
    def __init__(self, name: str, cuda: FakeStreams) -> None:
        self.name, self.cuda = name, cuda

    def wait_stream(self, other: "FakeStream") -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class FakeEvent:
    def __init__(self, cuda: FakeStreams) -> None:
        self.cuda = cuda

    def record(self, stream: FakeStream) -> None:
        self.cuda.log.append(f"event on {stream.name}")

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "FakeEvent") -> float:
        return 1000.0


def test_on_gpus_latents_cross_through_pinned_memory_between_the_current_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeStreams(monkeypatch)

    class Pinned(Tensor):
        def copy_(self, other: Tensor, non_blocking: bool = False) -> Tensor:
            assert non_blocking
            cuda.log.append(f"copied out on {cuda.current}")
            return self

        def to(self, device: torch.device, *, non_blocking: bool) -> str:  # pyright: ignore
            assert non_blocking
            cuda.log.append(f"copied in on {cuda.current}")
            return f"on {device}"

    class OnGpu(Tensor):
        is_cuda = True
        device = torch.device("cuda", 0)

    def empty(*_: object, pin_memory: bool, **__: object) -> Tensor:
        assert pin_memory
        return torch.zeros(3).as_subclass(Pinned)

    monkeypatch.setattr(gpu_streams.torch, "empty", empty)
    bridge = bridge_between(torch.device("cuda", 0), torch.device("cuda", 1))
    arrived = cast(Any, bridge.carry(torch.ones(3).as_subclass(OnGpu)))
    assert arrived == "on cuda:1" and cuda.current == "cuda:0"
    assert cuda.log == [
        "copied out on cuda:0",
        "event on cuda:0",
        "cuda:1 waits for cuda:0",
        "copied in on cuda:1",
    ]


def test_stages_are_timed_on_the_streams_of_their_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeStreams(monkeypatch)
    first, second = (torch.device("cuda", index) for index in range(2))
    clock = StageClock(second, {"generator": first})
    for stage in ("generator", "decoder"):
        with clock(stage):
            pass
    assert cuda.log == ["event on cuda:0"] * 2 + ["event on cuda:1"] * 2
    assert clock.seconds == {"generator": 1.0, "decoder": 1.0}
    waited: list[torch.device] = []
    monkeypatch.setattr(clocks, "wait_for", waited.append)
    clock.clear()
    assert waited == [first, second] and clock.seconds == {}


class Engine(LazyCopyEngine):
    """A device of its own, with room for a second state."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[tuple[int, ...]] = []

    def copy(self, source: Tensor, target: Tensor) -> None:
        self.copied.append(tuple(source.shape))
        super().copy(source, target)

    def free_bytes(self) -> int:
        return 10**9

    def hold(self) -> None:
        raise AssertionError("there is room")


def test_each_device_copies_its_own_part_of_a_state_into_one_file() -> None:
    safetensors = pytest.importorskip("safetensors.torch")

    class OnFirst(Tensor):
        device = torch.device("cuda", 0)

    state = {"generator.ring": torch.rand(2, 3).as_subclass(OnFirst), "refiner.ring": torch.rand(5)}
    expected = {name: tensor.clone().as_subclass(Tensor) for name, tensor in state.items()}
    first, second = Engine(), Engine()
    taker = SnapshotsOfTwo(torch.device("cuda", 0), Snapshots(first), Snapshots(second))
    snapshot = taker.take(state)
    assert (first.copied, second.copied) == ([(2, 3)], [(5,)]) and first.waits == second.waits == 0
    for tensor in state.values():
        tensor.zero_()
    content = b"".join(bytes(piece) for piece in snapshot.pieces())
    assert first.waits == second.waits == 1 and content == safetensors.save(expected)
    assert safetensors.load(content).keys() == state.keys()
    snapshot.release()
    taker.take(state)
    assert len(first.buffers) == len(second.buffers) == 1, "both buffers are used again"


def test_one_device_takes_its_states_alone() -> None:
    assert isinstance(snapshots_for(CPU, CPU), Snapshots)


@pytest.mark.gpu
@pytest.mark.parametrize("other", [0, 1], ids=["through pinned memory and back", "on two GPUs"])
def test_on_gpus_the_frames_are_those_of_one_device(other: int) -> None:
    if torch.cuda.device_count() <= other:
        pytest.skip("needs two GPUs")
    first, second = torch.device("cuda", 0), torch.device("cuda", other)
    plain, paired = video(PLAN), video(PLAN, bridge=bridge_between(first, second))
    for model, later in ((plain, first), (paired, second)):
        assert isinstance(model.refiner, Refiner) and model.refiner.sr_dit is not None
        model.sampler.network.to(first)
        for network in (model.refiner.upsampler, model.refiner.sr_dit, model.refiner.decoder):
            network.to(later)
        model.device = first
    for seed in (0, 1):
        assert torch.equal(frames_of(run(paired, seed=seed)).cpu(), frames_of(run(plain, seed=seed)).cpu())
