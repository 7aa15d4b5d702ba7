"""A small stand-in for the module `vapoursynth`: 8-bit RGB clips whose frames are
computed on request."""

from collections.abc import Callable
from concurrent.futures import Future
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np

__all__ = ["as_module", "node"]

RGB24 = SimpleNamespace(
    id=1, name="RGB24", color_family=2, sample_type=0, bits_per_sample=8, num_planes=3, subsampling_w=0, subsampling_h=0
)


class Error(Exception):
    """Stand-in for VapourSynth's error."""


class VideoFrame:
    def __init__(self, planes: list[np.ndarray], props: dict[str, Any]) -> None:
        self.planes, self.props, self.format = planes, props, RGB24

    def __getitem__(self, plane: int) -> np.ndarray:
        return self.planes[plane]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class VideoNode:
    fps = Fraction(24)

    def __init__(self, size: tuple[int, int], frames: int, make: Callable[[int], VideoFrame]) -> None:
        self.width, self.height = size
        self.num_frames = frames
        self.format: Any = RGB24
        self._make = make

    def __len__(self) -> int:
        return self.num_frames

    def get_frame(self, n: int) -> VideoFrame:
        try:
            return self._make(n)
        except Exception as error:
            raise Error(f"Traceback\n{type(error).__name__}: {error}") from error

    def get_frame_async(self, n: int) -> "Future[VideoFrame]":
        return Future()  # never done: whoever needs it fetches it


def node(frames_thwc: np.ndarray, props: Callable[[int], dict[str, Any]] = lambda n: {}) -> Any:
    """Return a clip of frames [T, H, W, 3]."""

    def make(n: int) -> VideoFrame:
        return VideoFrame([frames_thwc[n, :, :, plane].copy() for plane in range(3)], {"made": n, **props(n)})

    return VideoNode((frames_thwc.shape[2], frames_thwc.shape[1]), len(frames_thwc), make)


def _derived(like: VideoNode, make: Callable[[int], VideoFrame]) -> VideoNode:
    return VideoNode((like.width, like.height), len(like), make)


def _blank(clip: VideoNode, *, width: int = 0, height: int = 0, **_: object) -> VideoNode:
    size = width or clip.width, height or clip.height
    return VideoNode(size, len(clip), lambda n: _frame(RGB24, *size))


def _frame(kind: object, width: int, height: int) -> VideoFrame:
    return VideoFrame([np.zeros((height, width), np.uint8) for _ in range(3)], {})


def _frame_eval(clip: VideoNode, function: Any, *, prop_src: VideoNode, clip_src: VideoNode) -> VideoNode:
    return _derived(clip, lambda n: function(n=n, f=prop_src.get_frame(n)).get_frame(n))


def _modify_frame(clip: VideoNode, clips: VideoNode, function: Any) -> VideoNode:
    return _derived(clip, lambda n: function(n=n, f=clips.get_frame(n)))


def _copy_props(clip: VideoNode, source: VideoNode) -> VideoNode:
    return _derived(clip, lambda n: VideoFrame(clip.get_frame(n).planes, dict(source.get_frame(n).props)))


def _remove_props(clip: VideoNode, name: str) -> VideoNode:
    def make(n: int) -> VideoFrame:
        frame = clip.get_frame(n)
        return VideoFrame(frame.planes, {key: value for key, value in frame.props.items() if key != name})

    return _derived(clip, make)


def _resize(clip: VideoNode, *, format: int, **_: object) -> VideoNode:
    assert format == RGB24.id, "no other format is pretended"
    return clip


def as_module() -> ModuleType:
    """Return the stand-in, for ``sys.modules``."""
    std = SimpleNamespace(
        BlankClip=_blank,
        FrameEval=_frame_eval,
        ModifyFrame=_modify_frame,
        CopyFrameProps=_copy_props,
        RemoveFrameProps=_remove_props,
        SetVideoCache=lambda clip, **_: None,
    )
    core = SimpleNamespace(
        std=std,
        resize=SimpleNamespace(Bicubic=_resize),
        num_threads=1,
        create_video_frame=_frame,
        get_video_format=lambda kind: RGB24,
    )
    module: Any = ModuleType("vapoursynth")
    names = {"core": core, "Error": Error, "VideoNode": VideoNode, "RGB24": RGB24.id, "RGB48": 2}
    names |= {"UNDEFINED": 0, "GRAY": 1, "RGB": 2, "YUV": 3, "INTEGER": 0, "FLOAT": 1}
    vars(module).update(names)
    return module
