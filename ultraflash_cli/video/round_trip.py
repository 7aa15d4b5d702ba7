"""In-memory round trips of short clips through chroma subsampling and real codecs, for training data."""

import io
from fractions import Fraction

import av
import av.filter
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

__all__ = ["KERNELS", "shrink_and_compress"]

KERNELS = {
    "area": Interpolation.AREA,
    "bilinear": Interpolation.BILINEAR,
    "bicubic": Interpolation.BICUBIC,
    "lanczos": Interpolation.LANCZOS,
}
"""Scaling kernels by name."""


def shrink_and_compress(
    frames_thwc: npt.NDArray[np.uint8],
    *,
    height: int,
    width: int,
    kernel: str,
    codec: str | None = None,
    options: dict[str, str] | None = None,
) -> npt.NDArray[np.uint8]:
    """Scale RGB frames [T, H, W, 3] to 4:2:0 at ``height`` x ``width`` and, with a
    codec, encode and decode them. Returns RGB frames as shown by a player with full
    chroma interpolation. ``options`` are passed to the encoder.
    """
    small = [
        av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
            width=width, height=height, format="yuv420p", interpolation=KERNELS[kernel]
        )
        for frame in frames_thwc
    ]
    if codec is not None:
        small = _through_codec(small, codec, options or {}, width, height)
    graph = av.filter.Graph()
    layout = av.VideoFormat("yuv420p", width, height)
    source = graph.add_buffer(width=width, height=height, format=layout, time_base=Fraction(1, 25))
    scale = graph.add("scale", "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp")
    to_rgb = graph.add("format", "rgb24")
    sink = graph.add("buffersink")
    graph.link_nodes(source, scale, to_rgb, sink).configure()

    shown: list[npt.NDArray[np.uint8]] = []
    for i, frame in enumerate(small):
        frame.pts, frame.time_base = i, Fraction(1, 25)
        source.push(frame)
        pulled = sink.pull()
        assert isinstance(pulled, av.VideoFrame), "a video graph gives video frames"
        shown.append(pulled.to_ndarray().astype(np.uint8, copy=False))

    return np.stack(shown)


def _through_codec(
    frames: list[av.VideoFrame], codec: str, options: dict[str, str], width: int, height: int
) -> list[av.VideoFrame]:
    memory = io.BytesIO()
    with av.open(memory, "w", format="matroska") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, av.VideoStream), f"{codec} is no video codec"
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for i, frame in enumerate(frames):
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    memory.seek(0)
    with av.open(memory, "r") as back:
        decoded = list(back.decode(video=0))
    assert len(decoded) == len(frames), "a codec round trip keeps every frame"
    return decoded
