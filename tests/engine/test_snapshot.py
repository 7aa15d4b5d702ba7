"""States that are copied to the host during later computations."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.standins import LazyCopyEngine
from tests.jobs.fakes import plain_file
from ultraflash_cli.engine import gpu_streams
from ultraflash_cli.engine.gpu_streams import CudaCopyEngine
from ultraflash_cli.engine.snapshot import Snapshots
from ultraflash_cli.jobs.resume.journal import Journal


class Gpu(LazyCopyEngine):
    """A device whose copies are made as late as possible."""

    def __init__(self, free_bytes: int) -> None:
        super().__init__()
        self.free = free_bytes
        self.holds = 0

    def free_bytes(self) -> int:
        return self.free

    def hold(self) -> None:
        self.holds += 1
        waits = self._begun
        with torch.inference_mode():
            for source, target in waits:
                target.copy_(source)
        self._begun = []


def state() -> dict[str, Tensor]:
    ring = torch.arange(24.0).view(2, 3, 4).transpose(1, 2)
    return {"ring": ring, "half": torch.ones(3, dtype=torch.bfloat16), "groups": torch.tensor(7), "none": ring[:0]}


@pytest.mark.parametrize(("free_bytes", "holds"), [(10_000, 0), (10, 1)], ids=["room to double it", "no room"])
def test_a_state_in_transit_may_be_overwritten_and_arrives_as_it_was(
    tmp_path: Path, free_bytes: int, holds: int
) -> None:
    engine = Gpu(free_bytes)
    given = state()
    expected = {name: tensor.clone() for name, tensor in given.items()}
    snapshot = Snapshots(engine).take(given)
    assert engine.waits == 0 and engine.holds == holds, "the host waits for nothing"
    for tensor in given.values():
        tensor.zero_()
    journal = Journal(tmp_path, {})
    segment = journal.segment_path()
    segment.write_bytes(b"x")
    journal.add([plain_file(segment)], first_frame=0, end_frame=3, scene_first=0, state=snapshot)
    assert engine.waits == 1
    content = Journal(tmp_path, {}).state_bytes()
    assert content is not None, "the digest in the journal is that of the file"
    path = tmp_path / "copy.safetensors"
    path.write_bytes(content)
    assert {name: (t.dtype, t.tolist()) for name, t in load_file(path).items()} == {
        name: (t.dtype, t.tolist()) for name, t in expected.items()
    }


def test_pinned_buffers_are_used_again_once_a_state_is_written() -> None:
    engine = Gpu(10_000)
    snapshots = Snapshots(engine)
    first = snapshots.take(state())
    snapshots.take(state())
    made = len(engine.buffers)
    assert made == 2 * len(state()), "the first one still travels"
    first.release()
    snapshots.take(state())
    assert len(engine.buffers) == made


def test_a_state_on_the_host_is_copied_once() -> None:
    copied = 0

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore
            nonlocal copied
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.nbytes > 1000 and func.name().split("::")[1] in COPYING:
                copied += 1
            return out

    COPYING = ("clone", "copy_", "_to_copy", "contiguous")
    given = {"ring": torch.randn(64, 64)}
    with Copies():
        content = b"".join(bytes(piece) for piece in Snapshots(None).take(given).pieces())
    assert copied == 1
    assert content == save(given)


def test_pictures_and_states_leave_a_gpu_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Stream:
        def __init__(self, _device: object) -> None: ...

        def wait_stream(self, other: object) -> None:
            log.append(f"waits for {other}")

    class Using:
        def __init__(self, stream: object) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            log.append("copies")

        def __exit__(self, *_: object) -> None: ...

    class OnGpu(Tensor):
        is_cuda = True

        def record_stream(self, s: object) -> None:
            log.append("lent")

    monkeypatch.setattr(gpu_streams.torch.cuda, "Stream", Stream)
    monkeypatch.setattr(gpu_streams.torch.cuda, "stream", Using)
    monkeypatch.setattr(gpu_streams.torch.cuda, "current_stream", lambda _device: "what computes")
    engine = CudaCopyEngine(torch.device("cuda"))
    target = torch.zeros(3)
    engine.copy(torch.ones(3).as_subclass(OnGpu), target)
    assert log == ["waits for what computes", "copies", "lent"] and target.sum() == 3
