"""Sections of the first run on a GPU that run whole clips: graphs, streams, two GPUs,
saved states."""

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.here import Here
from ultraflash_cli.bench.models import MeasuredModel
from ultraflash_cli.engine.text_to_video import TextToVideo

__all__ = ["graphs", "race", "state", "two_gpus"]


def _frames(made: MeasuredModel, video: TextToVideo, *, groups: int) -> list[Tensor]:
    """Generate the first groups of a clip, and return some of their frames."""
    height, width = (side // 8 for side in made.profile.base_size)
    state, frames = video.init_state(height=height, width=width, context=made.context), list[Tensor]()
    for _ in video.plan.groups[:groups]:
        state, group = video.step(state)
        assert group.frames_bcthw is not None, "there is a refiner"
        frames.append(group.frames_bcthw[:, :, ::6].cpu())
    video.settle()
    return frames


def graphs(here: Here) -> dict[str, Any]:
    """Check whether frames made with graphs, concurrent streams or both are
    bit-identical to those of plain execution."""
    found: dict[str, Any] = {}
    plain: list[Tensor] = []
    ways = {"plain": (False, False), "graphs": (True, False), "lanes": (False, True), "both": (True, True)}
    for name, (recorded, beside) in list(ways.items())[: 1 if here.dry else None]:
        made = here.untrained(kind="generate", scale=2, graphs=recorded, lanes=beside)
        video = made.video()
        frames: list[Tensor] = []
        for _clip in range(1 if here.dry else 2):
            frames = _frames(made, video, groups=1 if here.dry else 3)
        plain = plain or frames
        equal = [bool(torch.equal(a, b)) for a, b in zip(frames, plain, strict=True)]
        refused = [*video.sampler.graphs.refusals.values()]
        found[name] = {"equal": equal, "refusals": refused}
        if not here.dry:
            found[name]["gb"] = torch.cuda.max_memory_reserved() / 1e9
            torch.cuda.empty_cache()
    return found


def two_gpus(here: Here) -> dict[str, Any]:
    """Check whether the frames of two GPUs are bit-identical to those of one, plain and
    with graphs, and whether tensors may cross without the host."""
    count = torch.cuda.device_count()
    if count < 2:
        return {"skipped": f"needs two GPUs, found {count}"}
    found: dict[str, Any] = {"peer access": torch.cuda.can_device_access_peer(0, 1)}
    plain: list[Tensor] = []
    ways = {"one": ("cuda:0", False), "two": ("cuda:0,cuda:1", False), "two, graphs": ("cuda:0,cuda:1", True)}
    for name, (devices, recorded) in ways.items():
        made = here.untrained(kind="generate", scale=2, device=devices, graphs=recorded)
        video = made.video()
        frames = [_frames(made, video, groups=3) for _clip in range(2)][-1]
        plain = plain or frames
        equal = [bool(torch.equal(a, b)) for a, b in zip(frames, plain, strict=True)]
        gb = [torch.cuda.max_memory_reserved(index) / 1e9 for index in range(2)]
        found[name] = {"equal": equal, "refusals": [*video.sampler.graphs.refusals.values()], "gb": gb}
        torch.cuda.empty_cache()
    return found


def race(here: Here) -> dict[str, Any]:
    """Check whether two graphs replayed at once on two streams conflict in the
    workspace of cuBLAS."""
    if here.dry:
        return {"skipped": "graphs are for a GPU"}
    made: list[tuple[Any, Tensor, Tensor]] = []
    for stream in [torch.cuda.Stream() for _ in range(2)]:
        a, w, bias = (torch.randn(s, device=here.device).bfloat16() for s in ((256, 8960), (1536, 8960), (1536,)))
        call = lambda a=a, w=w, bias=bias: [F.linear(a, w, bias) for _ in range(50)][-1]  # noqa: E731
        expected = call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            out = call()
        made.append((graph, out, expected))
    streams, wrong = [torch.cuda.Stream() for _ in range(2)], 0
    for _ in range(200):
        for stream, (graph, _, _) in zip(streams, made, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        wrong += sum(not torch.equal(out, expected) for _, out, expected in made)
    return {"wrong of 400": wrong}


def state(here: Here) -> dict[str, Any]:
    """Measure how long the model waits when a state is saved, and how long its copy
    takes."""
    from ultraflash_cli.models.frames import UpscaledFrames

    made = here.untrained(scale=2)
    upscaler = made.upscaler()
    frames, kept = UpscaledFrames(upscaler, made.clock), upscaler.init_state()
    found: dict[str, Any] = {}
    for time_ in ("first", "second"):
        begun_s = time.perf_counter()
        content = frames.save_state(kept)
        found[f"{time_}, the model waits, s"] = time.perf_counter() - begun_s
        count = sum(len(piece) for piece in content.pieces())
        found[f"{time_}, it has arrived, s"] = time.perf_counter() - begun_s
        content.release()
        found["gb"] = count / 1e9
    return found
