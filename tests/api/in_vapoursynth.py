"""Behaviour of the filter in a real VapourSynth: `python -m tests.api.in_vapoursynth
INTERPRETER` prints facts as JSON.

It runs under a Python that has VapourSynth's wheel, numpy and PyAV, and no torch; INTERPRETER has torch.
"""

import gc
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ultraflash_cli
from tests.api.causal import CausalToy

BEFORE = sorted({"torch", "vapoursynth"} & sys.modules.keys())

import vapoursynth as vs  # noqa: E402

from tests.api.served import ServedStream  # noqa: E402
from ultraflash_cli import vapoursynth as filters  # noqa: E402
from ultraflash_cli.errors import OutOfMemory, UsageError  # noqa: E402

CORE: Any = vs.core
FRAMES, WIDTH, HEIGHT = 60, 32, 24
FORMATS = (
    "RGB24", "RGB30", "RGB48", "RGBH", "RGBS", "YUV420P8", "YUV420P10", "YUV422P10", "YUV444P16", "YUV420PH",
    "YUV444PS", "GRAY8", "GRAY16", "GRAYS",
)  # fmt: skip


def source(kind: str, counted: dict[int, int] | None = None, **props: int) -> Any:
    """A clip of three scenes of large blocks whose frames carry their numbers."""
    base = CORE.std.BlankClip(
        format=getattr(vs, kind), width=WIDTH, height=HEIGHT, length=FRAMES, fpsnum=30000, fpsden=1001
    )

    def paint(n: int, f: Any) -> Any:
        if counted is not None:
            counted[n] = counted.get(n, 0) + 1
        made = f.copy()
        draws = np.random.default_rng(n // 20)
        for plane in range(f.format.num_planes):
            levels = np.asarray(made[plane])
            height, width = levels.shape
            blocks = draws.random((3, 4)).repeat(height // 3, 0).repeat(width // 4, 1)
            if f.format.sample_type == vs.FLOAT:
                is_chroma = plane and f.format.color_family == vs.YUV
                levels[:] = blocks * 0.2 - 0.1 if is_chroma else blocks * 0.8 + 0.1
            else:
                levels[:] = (blocks * 120 + 60 + n % 5).astype(levels.dtype) << (f.format.bits_per_sample - 8)
        for name, value in {"made": n, **props}.items():
            made.props[name] = value
        return made

    return CORE.std.ModifyFrame(base, base, paint)


def planes(frame: Any) -> list[np.ndarray]:
    return [np.asarray(frame[plane]).copy() for plane in range(frame.format.num_planes)]


def digest(frame: Any) -> str:
    return hashlib.sha256(b"".join(plane.tobytes() for plane in planes(frame))).hexdigest()


def doubled(clip: Any, stream: Any = None, **options: Any) -> Any:
    return filters.upscale_with(clip, stream or CausalToy(), (2 * clip.width, 2 * clip.height), **options)


class Doubling(CausalToy):
    """Doubles the size without changing colours."""

    def _group(self) -> list[np.ndarray]:
        done, self._waiting = self._waiting, []
        return done


def said(call: Callable[[], object]) -> str:
    try:
        call()
    except vs.Error as error:
        return str(error)
    return "nothing"


def formats() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in FORMATS:
        clip = source(kind)
        large = doubled(clip, Doubling())
        before, after = clip.get_frame(30), large.get_frame(30)
        rows = [
            np.abs(a.repeat(2, 0).repeat(2, 1) - b.astype(float))
            for a, b in zip(planes(before), planes(after), strict=True)
        ]
        most = 1 if clip.format.sample_type == vs.FLOAT else (1 << clip.format.bits_per_sample) - 1
        found[kind] = {
            "is_same": large.format == clip.format and large.fps == clip.fps and len(large) == len(clip),
            "size": [large.width, large.height],
            "props": dict(before.props) == dict(after.props),
            "luma_error": float(np.median(rows[0])) / most,
        }
    return found


def colours() -> dict[str, float]:
    """Return the largest error of flat colours converted to RGB and back, in 8-bit
    levels."""
    found: dict[str, float] = {}
    for matrix in (1, 5, 6, 9):
        for ranged in (0, 1):
            clip = CORE.std.BlankClip(format=vs.YUV420P8, width=16, height=16, length=2, color=[110, 140, 120])
            clip = CORE.std.SetFrameProps(clip, _Matrix=matrix, _Range=ranged, _ChromaLocation=1)
            frame = doubled(clip, Doubling()).get_frame(0)
            errors = [
                abs(int(plane[0, 0]) - level) for plane, level in zip(planes(frame), (110, 140, 120), strict=True)
            ]
            found[f"matrix {matrix}, range {ranged}"] = max(errors)
    return found


def orders() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for threads in (1, 3):
        CORE.num_threads = threads
        counted: dict[int, int] = {}
        expected = [digest(frame) for frame in doubled(source("YUV420P10", counted)).frames()]
        large = doubled(source("YUV420P10"))
        order = np.random.default_rng(threads).permutation(FRAMES).tolist()
        alone = [digest(large.get_frame(number)) == expected[number] for number in order[:8]]
        coming = [(number, large.get_frame_async(number)) for number in order]
        together = [digest(future.result(120)) == expected[number] for number, future in coming]
        found[str(threads)] = {"alone": all(alone), "together": all(together), "reads": sum(counted.values())}
    return found


def exact() -> bool:
    """Return whether RGB24 frames equal those of the stream, with scenes at the
    cuts."""
    clip, toy = source("RGB24"), CausalToy()
    out: list[Any] = []
    for number in range(FRAMES):
        if number in (20, 40):
            out.append(toy.flush())
        out.append(toy.step(np.stack(planes(clip.get_frame(number)), axis=-1)[None]))
    expected = np.concatenate([*out, toy.flush()])
    made = [np.stack(planes(frame), axis=-1) for frame in doubled(clip).frames()]
    return np.array_equal(np.stack(made), expected)


class Exhausted(CausalToy):
    """Runs out of memory on the first call."""

    failures = 0

    def step(self, frames_thwc: np.ndarray) -> np.ndarray:
        if self.frames_in == 10 and not self.failures:
            self.failures += 1
            raise OutOfMemory("the model needs 9 GB, 1 GB is free; use a smaller clip")
        return super().step(frames_thwc)


def errors() -> dict[str, Any]:
    clip = source("RGB24")
    broken = doubled(clip, Exhausted())
    varying = CORE.std.Splice([clip, source("YUV420P8")], mismatch=True)
    odd = CORE.std.BlankClip(format=vs.GRAY32, width=16, height=16) if hasattr(vs, "GRAY32") else None
    return {
        "interlaced": said(lambda: doubled(source("YUV420P8", _FieldBased=2)).get_frame(3)),
        "memory": said(lambda: broken.get_frame(12)),
        "after": digest(broken.get_frame(12)) == digest(doubled(clip).get_frame(12)),
        "varying": said(lambda: filters.upscale(varying)),
        "odd": "expected YUV" if odd is None else said(lambda: filters.upscale(odd)),
        "none": said(lambda: filters.upscale(None)),  # pyright: ignore[reportArgumentType]
        "options": said(lambda: filters.upscale(clip, detail=2)),
        "source": said(lambda: doubled(clip.std.FrameEval(lambda n: 1 // (n - 5) and clip)).get_frame(9)),
    }


def opened() -> dict[str, Any]:
    """Return the arguments with which `upscale` calls `open_stream`, which needs
    torch."""
    asked: dict[str, Any] = {}

    def open_stream(size: tuple[int, int], **options: Any) -> Any:
        asked.update(options, size=size)
        if options["scale"] == 9:
            raise UsageError("scale 9 cannot be")
        toy: Any = CausalToy()
        toy.output_size = (2 * size[0], 2 * size[1])
        return toy

    filters.open_stream = open_stream
    large = filters.upscale(source("YUV420P8"), detail=0.25, device="cpu", guard=None)
    told = dict(asked)
    return {
        "asked": told,
        "size": [large.width, large.height],
        "refused": said(lambda: filters.upscale(large, scale=9)),
    }


def guide() -> list[Any]:
    """Return the output of the guide's example; `open_stream` is still the one of
    `opened`."""
    page = Path(__file__).parents[2] / "docs" / "guides" / "pipes.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, str(page), "exec"), names)
    frame = vs.get_output(0)[0].get_frame(23)
    return [frame.width, frame.height, frame.format.name, names["clip"].num_frames]


def freed() -> bool:
    toy = CausalToy()
    gone = weakref.ref(toy)
    large = doubled(source("RGB24"), toy)
    large.get_frame(3)
    del toy, large
    gc.collect()
    return gone() is None


def piped() -> list[Any]:
    """Return the output of vspipe for a script, and its exit for one that fails."""
    script = (
        "import numpy as np, vapoursynth as vs\n"
        "from tests.api.causal import CausalToy\n"
        "from ultraflash_cli.vapoursynth import upscale_with\n"
        "clip = vs.core.std.BlankClip(format=vs.YUV420P8, width=32, height=24, length=12)\n"
        "clip = clip.std.SetFieldBased({})\n"
        "upscale_with(clip, CausalToy(), (64, 48)).set_output()\n"
    )
    found: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        setting = os.environ | {"XDG_CONFIG_HOME": folder}
        subprocess.run([sys.executable, "-m", "vapoursynth", "config"], env=setting, capture_output=True, check=True)
        for field in (0, 1):
            path = Path(folder, "script.vpy")
            path.write_text(script.format(field), encoding="utf-8")
            command = [str(Path(sys.executable).with_name("vspipe")), "-c", "y4m", str(path), "-"]
            done = subprocess.run(command, env=setting, capture_output=True, check=False, timeout=120)
            found.append([done.returncode, len(done.stdout), done.stderr.decode()])
    return found


def served(interpreter: str) -> list[str]:
    """Return frames of the real model in the real VapourSynth, requested out of
    order."""
    stream = ServedStream(interpreter, (WIDTH, HEIGHT), model="tiny-lite", device="cpu", threads=1)
    large = doubled(source("RGB24"), stream)
    digests = {number: digest(large.get_frame(number)) for number in (25, 50, 0, 19, 20, 45, 59)}
    stream.close()
    return [digests[number] for number in sorted(digests)]


def main(interpreter: str) -> None:
    """Print all facts."""
    facts = {
        "imported": BEFORE,
        "public": sorted(ultraflash_cli.__all__),
        "formats": formats(),
        "colours": colours(),
        "orders": orders(),
        "exact": exact(),
        "errors": errors(),
        "opened": opened(),
        "guide": guide(),
        "freed": freed(),
        "piped": piped(),
        "served": served(interpreter),
        "torch": "torch" in sys.modules,
    }
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1])
