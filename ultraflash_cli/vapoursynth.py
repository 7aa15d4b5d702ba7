"""A filter for VapourSynth scripts.

    import vapoursynth as vs
    from ultraflash_cli.vapoursynth import upscale

    clip = vs.core.bs.VideoSource("in.mkv")
    upscale(clip, scale=2).set_output()

The module imports VapourSynth and torch when ``upscale`` is called.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ultraflash_cli.api import open_stream
from ultraflash_cli.errors import UltraflashError, UsageError
from ultraflash_cli.jobs.planning.guarding import GUARD_LEVELS
from ultraflash_cli.seeking import CausalStream, Picture, SeekableStream

if TYPE_CHECKING:
    from concurrent.futures import Future

    import vapoursynth as vs

__all__ = ["upscale", "upscale_with"]

_UNSPECIFIED = 2
_FINISHED = 16
"""Number of finished frames kept, in addition to one per VapourSynth thread."""
_SOURCES = 32
"""Number of source frames kept, in addition to two per thread."""


def upscale(
    clip: "vs.VideoNode",
    *,
    scale: int = 2,
    model: str = "lite",
    detail: float = 1.0,
    strength: float = 1.0,
    guard: float | None = GUARD_LEVELS,
    match_colors: bool = True,
    cuts: bool = True,
    seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    threads: int | None = None,
) -> "vs.VideoNode":
    """Return a clip ``scale`` times as large, in the same format and with the same
    number of frames and frame properties.

    The format must be constant: YUV, RGB or grey, 8 to 16 bits or float. The model
    reads RGB of 16 bits (8 bits from RGB24); VapourSynth's ``resize`` converts there
    and back according to the properties of each frame. Without ``_Matrix`` that is
    BT.601 up to 576 lines of fewer than 1280 pixels, else BT.709.

        clip = upscale(clip, scale=2, detail=0.5)

    Frames may be requested in any order and have the same pixels as in playing order.
    After a seek the model starts at the last scene cut before the frame, or at a saved
    state. Scenes begin where the program finds cuts (unless ``cuts=False``), and at
    frames with ``_SceneChangePrev``.

    Args:
        clip: progressive frames, W x H pixels; the result has scale * W x scale * H.
        scale: factor on width and height.
        model, detail, strength, guard, match_colors, seed, device, precision, threads:
            as in ``ultraflash_cli.open_stream``; detail and strength from 0 to 1, guard
            in levels of 255, threads of the model on a CPU.
        cuts: whether to detect scene cuts, at which the model is reset.

    Raises vapoursynth.Error for an unsupported clip or option, and for a device or
    weights that are not available. Frames also raise it, for an interlaced clip or when
    out of memory.
    """
    vs = _vapoursynth()
    try:
        _check(vs, clip)
        stream = open_stream(
            (clip.width, clip.height),
            scale=scale,
            model=model,
            detail=detail,
            strength=strength,
            guard=guard,
            match_colors=match_colors,
            seed=seed,
            device=device,
            precision=precision,
            threads=threads,
        )
        return upscale_with(clip, stream, stream.output_size, cuts=cuts)
    except UltraflashError as error:
        raise vs.Error(f"ultraflash: {error}") from error


def upscale_with(
    clip: "vs.VideoNode", stream: CausalStream, size: tuple[int, int], *, cuts: bool = True
) -> "vs.VideoNode":
    """Return a clip of the frames produced by ``stream``, of ``size`` (width, height)
    pixels; otherwise like ``upscale``. The stream takes and returns RGB [T, H, W, 3],
    uint8 from RGB24 and uint16 from other formats, and is used only by this clip."""
    vs = _vapoursynth()
    _check(vs, clip)
    core = vs.core
    width, height = size
    source_format = clip.format
    assert source_format is not None, "checked"
    is_rgb = source_format.color_family == vs.RGB
    rgb_format = vs.RGB24 if source_format.id == vs.RGB24 else vs.RGB48

    # The _Alpha property has the old size. Each frame is needed twice: its pixels
    # early, its properties late.
    source = core.std.RemoveFrameProps(clip, "_Alpha")
    core.std.SetVideoCache(source, mode=1, fixedsize=True, maxsize=2 * core.num_threads + _SOURCES)
    # RGB assembled from YUV planes may still have their matrix property, which resize
    # rejects.
    plain = core.std.RemoveFrameProps(source, "_Matrix") if is_rgb else source

    def to_rgb(n: int, f: "vs.VideoFrame") -> "vs.VideoNode":
        matrix = 0 if is_rgb else _matrix(f.props, clip)
        return core.resize.Bicubic(plain, format=rgb_format, matrix_in=matrix, range=1)

    small = core.std.BlankClip(clip, format=rgb_format, keep=True)
    rgb = core.std.FrameEval(small, to_rgb, prop_src=source, clip_src=plain)
    threads = core.num_threads
    frames = SeekableStream(stream, _Reader(rgb, threads), len(clip), cuts=cuts, kept_frames=threads + _FINISHED)

    blank = core.std.BlankClip(clip, width=width, height=height, format=rgb_format, keep=True)
    large = core.std.ModifyFrame(blank, blank, _frame_maker(vs, frames, size, rgb_format))
    large = core.std.CopyFrameProps(large, rgb)

    def from_rgb(n: int, f: "vs.VideoFrame") -> "vs.VideoNode":
        told: dict[str, int] = {"range": _range(f.props, is_rgb=is_rgb)}
        if not is_rgb:
            told["matrix"] = _matrix(f.props, clip)
        if "_ChromaLocation" in f.props and (source_format.subsampling_w or source_format.subsampling_h):
            told["chromaloc"] = int(f.props["_ChromaLocation"])
        return core.resize.Bicubic(large, format=source_format.id, **told)

    shape = core.std.BlankClip(clip, width=width, height=height, keep=True)
    result = core.std.FrameEval(shape, from_rgb, prop_src=source, clip_src=large)
    return core.std.CopyFrameProps(result, source)


def _frame_maker(
    vs: Any, frames: SeekableStream, size: tuple[int, int], rgb_format: int
) -> "Callable[[int, vs.VideoFrame], vs.VideoFrame]":
    """Return the function that makes a clip's frames from those of a stream."""
    import numpy as np

    kind = vs.core.get_video_format(rgb_format)

    def make(n: int, f: "vs.VideoFrame") -> "vs.VideoFrame":
        try:
            pixels = frames.frame(n)
        except (UltraflashError, vs.Error) as error:
            # VapourSynth also shows the traceback; chained errors would add nothing to
            # it.
            reason = str(error).strip().splitlines()[-1].removeprefix("vapoursynth.Error: ")
            raise vs.Error(reason if reason.startswith("ultraflash: ") else f"ultraflash: {reason}") from None
        made = vs.core.create_video_frame(kind, *size)
        for plane in range(3):
            np.copyto(np.asarray(made[plane]), pixels[..., plane])
        return made

    return make


class _Reader:
    """Reads the frames of an RGB clip, prefetching when they are read in order."""

    def __init__(self, rgb: "vs.VideoNode", ahead: int) -> None:
        self._rgb = rgb
        self._ahead = ahead
        self._coming: dict[int, Future[vs.VideoFrame]] = {}
        self._last = -1

    def __call__(self, number: int) -> Picture:
        import numpy as np

        coming = self._coming.pop(number, None)
        if number != self._last + 1:
            self._coming.clear()
        else:
            for ahead in range(number + 1, min(number + 1 + self._ahead, self._rgb.num_frames)):
                if ahead not in self._coming:
                    self._coming[ahead] = self._rgb.get_frame_async(ahead)
        self._last = number
        # VapourSynth runs another thread of its pool while get_frame waits, but not
        # while waiting for a future.
        frame = coming.result() if coming is not None and coming.done() else self._rgb.get_frame(number)
        with frame:
            if field := int(frame.props.get("_FieldBased", 0)):
                raise UsageError(
                    f"frame {number} is interlaced (_FieldBased is {field}), expected progressive frames; deinterlace "
                    "the clip first, or correct a wrong flag with core.std.SetFieldBased(clip, 0)"
                )
            pixels = np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1)
            return Picture(pixels, bool(frame.props.get("_SceneChangePrev", 0)))


def _check(vs: Any, clip: "vs.VideoNode") -> None:
    """Raise UsageError for a clip that cannot be upscaled."""
    if not isinstance(clip, vs.VideoNode):
        raise UsageError(f"expected a video clip, got {type(clip).__name__}")
    kind = clip.format
    if kind is None or kind.color_family == vs.UNDEFINED or not clip.width or not clip.height:
        raise UsageError(
            "the clip changes its format or size; convert it to a constant one, such as "
            "core.resize.Bicubic(clip, width=1280, height=720, format=vs.YUV420P8)"
        )
    bits = kind.bits_per_sample
    if kind.color_family not in (vs.YUV, vs.RGB, vs.GRAY) or (kind.sample_type == vs.INTEGER and bits > 16):
        raise UsageError(
            f"the clip is {kind.name}; expected YUV, RGB or grey, 8 to 16 bits or float; convert it, for example "
            "with core.resize.Bicubic(clip, format=vs.YUV444P16)"
        )


def _matrix(props: Mapping[str, Any], clip: "vs.VideoNode") -> int:
    """Return the matrix of a YUV frame, numbered as in H.273."""
    matrix = int(props.get("_Matrix", _UNSPECIFIED))
    if matrix not in (0, _UNSPECIFIED):
        return matrix
    if clip.height > 576 or clip.width >= 1280:
        return 1
    return 5 if clip.height == 576 else 6


def _range(props: Mapping[str, Any], *, is_rgb: bool) -> int:
    """Return 1 for a full-range frame, 0 for limited range."""
    if "_Range" in props:
        return int(props["_Range"])
    # The older property has the opposite values.
    return 1 - int(props.get("_ColorRange", 0 if is_rgb else 1))


def _vapoursynth() -> Any:
    try:
        import vapoursynth
    except ImportError as error:
        raise UsageError(
            f"VapourSynth cannot be imported ({error}); it needs Python 3.12 or newer and "
            "`pip install '.[vapoursynth]'`"
        ) from error
    return vapoursynth
