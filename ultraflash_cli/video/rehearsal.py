"""Trial runs of the muxer on the start of the input, to find rejected streams before
any frame is computed."""

from collections import Counter
from contextlib import suppress
from fractions import Fraction
from io import SEEK_CUR, SEEK_END

import av
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError

from ultraflash_cli.errors import OutputError
from ultraflash_cli.video.containers import FORMATS, StreamPlan, tick_of
from ultraflash_cli.video.copies import Copy, add_copies, copied_packets
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.probe import ClipInfo
from ultraflash_cli.video.source import open_input

__all__ = ["rehearse"]

_PACKETS = 3
"""Number of packets per stream; the first ones are typical of its codec."""
_MOST_PACKETS = 3000
_MOST_BYTES = 20_000_000


def rehearse(info: ClipInfo, plan: StreamPlan) -> dict[int, str]:
    """Mux the first packets of each stream to be copied, one stream at a time, and discard the result.

    Return the reasons why the container rejects streams, by index.
    """
    kept = (*plan.copied, *(converted.stream for converted in plan.converted))
    wanted = {stream.index for stream in kept if not stream.is_picture and stream.kind != "attachment"}
    if not wanted or plan.suffix not in FORMATS or isinstance(info.source, Pipe):
        return {}
    refused: dict[int, str] = {}
    trials: dict[int, OutputContainer] = {}
    copies: dict[int, Copy] = {}
    with open_input(info.source) as source:
        for index in sorted(wanted):
            trials[index] = av.open(_Nowhere(), "w", format=FORMATS[plan.suffix])
            try:
                added = add_copies(trials[index], info, plan, source.streams[index])
                assert added is not None, "neither a picture nor an attachment"
                trials[index].start_encoding()
            except (OSError, FFmpegError, OutputError, ValueError) as error:
                refused[index] = _why(plan, error)
            else:
                copies[index] = added

        _mux_head(source, plan, copies, trials, refused)
        for index, trial in trials.items():
            try:
                trial.close()
            except (OSError, FFmpegError, ValueError) as error:
                refused.setdefault(index, _why(plan, error))
    return refused


def _mux_head(
    source: InputContainer,
    plan: StreamPlan,
    copies: dict[int, Copy],
    trials: dict[int, OutputContainer],
    refused: dict[int, str],
) -> None:
    of_stream = {id(copy.stream): index for index, copy in copies.items()}
    counts: Counter[int] = Counter()
    size = 0
    packets = copied_packets(source, copies, Fraction(0), None, strict=tick_of(plan.suffix) is None)
    with suppress(OSError, FFmpegError):  # an error of the input, which is reported elsewhere
        for number, packet in enumerate(packets):
            index = of_stream[id(packet.stream)]
            counts[index] += 1
            size += packet.size
            if index not in refused and counts[index] <= _PACKETS:
                try:
                    trials[index].mux_one(packet)
                except (OSError, FFmpegError, ValueError) as error:
                    refused[index] = _why(plan, error)
            enough = all(counts[each] >= _PACKETS or each in refused for each in copies)
            if enough or number >= _MOST_PACKETS or size >= _MOST_BYTES:
                return


def _why(plan: StreamPlan, error: Exception) -> str:
    words = (getattr(error, "strerror", None) or str(error)).lower()
    return f"the {plan.suffix} muxer refuses it ({words})"


class _Nowhere:
    """A file that discards everything written to it."""

    def __init__(self) -> None:
        self._place = 0
        self._size = 0

    def write(self, content: bytes) -> int:
        self._place += len(content)
        self._size = max(self._size, self._place)
        return len(content)

    def seek(self, place: int, whence: int = 0) -> int:
        self._place = place + {SEEK_CUR: self._place, SEEK_END: self._size}.get(whence, 0)
        return self._place

    def tell(self) -> int:
        return self._place
