"""Open sources (a file, numbered images or a pipe) and decode their packets."""

import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import av
import av.logging
from av.codec.context import CodecContext
from av.container import InputContainer
from av.container.core import Flags
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.refusals import why_unreadable
from ultraflash_cli.video.sequence import ImageSequence
from ultraflash_cli.video.tags import NOT_UTF8

__all__ = [
    "LARGEST_PIXELS",
    "Source",
    "Tally",
    "decoded_frames",
    "decoder_of",
    "has_decoder",
    "late_streams",
    "main_videos",
    "open_input",
    "read_packets",
    "source_path",
]

Source = Path | ImageSequence | Pipe
"""Sources that a clip can be read from."""

LARGEST_PIXELS = 1 << 27
"""Maximum frame size, checked in the header before a frame takes gigabytes: 16,384 x
8,192 pixels."""

_REFUSED_FORMATS = {"ansi", "applehttp", "concat", "dash", "hls", "imf", "lavfi", "rtsp", "sdp", "tty"}
"""Formats that list other files, or text; FFmpeg would read almost anything as
``tty``."""

_LOOK_AHEAD = {"probesize": "50000000", "analyzeduration": "600000000"}
"""Maximum bytes and microseconds to read until all streams of a file are known. Audio
and subtitles of recordings may start late, and streams not found by then are ignored.
The data are kept in memory until used."""
_LOOK_AHEAD_OF_PIPES = {"probesize": "10000000", "analyzeduration": "60000000"}
_FEW_PACKETS = 2
"""Number of packets that distinguish video from a picture."""
_SEARCH_BYTES = 20_000_000

_FORMATS = {"format_whitelist": ",".join(sorted(av.formats_available - _REFUSED_FORMATS))}
_READING = {**_FORMATS, "protocol_whitelist": "file", "pattern_type": "none"}
_LISTED = re.compile(r"Stream #\d+:(\d+)[^:\n]*: (\w+: \w+)")
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders for codecs whose native FFmpeg decoder drops transparency."""


def source_path(source: Source) -> Path:
    """Return the name of a source, for messages and for the default output name."""
    if isinstance(source, Pipe):
        return Path(source.name)
    return source if isinstance(source, Path) else source.path


@contextmanager
def open_input(source: Source, *, last: bool = False) -> Generator[InputContainer]:
    """Open ``source`` for reading; raises ``InputError`` with a one-line message if
    that fails. With ``last``, a pipe is opened to read its frames and its buffer is
    released, unless it is spooled: then other readers follow this one and wait for it.
    """
    path = source_path(source)
    try:
        container = _opened(source, last)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, FFmpegError, ValueError) as error:
        raise InputError(f"{path}: {why_unreadable(source, error)}") from error
    with container:
        container.flags &= ~Flags.gen_pts.value  # it guesses wrong for reordered frames
        yield container


def main_videos(source: Source) -> list[int]:
    """Rank the video streams of a source and return their indices, starting with the
    one that players show. The criteria are, in this order: it can be decoded, has
    packets, has more than one, is marked as default, is the largest. Covers and
    thumbnails are excluded. Raises ``InputError`` like ``open_input``.
    """
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    with open_input(source) as container:
        candidates = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if len(candidates) < 2:
            return [stream.index for stream in candidates]
        found = _first_packets(container, candidates)

        def rank(stream: VideoStream) -> tuple[bool, int, bool, int]:
            known = has_decoder(stream)
            size = stream.codec_context.width * stream.codec_context.height if known else 0
            return known, found[stream.index], bool(stream.disposition & Disposition.default), size

        return [stream.index for stream in sorted(candidates, key=rank, reverse=True)]


def _first_packets(container: InputContainer, streams: list[VideoStream]) -> Counter[int]:
    """Count the packets of each stream, up to a few, from the index or else by
    reading."""
    counts = Counter({stream.index: min(stream.frames, _FEW_PACKETS) for stream in streams})
    missing = [stream for stream in streams if not stream.frames]
    read = 0
    try:
        for packet in read_packets(container, missing) if missing else ():
            read += packet.size
            index = packet.stream_index
            counts[index] = min(counts[index] + bool(packet.size), _FEW_PACKETS)
            if read > _SEARCH_BYTES or all(counts[stream.index] == _FEW_PACKETS for stream in streams):
                break
    except (OSError, FFmpegError):
        return counts  # unreadable packets count as missing
    return counts


def late_streams(container: InputContainer) -> tuple[str, ...]:
    """Return the names of streams that appeared while ``container`` was read; PyAV
    returns none of their packets."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        # Missing in the type hints.
        listed = cast("_Listed", container).dumps_format()
    finally:
        av.logging.set_level(level)
    found = sorted((int(index), words.lower().replace(":", "")) for index, words in _LISTED.findall(listed))
    return tuple(f"stream {index} {words}" for index, words in found if index >= len(container.streams))


def read_packets(container: InputContainer, streams: Sequence[Stream]) -> Iterator[Packet]:
    """Demux streams to the end of the file. If other streams appeared meanwhile, PyAV
    fails after the last packet."""
    packets = container.demux(list(streams))
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):
            return
        yield packet


class _Listed(Protocol):
    def dumps_format(self) -> str: ...


def has_decoder(stream: Stream) -> bool:
    """Return whether the built-in FFmpeg knows the codec of ``stream``."""
    # PyAV's type hints do not say that streams without a known decoder have no context.
    return getattr(stream, "codec_context", None) is not None


def decoder_of(stream: VideoStream, *, alpha: bool) -> VideoCodecContext:
    """Return the decoder for ``stream``, which is not the usual one if only another
    decodes transparency."""
    own = stream.codec_context
    own.options = {"max_pixels": str(LARGEST_PIXELS)}
    name = _ALPHA_DECODERS.get(own.codec.canonical_name) if alpha else None
    if name is None or name not in av.codecs_available:
        return own
    decoder = CodecContext.create(name, "r")
    assert isinstance(decoder, VideoCodecContext), "a video decoder"
    decoder.extradata = own.extradata
    decoder.options = own.options
    return decoder


@dataclass
class Tally:
    """Counts of a stream's packets."""

    packets: int = 0
    failures: int = 0
    """Number of packets that could not be read or decoded."""
    encrypted: bool = False


def decoded_frames(
    container: InputContainer,
    stream: VideoStream,
    decoder: VideoCodecContext,
    tally: Tally,
    *,
    packets: Iterator[Packet] | None = None,
    patience: int | None = None,
    head: list[Packet] | None = None,
) -> Iterator[av.VideoFrame]:
    """Decode a stream to its end, skipping damaged packets; ``tally`` counts them.
    ``packets`` replaces the stream's own packets. It stops after ``patience`` packets
    without a frame. ``head`` is called with the first packet.
    """
    found = False
    packets = read_packets(container, [stream]) if packets is None else packets
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except (OSError, FFmpegError):
            tally.failures += 1
            break

        if not packet.size:
            continue

        tally.packets += 1
        if head is not None and not head:
            head.append(packet)
        tally.encrypted = tally.encrypted or packet.has_sidedata("encryption_info")
        try:
            frames = decoder.decode(packet)
        except FFmpegError:
            tally.failures += 1
            continue

        found = found or bool(frames)
        yield from frames
        if patience is not None and not found and tally.packets >= patience:
            return
    try:
        yield from decoder.decode(None)
    except FFmpegError:
        return


def _opened(source: Source, last: bool) -> InputContainer:
    if isinstance(source, ImageSequence):
        options = {
            **_FORMATS,
            "protocol_whitelist": "file",
            "pattern_type": "sequence",
            "start_number": str(source.first),
            "framerate": str(source.rate),
        }
        return av.open(source.pattern, format="image2", metadata_errors=NOT_UTF8, container_options=options)
    if isinstance(source, Pipe) and source.whole_file is None:
        options = _FORMATS | _LOOK_AHEAD_OF_PIPES
        # A second reader follows the first one that reads everything.
        reader = source.follower() if source.is_spooled and not last else source.reader(last=last)
        return av.open(reader, "r", metadata_errors=NOT_UTF8, container_options=options)

    path = source.whole_file if isinstance(source, Pipe) else source
    assert path is not None, "a file to read"
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a video file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)")

    # "file:" keeps names with a colon from being taken for a protocol.
    return av.open(f"file:{path}", metadata_errors=NOT_UTF8, container_options=_READING | _LOOK_AHEAD)
