"""What `ultraflash_cli.vapoursynth` names of VapourSynth, whose wheel needs Python 3.12."""

from concurrent.futures import Future
from fractions import Fraction
from types import TracebackType
from typing import Any, Final, Self

UNDEFINED: Final[int]
GRAY: Final[int]
RGB: Final[int]
YUV: Final[int]
INTEGER: Final[int]
FLOAT: Final[int]
RGB24: Final[int]
RGB48: Final[int]
YUV420P8: Final[int]
GRAY32: Final[int]

class Error(Exception): ...

class VideoFormat:
    id: int
    name: str
    color_family: int
    sample_type: int
    bits_per_sample: int
    subsampling_w: int
    subsampling_h: int
    num_planes: int

class VideoFrame:
    format: VideoFormat
    width: int
    height: int
    props: dict[str, Any]
    def __getitem__(self, plane: int) -> memoryview: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def copy(self) -> VideoFrame: ...

class VideoNode:
    format: VideoFormat | None
    width: int
    height: int
    num_frames: int
    fps: Fraction
    std: Any
    def __len__(self) -> int: ...
    def get_frame(self, n: int) -> VideoFrame: ...
    def get_frame_async(self, n: int) -> Future[VideoFrame]: ...

core: Any

def get_output(index: int = 0) -> Any: ...
