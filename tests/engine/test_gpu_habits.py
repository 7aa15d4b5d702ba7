"""Requirements of a GPU on the code around the kernels, tested without one."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.part import ENGINE_TESTS
from ultraflash_cli.bench.limits import measure_limits
from ultraflash_cli.buffers import queue_places, segment_length
from ultraflash_cli.models.device import choose_device
from ultraflash_kernels.block_sparse_attention.kernel import head_columns, tiles
from ultraflash_kernels.dispatch import on_its_device, power_of_two
from ultraflash_kernels.measure import Case, measure


def test_the_kernels_tests_are_collected_without_pyav_typer_and_ffmpeg(repository: Path) -> None:
    """A GPU image has torch and pytest, and little else."""
    blocked = "import sys; sys.modules.update({name: None for name in ('av', 'typer', 'imageio_ffmpeg', 'rich')})"
    run = "import pytest; sys.exit(pytest.main(['-q', '--collect-only', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    tests = ["kernels", *ENGINE_TESTS]
    command = [sys.executable, "-c", f"{blocked}\n{run}", *tests]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_launcher_runs_with_the_device_of_its_tensors_current(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[object] = []

    class Current:
        def __init__(self, device: object) -> None:
            entered.append(device)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    class OnGpu(torch.Tensor):
        is_cuda = True
        device = torch.device("cuda", 1)

    monkeypatch.setattr(torch.cuda, "device", Current)
    x = torch.zeros(2).as_subclass(OnGpu)

    @on_its_device
    def launch(*_: object) -> str:
        return "launched"

    assert launch(3, x) == launch([x, x]) == launch(torch.zeros(2)) == "launched"
    assert entered == [torch.device("cuda", 1)] * 2


def test_a_gpu_that_is_named_becomes_the_current_one_and_computes_in_ieee_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert choose_device("cuda:1") == torch.device("cuda", 1) == current[0]
    assert not torch.backends.cudnn.allow_tf32
    assert choose_device("cpu").type == "cpu" and len(current) == 1


def test_limits_are_measured_on_random_values(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}

    def look(case: object, _device: object) -> object:
        calls = case.calls["torch"]  # pyright: ignore[reportAttributeAccessIssue]
        seen[case.name] = [cell.cell_contents for cell in calls.__closure__]  # pyright: ignore[reportAttributeAccessIssue]
        return [type("Rate", (), {"flop_per_s": 1.0, "bytes_per_s": 1.0})()]

    monkeypatch.setattr("ultraflash_cli.bench.limits.measure", look)
    measure_limits(torch.device("cpu"), "fp32")
    assert seen.keys() == {"product", "copy", "convolution"}
    for name, tensors in seen.items():
        assert max(len(x.flatten()[:4096].unique()) for x in tensors) >= 250, name


def test_queues_hold_two_groups_and_states_of_a_gpu_are_saved_rarely() -> None:
    frame_2k, group = 1440 * 2496 * 3, 24
    assert queue_places(frame_2k) < 2 * group <= queue_places(frame_2k, group_frames=group)
    assert queue_places(1000, group_frames=2) == queue_places(1000)
    # 7.4 GB of state at 1K: one twelfth as often as the bytes alone would suggest.
    plain, weighed = segment_length(72, 7_400_000_000), segment_length(72, 12 * 7_400_000_000)
    assert (plain, weighed // plain) == (295, 11)


class Clock:
    """Simulated time of a GPU: work takes its own time, and launching it from Python
    takes ``LAUNCH_S``."""

    LAUNCH_S = 80e-6

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, records: bool) -> None:
        self.now = 0.0
        self.recording: list[float] | None = None
        self.streams: list[object] = []
        clock = self

        class Event:
            def __init__(self, **_: object) -> None: ...

            def record(self) -> None:
                self.at = clock.now

            def elapsed_time(self, other: "Event") -> float:
                return 1000 * (other.at - self.at)

        class Graph:
            recorded: Sequence[float] = ()

            def replay(self) -> None:
                clock.now += sum(self.recorded)

        class Recording:
            def __init__(self, graph: Graph, stream: object) -> None:
                self.graph = graph

            def __enter__(self) -> None:
                if not records:
                    raise RuntimeError("operation not permitted when stream is capturing")
                clock.recording = []

            def __exit__(self, *_: object) -> None:
                self.graph.recorded, clock.recording = clock.recording or [], None

        cuda = torch.cuda
        monkeypatch.setattr(cuda, "Event", Event)
        monkeypatch.setattr(cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(cuda, "graph", Recording)
        monkeypatch.setattr(cuda, "Stream", lambda _device: "another stream")
        monkeypatch.setattr(cuda, "current_stream", lambda _device: "the stream before")
        monkeypatch.setattr(cuda, "set_stream", self.streams.append)
        monkeypatch.setattr(cuda, "synchronize", lambda _device: None)
        monkeypatch.setattr(torch, "empty", lambda *_, **__: self)

    device = torch.device("cuda")

    def zero_(self) -> None:
        self.work(65e-6)

    def work(self, seconds: float) -> None:
        if self.recording is None:
            self.now += max(seconds, self.LAUNCH_S)
        else:
            self.recording.append(seconds)


@pytest.mark.parametrize(
    ("takes_s", "records", "told_s"),
    [(5e-6, True, 5e-6), (5e-6, False, Clock.LAUNCH_S), (2e-3, True, 2e-3)],
    ids=["small", "small and cannot be recorded", "large"],
)
def test_a_small_operation_is_timed_without_what_its_launch_takes(
    monkeypatch: pytest.MonkeyPatch, takes_s: float, records: bool, told_s: float
) -> None:
    clock = Clock(monkeypatch, records=records)
    case = Case(name="x", dtype=torch.float32, calls={"triton": lambda: clock.work(takes_s)}, moved_bytes=1000)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    (found,) = measure(case, torch.device("cuda"))
    assert found.median_s == pytest.approx(told_s)
    assert clock.streams == ([] if records else ["the stream before"])


def test_no_product_of_attention_on_hopper_is_narrower_than_64_columns() -> None:
    """Narrower ones read shared memory out of bounds (triton issues 10486, 10573,
    11366)."""
    for width in (8, 16, 32, 64, 96, 128):
        columns = max(16, power_of_two(width))
        assert head_columns((9, 0), width) >= 64 and head_columns((8, 0), width) == columns
        for tokens in (1, 32, 64, 128):
            assert tiles((9, 0), torch.bfloat16, tokens, width).keys >= 64
