"""Upscale and generate from Python: files in and out, or frames in and frames out.

    import ultraflash_cli

    report = ultraflash_cli.upscale("in.mp4", res="2k")
    print(report.output, report.frames_out)

    with ultraflash_cli.open_stream((832, 480), scale=2) as stream:
        for frames in clip:  # [T, 480, 832, 3], uint8
            show(stream.step(frames))  # [T', 960, 1664, 3], uint8
        show(stream.flush())

Options have the same names, values and defaults as on the command line, with
underscores. Errors are raised as those of ``ultraflash_cli.errors``.
"""

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from ultraflash_cli.errors import ConfigError, UsageError
from ultraflash_cli.files import names_folder
from ultraflash_cli.frame_forms import Form, taken
from ultraflash_cli.jobs.planning.guarding import GUARD_LEVELS, check_guard
from ultraflash_cli.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from numpy import ndarray
    from torch import Tensor

    from ultraflash_cli.jobs.events import Event
    from ultraflash_cli.jobs.running.generate import GenerateReport
    from ultraflash_cli.jobs.running.upscale import UpscaleReport

    Frames = ndarray | Tensor
    """Frames [T, H, W, 3] in RGB: uint8, uint16 (full scale), or floats in [0, 1]."""

__all__ = ["FrameStream", "GenerateOptions", "UpscaleOptions", "generate", "open_stream", "upscale"]

FilePath = str | PathLike[str]
Progress = Callable[["Event"], None]
"""A function that receives events, one at a time; see
``ultraflash_cli.jobs.events``."""


_AS_FIELDS = {
    "match_colors": ("color", "match", "off"),
    "cuts": ("cuts", "auto", "off"),
    "subs": ("subs", "copy", "none"),
}
"""Boolean options of ``upscale`` that are words in a job: the field, and the words for
True and False."""


class _SharedOptions(TypedDict, total=False):
    """Options of both functions."""

    model: str
    decoder: Literal["auto", "tiny", "ultra"]
    seed: int
    codec: str
    crf: int | None
    pix_fmt: str
    enc_opt: Mapping[str, str]
    device: str | None
    precision: str
    max_memory: str | None
    cuda_graphs: bool
    threads: int | None
    tag: bool
    resume: bool
    overwrite: bool
    skip_existing: bool
    temp_dir: FilePath | None


class UpscaleOptions(_SharedOptions, total=False):
    """Options of ``upscale``, described by ``ultraflash upscale --help``."""

    res: str | None
    prompt: str | None
    encoder: Literal["auto", "tiny", "wan-vae"]
    strength: float
    detail: float | None
    guard: float | None
    match_colors: bool
    cuts: bool
    start: str | None
    end: str | None
    preview: str | None
    side_by_side: bool
    deinterlace: Literal["auto", "frame", "field", "off"]
    crop: str
    chroma_shift: str
    grain: Literal["none", "keep", "remove"]
    fps: float | Fraction | None
    audio: Literal["copy", "aac", "flac", "opus", "none"]
    subs: bool
    strict: bool
    images: bool
    renumber: bool
    downscale: bool


class GenerateOptions(_SharedOptions, total=False):
    """Options of ``generate``, described by ``ultraflash generate --help``."""

    res: Literal["480p", "1k", "2k"]
    seconds: float | None
    fps: float | Fraction | None
    save_lr: bool
    init_clip: FilePath | None
    cache_management: str


def upscale(
    source: FilePath,
    output: FilePath | None = None,
    *,
    on_event: Progress | None = None,
    **options: Unpack[UpscaleOptions],
) -> "UpscaleReport":
    """Upscale one clip like ``ultraflash upscale`` and return its report. ``source`` is
    a video file or numbered images such as ``folder/%05d.png``. ``output`` is a file,
    a folder (an existing one, or a name that ends in a slash), or None for a default
    name next to the source (see the report's ``output``). Sizes are pixels, times
    seconds or text such as ``"1:02.5"``. An interrupted call is resumed by the same
    call.

        report = upscale("in.mp4", res="2k", crf=18, overwrite=True)

    Raises TypeError for an unknown option, UsageError and ConfigError for invalid values,
    InputError for a source that cannot be read, DeviceError, OutOfMemory,
    OutputError and WeightsError.
    """
    from ultraflash_cli.jobs.planning.upscale import UpscaleJob
    from ultraflash_cli.jobs.running.upscale import run

    values = _values(options, UpscaleOptions, "upscale")
    for flag, (field, on, off) in _AS_FIELDS.items():
        if flag in values:
            values[field] = on if values.pop(flag) else off
    job = UpscaleJob(source=Path(source), store=_store(), **_place(output), **values)
    return run(job, on_event or _ignore)


def generate(
    prompt: str,
    output: FilePath | None = None,
    *,
    on_event: Progress | None = None,
    **options: Unpack[GenerateOptions],
) -> "GenerateReport":
    """Generate one clip from a prompt like ``ultraflash generate`` and return its
    report. ``output`` is a file, a folder as for `upscale`, or None for a name derived
    from the prompt in the current folder.

        report = generate("a red balloon over the sea", "balloon.mp4", res="1k", seconds=3)

    Raises the same errors as ``upscale``.
    """
    from ultraflash_cli.jobs.planning.generate import GenerateJob
    from ultraflash_cli.jobs.running.generate import run_generation

    values = _values(options, GenerateOptions, "generate")
    if "init_clip" in values:
        values["init_clip"] = Path(values["init_clip"])
    job = GenerateJob(prompt=prompt, store=_store(), **_place(output), **values)
    return run_generation(job, on_event or _ignore)


def open_stream(
    size: tuple[int, int],
    *,
    scale: int = 2,
    model: str = "lite",
    detail: float = 1.0,
    strength: float = 1.0,
    guard: float | None = GUARD_LEVELS,
    match_colors: bool = True,
    seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    threads: int | None = None,
    state: bytes | None = None,
) -> "FrameStream":
    """Open a stream that takes frames of ``size`` (width, height in pixels) and returns
    them ``scale`` times as large. ``state`` is the result of ``FrameStream.save`` of an
    equal stream: the new stream continues after its last frame, with the same pixels as
    without interruption. Raises UsageError for an invalid size or scale, or the state
    of a different stream, ConfigError for other invalid values, DeviceError,
    OutOfMemory and WeightsError. Models that read a prompt are conditioned on their
    default one.
    """
    if not 0 <= detail <= 1 or not 0 <= strength <= 1:
        raise ConfigError(f"detail and strength must be between 0 and 1, got {detail} and {strength}")
    check_guard(guard)
    if seed < 0 or (threads is not None and threads < 1):
        raise ConfigError(f"seed must be at least 0 and threads at least 1, got {seed} and {threads}")
    facts = {
        "size": list(size), "scale": scale, "model": model, "detail": detail, "strength": strength,
        "guard": guard, "match_colors": match_colors, "seed": seed, "precision": precision,
    }  # fmt: skip
    return FrameStream(facts, device=device or "auto", threads=threads, state=state)


class FrameStream:
    """Frames in, larger frames out, group by group; the results depend only on the
    frames, not on how many are passed at a time. The caller is responsible for scene
    cuts: ``flush`` ends a scene, and the next frames begin a new one. Frames are
    returned in the form in which they were passed: NumPy arrays as arrays, tensors as
    tensors on their device, uint8 as uint8, uint16 as uint16, floats as float32.
    """

    def __init__(self, facts: dict[str, Any], *, device: str, threads: int | None, state: bytes | None) -> None:
        """Use ``open_stream``."""
        import torch

        from ultraflash_cli.engine.clock import StageClock
        from ultraflash_cli.engine.guard import Guard
        from ultraflash_cli.engine.plan import plan_upscale
        from ultraflash_cli.host import keep_freed_memory, usable_cores
        from ultraflash_cli.models.build import build_upscaler
        from ultraflash_cli.models.device import choose_device
        from ultraflash_cli.models.frames import UpscaledFrames
        from ultraflash_cli.models.oom import oom_errors
        from ultraflash_cli.models.parity import require_parity
        from ultraflash_cli.models.profile import find_profile
        from ultraflash_cli.models.prompts import embed_prompts
        from ultraflash_cli.models.shelf import Shelf

        width, height = facts["size"]
        profile, scale, precision = find_profile(facts["model"]), facts["scale"], facts["precision"]
        plan = plan_upscale(width, height, res=f"{scale}x", multiple_px=profile.multiple_px)
        keep_freed_memory()
        torch.set_num_threads(threads or usable_cores())
        chosen, shelf, context = choose_device(device, model=profile.name), Shelf(_store()), None
        with oom_errors():
            if profile.upscales_by_words:
                context = embed_prompts(
                    shelf, profile, [profile.default_prompt], device=chosen, precision=precision, warn=_ignore
                )[0]
            require_parity(shelf, profile, scale=scale, device=chosen, precision=precision, detail=facts["detail"])
            clock = StageClock(chosen)
            upscaler = build_upscaler(
                shelf,
                profile,
                plan,
                device=chosen,
                precision=precision,
                strength=facts["strength"],
                color="match" if facts["match_colors"] else "off",
                detail=facts["detail"],
                guard=None if facts["guard"] is None else Guard(facts["guard"]),
                context=context,
                timer=clock,
            )
        self._frames = UpscaledFrames(upscaler, clock)
        self._facts: dict[str, Any] = facts | {"weights": shelf.hashes, "device": chosen.type}
        self.size: tuple[int, int] = (width, height)
        """Width and height of the input frames in pixels."""
        self.output_size: tuple[int, int] = (scale * width, scale * height)
        """Width and height of the output frames in pixels."""
        self.frames_in = 0
        """Number of input frames so far."""
        self.frames_out = 0
        """Number of frames returned so far."""
        self._scene = 0
        self._form: Form | None = None
        self._state = self._fresh()
        self._waiting: list[ndarray] = []
        if state is not None:
            self.load(state)

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        """Do nothing: a stream only holds memory."""

    def step(self, frames_thwc: "Frames") -> "Frames":
        """Process frames [T, H, W, 3] and return the finished ones, [T', scale * H,
        scale * W, 3]; T' may be 0. Any object that supports DLPack is accepted. All
        frames of a scene must have the same dtype. Raises UsageError for other shapes
        and dtypes, and for a dtype that changes within a scene.
        """
        form, pictures = taken(frames_thwc, self.size)
        if self._form is not None and self.frames_in > self._scene and form != self._form:
            raise UsageError(
                f"the scene began with {self._form} frames, got {form}; call flush() before changing the format"
            )
        self._form = form
        self.frames_in += len(pictures)
        self._waiting += pictures
        done: list[Any] = []
        while len(self._waiting) >= (size := self._frames.group_frames(self._state.is_first)):
            group, self._waiting = self._waiting[:size], self._waiting[size:]
            self._state, more = self._frames.step(self._state, group)
            done += more
        return self._given(done)

    def flush(self) -> "Frames":
        """End the scene and return its pending frames; the next frame begins a new
        one."""
        done = self._given(self._frames.end(self._state, self._waiting))
        self._waiting = []
        self._scene = self.frames_in
        self._state = self._fresh()
        return done

    def save(self) -> bytes:
        """Return the state as safetensors, for ``open_stream(..., state=...)``; the
        stream itself can be continued."""
        import numpy as np
        import torch
        from safetensors.torch import save

        from ultraflash_cli.engine.stage import state_to_tensors

        form = self._form
        told = {
            "stream": self._facts,
            "frames_in": self.frames_in,
            "frames_out": self.frames_out,
            "scene": self._scene,
            "form": None if form is None else [form.kind, form.dtype, form.device],
        }
        tensors = state_to_tensors(self._state)
        if self._waiting:
            waiting = np.stack(self._waiting)
            tensors["waiting"] = torch.from_numpy(waiting if waiting.dtype == np.uint8 else waiting.view(np.int16))
        return save(tensors, metadata={"ultraflash": json.dumps(told)})

    def load(self, state: bytes) -> None:
        """Continue from the result of ``save`` of an equal stream; pending frames are
        dropped. Raises UsageError for the state of a different stream."""
        import numpy as np
        from safetensors import SafetensorError
        from safetensors.torch import load

        from ultraflash_cli.engine.layers.context import with_context
        from ultraflash_cli.engine.stage import state_from_tensors, state_leaves

        try:
            told = _metadata(state)
            tensors = load(state)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"the state was not returned by FrameStream.save ({error})") from error
        theirs = told["stream"]
        other = [name for name, value in self._facts.items() if theirs.get(name) != value]
        if other:
            raise UsageError(f"the state belongs to a stream with a different {', '.join(other)}")
        self.frames_in, self.frames_out = told["frames_in"], told["frames_out"]
        self._scene = told["scene"]
        self._form = None if told["form"] is None else Form(*told["form"])
        fresh = self._fresh()
        self._state = state_from_tensors(fresh, with_context(tensors, state_leaves(fresh)))
        self._waiting = []
        if (waiting := tensors.get("waiting")) is not None:
            frames = waiting.numpy()
            self._waiting = list(frames if frames.dtype == np.uint8 else frames.view(np.uint16))

    def begin_scene(self, frame: int = 0) -> None:
        """Begin a scene with frame number ``frame`` of the clip, regardless of the
        stream's position; pending frames are dropped. Raises UsageError for a negative
        number."""
        if frame < 0:
            raise UsageError(f"frame numbers start at 0, got {frame}")
        self.frames_in = self.frames_out = self._scene = frame
        self._waiting = []
        self._state = self._fresh()

    def _fresh(self) -> Any:
        return self._frames.init_state(seed=self._facts["seed"], first_frame=self._scene)

    def _given(self, pictures: Any) -> "Frames":
        from ultraflash_cli.models.frames import finished_picture

        done = [finished_picture(picture) for picture in pictures]
        self.frames_out += len(done)
        width, height = self.output_size
        return (self._form or Form("numpy", "uint8", "cpu")).give(done, (height, width))


def _metadata(content: bytes) -> dict[str, Any]:
    """Return the metadata that ``FrameStream.save`` stored in the header of a state."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return json.loads(header["__metadata__"]["ultraflash"])


def _values(options: Mapping[str, Any], known: type, function: str) -> dict[str, Any]:
    """Return options as fields of a job; None is the default, but no limit for `guard`.
    Raises TypeError for an unknown one."""
    names = known.__annotations__ | _SharedOptions.__annotations__
    for name in options:
        if name not in names:
            raise TypeError(f"{function}() has no option {name!r}; it has {', '.join(sorted(names))}")
    given = {name: value for name, value in options.items() if value is not None or name == "guard"}
    values: dict[str, Any] = given
    if "enc_opt" in values:
        values["enc_options"] = tuple((key, str(value)) for key, value in dict(values.pop("enc_opt")).items())
    if "temp_dir" in values:
        values["temp"] = Path(values.pop("temp_dir"))
    if "fps" in values:
        values["fps"] = Fraction(values["fps"]).limit_denominator(1001)
    return values


def _place(output: FilePath | None) -> dict[str, Path]:
    """Return an output as the corresponding field of a job."""
    if output is None:
        return {}
    return {"folder" if names_folder(output) else "output": Path(output)}


def _store() -> Path:
    return Settings.from_environment().home


def _ignore(*_: object) -> None:
    """Ignore the event."""
