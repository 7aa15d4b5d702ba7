"""The model of a job: built by torch, seen by the job as pictures in and pictures out."""

from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from ultraflash_cli.jobs.flow import FrameUpscaler
from ultraflash_cli.jobs.preflight import Prepared

if TYPE_CHECKING:
    from ultraflash_cli.engine.upscaler import Picture, Upscaler, UpscalerState

__all__ = ["Builder", "Built", "build"]

_QUEUES = ("waiting_tchw", "cascade.queue_bcthw")
"""Parts of a state that hold frames waiting for their group: empty between groups, and large."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model that is ready, and what it turned out to be."""

    upscaler: FrameUpscaler
    device: str
    precision: str
    weights: dict[str, str]
    """The sha256 of every weight file by its name."""


Builder = Callable[[Prepared], Built]
"""Loads the model for a prepared job; raises DeviceError, WeightsError."""


def build(prepared: Prepared) -> Built:
    """Load the model of a prepared job. Raises DeviceError, WeightsError."""
    import torch

    from ultraflash_cli.jobs.assemble import build_upscaler, choose_device, choose_precision, weight_hashes

    job = prepared.job
    device = choose_device(job.device)
    dtype = choose_precision(job.precision, device)
    torch.set_num_threads(prepared.threads)
    timer = _Timer()
    upscaler = build_upscaler(
        prepared.model,
        prepared.plan,
        device=device,
        dtype=dtype,
        strength=job.strength,
        color=job.color,
        timer=timer.time,
    )
    return Built(
        upscaler=_Model(upscaler, timer),
        device=str(device),
        precision="bf16" if dtype == torch.bfloat16 else "fp32",
        weights=weight_hashes(prepared.model),
    )


class _Timer:
    """Adds up the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, stage: str) -> Generator[None]:
        started_s = perf_counter()
        yield
        self.seconds[stage] += perf_counter() - started_s


class _Model:
    """The engine's upscaler with its states as bytes and its stages timed."""

    def __init__(self, upscaler: "Upscaler", timer: _Timer) -> None:
        self._upscaler = upscaler
        self._timer = timer

    @property
    def stage_seconds(self) -> dict[str, float]:
        return dict(self._timer.seconds)

    def group_frames(self, first: bool) -> int:
        return self._upscaler.group_frames(first=first)

    def init_state(self, *, seed: int, first_frame: int) -> "UpscalerState":
        return self._upscaler.init_state(seed=seed, first_frame=first_frame)

    def step(self, state: "UpscalerState", frames: "list[Picture]") -> "tuple[UpscalerState, list[Picture]]":
        return self._upscaler.step(state, frames)

    def flush(self, state: "UpscalerState") -> "list[Picture]":
        return self._upscaler.flush(state)

    def save_state(self, state: "UpscalerState") -> bytes:
        from safetensors.torch import save

        from ultraflash_cli.engine.stage import state_to_tensors

        assert state.waiting == 0, "states are saved between groups"
        tensors = state_to_tensors(state)
        return save({name: tensor for name, tensor in tensors.items() if name not in _QUEUES})

    def load_state(self, content: bytes, *, seed: int, first_frame: int) -> "UpscalerState":
        from safetensors.torch import load

        from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors

        fresh = self.init_state(seed=seed, first_frame=first_frame)
        queues = {name: tensor for name, tensor in state_to_tensors(fresh).items() if name in _QUEUES}
        return state_from_tensors(fresh, queues | load(content))
