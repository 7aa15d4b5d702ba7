"""FFmpeg filter chains for frames, including those that undo interlacing, telecine and
chroma shifts."""

from fractions import Fraction
from math import floor

import av
import av.filter
from av import error

__all__ = ["FrameFilter", "chroma_places", "deinterlacer"]

_UNSPECIFIED = 2
_IN_8_BITS = {"fieldmatch", "decimate"}
"""Filters that compare 8-bit frames; for deeper ones they decide on an 8-bit copy."""
_8_BITS = {"yuv420p", "yuv422p", "yuv444p", "yuv411p"}
_CYCLE = 5
"""Number of frames out of which ``decimate`` drops one."""


class FrameFilter:
    """A chain of FFmpeg filters, built for the first frame and rebuilt when the format
    changes."""

    def __init__(self, *filters: tuple[str, str], threads: int = 1) -> None:
        self._filters = filters
        self._threads = threads
        self._key: tuple[object, ...] | None = None
        self._graph: av.filter.Graph | None = None
        self._count = 0
        self._last: av.VideoFrame | None = None  # held back if the filters would lose the last frame
        self._begun = 0  # frames pushed before this graph
        self._pulled = 0  # frames returned by this graph

    def push(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        """Push one frame and return the frames that are ready, in order. The timestamp
        of ``frame`` is overwritten."""
        ready: list[av.VideoFrame] = []
        key = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if key != self._key:
            ready += self.flush()
            self._graph = self._build(frame)
            self._key = key
            self._begun, self._pulled = self._count, 0
        assert self._graph is not None, "the graph was built above"
        # Primaries and transfer tags would make libswscale convert or fail; only the
        # matrix matters here.
        frame.color_primaries = _UNSPECIFIED
        frame.color_trc = _UNSPECIFIED
        frame.time_base = Fraction(1, 1000)
        frame.pts = self._count
        self._count += 1
        self._graph.vpush(frame)
        self._last = frame if self._compares_copies(frame) else None
        return ready + self._pull()

    def flush(self) -> list[av.VideoFrame]:
        """Close the graph and return the remaining frames; the next push starts a new
        one."""
        if self._graph is None:
            return []
        if self._last is None:
            self._graph.vpush(None)
            ready = self._pull()
        else:
            ready = self._pull_by_pushing(self._last)
        self._graph = self._last = None
        self._key = None
        return ready

    def _build(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = self._threads
        last = graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base="1/1000",
            frame_rate="1000/1",
            pixel_aspect="1/1",
            colorspace=str(frame.colorspace),
            range=str(frame.color_range),
        )

        for name, arguments in self._filters:
            looks_in_8_bits = name in _IN_8_BITS and self._compares_copies(frame)
            node = graph.add(name, f"{arguments}:ppsrc=1" if looks_in_8_bits else arguments)
            if looks_in_8_bits:
                both, coarse = graph.add("split"), graph.add("format", "pix_fmts=yuv420p")
                last.link_to(both)
                both.link_to(coarse, 0, 0)
                coarse.link_to(node, 0, 0)
                both.link_to(node, 1, 1)
            else:
                last.link_to(node)
            last = node

        last.link_to(graph.add("buffersink"))
        graph.configure()
        return graph

    def _compares_copies(self, frame: av.VideoFrame) -> bool:
        return frame.format.name not in _8_BITS and any(name in _IN_8_BITS for name, _ in self._filters)

    def _pull_by_pushing(self, last: av.VideoFrame) -> list[av.VideoFrame]:
        """Return the remaining frames without ending the stream, as filters with two
        inputs lose their last frame at the end."""
        assert self._graph is not None, "a graph to push to"
        pushed = self._count - self._begun
        drops = any(name == "decimate" for name, _ in self._filters)
        missing = pushed - self._pulled - (pushed // _CYCLE if drops else 0)
        ready: list[av.VideoFrame] = []
        while len(ready) < missing:
            last.pts = self._count
            self._count += 1
            self._graph.vpush(last)
            ready += self._pull()
        return ready[:missing]

    def _pull(self) -> list[av.VideoFrame]:
        assert self._graph is not None, "a graph to pull from"
        ready: list[av.VideoFrame] = []
        while True:
            try:
                ready.append(self._graph.vpull())
            except (error.BlockingIOError, error.EOFError):
                self._pulled += len(ready)
                return ready


def deinterlacer(mode: str | None, fields: bool) -> list[tuple[str, str]]:
    """Return the filters that turn fields into whole frames.

    ``mode`` is ``None``, ``"interlaced"`` (frames flagged so), ``"all"``, or ``"tff"``
    or ``"bff"`` (all, top or bottom field first, whatever their flags say); with
    ``fields`` each of those yields two frames. ``"matched-tff"`` and ``"matched-bff"``
    match fields of the same moment, and deinterlace frames that remain combed;
    ``"film5-tff"`` and ``"film5-bff"`` also drop one of every five frames,
    ``"film25-..."`` one of every 25.
    """
    if mode is None:
        return []
    kind, dash, order = mode.rpartition("-")
    if dash:
        matching = [
            ("fieldmatch", f"order={order}:mode=pc_n:combmatch=full"),
            ("bwdif", f"mode=send_frame:parity={order}:deint=interlaced"),
        ]
        cycle = kind.removeprefix("film")
        return [*matching, ("decimate", f"cycle={cycle}")] if cycle != kind else matching
    parity = mode if mode in ("tff", "bff") else "auto"
    frames = "interlaced" if mode == "interlaced" else "all"
    rate = "send_field" if fields else "send_frame"
    return [("bwdif", f"mode={rate}:parity={parity}:deint={frames}")]


def chroma_places(pix_fmt: str, location: str, shift: tuple[float, float]) -> tuple[list[tuple[str, str]], str]:
    """Return filters and libswscale options that undo a chroma shift in frames of a
    pixel format. ``location`` is the position of subsampled chroma without the shift. A
    filter moves whole samples, and the remainder is declared to libswscale as a chroma
    position.
    """
    form = av.VideoFormat(pix_fmt, 8, 8)
    across, down = 8 // form.chroma_width(), 8 // form.chroma_height()
    places = {"left": (0, 128), "center": (128, 128), "topleft": (0, 0), "top": (128, 0), "bottomleft": (0, 256)}
    usual = places.get(location, (128, 256))
    samples: list[int] = []
    rests: list[int] = []
    for moved, size, place in zip(shift, (across, down), usual, strict=True):
        whole = floor(moved / size + 0.5)
        samples.append(-whole)
        rests.append((place if size > 1 else 0) - round(256 * (moved - whole * size)))
    options = f"cbh={samples[0]}:crh={samples[0]}:cbv={samples[1]}:crv={samples[1]}:edge=smear"
    filters = [("chromashift", options)] if any(samples) else []
    return filters, f":in_h_chr_pos={rests[0]}:in_v_chr_pos={rests[1]}"
