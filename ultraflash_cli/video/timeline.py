"""One clock for all streams of a file: repairs restarts, jumps and wrong timestamps packet by packet."""

from collections import Counter, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition, Stream

from ultraflash_cli.video.continuity import REORDERED, Track, is_dense
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.repairs import Repairs
from ultraflash_cli.video.source import Source, open_input, read_packets

__all__ = ["Timeline", "survey", "timed_packets"]

_STEPPING = {"flv", "live_flv", "matroska,webm", "mpeg", "mpegts", "ogg", "wtv"}
"""Containers whose packets carry timestamps; the others have an index or count frames."""
_BROADCAST = {"mpeg", "mpegts"}
"""Containers whose clock may change within the file."""
_WRAP_TICKS = 1 << 33
_LONGEST_GAP_S = 120
"""If all streams of a broadcast jump further ahead, the clock has changed; a shorter
jump is a pause."""
_LONGEST_RUN_S = 1.5
"""Longest run of wrong timestamps: more than the audio of one packet of a broadcast."""
_WAIT_S = 3.0
"""Maximum delay of the other streams behind the first at a clock restart."""
_NEAR_S = 5.0
"""Streams on the same clock are this close to each other in the file."""
_LATEST_S = 60.0
_AHEAD_PACKETS = 4000
_AHEAD_BYTES = 1 << 26
_MOST_REPAIRS = 5000
"""A file that needs more has no usable clock."""
_LEADING = 20
"""Number of packets at the start of a clock that include the one shown first."""


def timed_packets(
    container: InputContainer, wanted: Collection[int], repairs: Repairs | None = None
) -> Iterator[Packet]:
    """Yield packets of the ``wanted`` streams in file order, with timestamps on one
    clock. The mapping from the file's clock depends only on the packets of all streams,
    so that every reader gets the same times, whichever streams it reads. ``repairs`` is
    filled in while reading. Raises ``FFmpegError`` after the last packet that can be
    read.
    """
    if container.format.name not in _STEPPING:
        yield from container.demux([container.streams[index] for index in sorted(wanted)])
        return
    for packet in Timeline(container, wanted, repairs if repairs is not None else Repairs()):
        if packet.stream_index in wanted:
            yield packet


def survey(source: Source, index: int, *, thorough: bool = False) -> tuple[int, int] | None:
    """Read a whole broadcast to find the start and end of its stream ``index``, in
    ticks of the repaired clock. None if nothing had to be repaired, so that the
    container's values are right; for pipes; and for containers whose clock rarely
    jumps, unless ``thorough``.
    """
    if isinstance(source, Pipe):
        return None
    repairs = Repairs()
    start = end = None
    with open_input(source) as container:
        if container.format.name not in (_STEPPING if thorough else _BROADCAST):
            return None
        timeline = Timeline(container, {index}, repairs)
        try:
            for packet in timeline:
                if packet.stream_index == index and packet.pts is not None:
                    start = packet.pts if start is None else min(start, packet.pts)
        except (OSError, FFmpegError):
            pass
        end = timeline.end_of(index)
    return (start, end) if repairs and start is not None and end is not None else None


@dataclass
class _Epoch:
    """A clock of the file, which lasts from its start or a restart to the next
    restart."""

    offset_s: Fraction
    """Offset added to the file's time, in seconds."""
    now_s: float = 0.0
    """The latest timestamp on it, in the file's time."""


class Timeline:
    """Iterates over a file's packets and repairs their timestamps.

    A packet that continues its stream passes unchanged. Otherwise the iterator looks
    ahead: a single wrong timestamp (or those of one broadcast packet) is moved between
    its neighbours; if the stream stays at different times, the clock has restarted, and
    all streams that follow get a common shift, with which none of them overlaps its
    earlier part.
    """

    def __init__(self, container: InputContainer, wanted: Collection[int], repairs: Repairs) -> None:
        self._repairs = repairs
        self._broadcast = container.format.name in _BROADCAST
        stores_decoding = self._broadcast or container.format.name in ("flv", "live_flv")
        streams = [stream for stream in container.streams if stream.index in wanted or _has_times(stream)]
        self._tracks = {s.index: Track(s, by_decoding=stores_decoding) for s in streams if _has_times(s)}
        self._dense = [track for track in self._tracks.values() if is_dense(track.kind)]
        self._epochs = [_Epoch(Fraction(0))]
        self._source = read_packets(container, streams)
        self._ahead: deque[Packet] = deque()
        self._ahead_bytes = 0
        self._failure: Exception | None = None
        self._skew_s = 0.0

    def __iter__(self) -> Iterator[Packet]:
        while True:
            packet = self._next()
            if packet is None:
                break
            track = self._tracks.get(packet.stream_index)
            if track is not None and packet.size and not packet.is_discard:
                if is_dense(track.kind) and self._repairs.count < _MOST_REPAIRS:
                    self._time(track, packet)
                elif len(self._epochs) > 1:
                    track.shift(packet, track.offset if is_dense(track.kind) else self._sparse_offset(track, packet))
            yield packet
        if self._failure is not None:
            raise self._failure

    def end_of(self, index: int) -> int | None:
        """Return the end of a stream so far, in its ticks; None before its first packet."""
        track = self._tracks.get(index)
        return None if track is None or track.last is None else track.end

    # Reading ahead

    def _next(self) -> Packet | None:
        if not self._ahead and not self._pull():
            return None
        packet = self._ahead.popleft()
        self._ahead_bytes -= packet.size
        return packet

    def _pull(self) -> bool:
        """Read one more packet; False at the end or if enough has been read ahead."""
        if self._failure is not None or len(self._ahead) >= _AHEAD_PACKETS or self._ahead_bytes >= _AHEAD_BYTES:
            return False
        try:
            packet = next(self._source, None)
        except (OSError, FFmpegError) as failure:
            self._failure = failure
            return False
        if packet is None:
            return False
        track = self._tracks.get(packet.stream_index)
        if self._broadcast and track is not None:
            places = [other.seen if other.last is None else other.last for other in self._dense]
            others = next((place for place in places if place is not None), None)
            track.unwrap(packet, _WRAP_TICKS, others)
        self._ahead.append(packet)
        self._ahead_bytes += packet.size
        return True

    def _coming(self) -> Iterator[tuple[Track, Packet, int]]:
        """Return the next audio and video packets, with the timestamps to compare."""
        place = 0
        while place < len(self._ahead) or self._pull():
            packet = self._ahead[place]
            place += 1
            track = self._tracks.get(packet.stream_index)
            if track is None or not is_dense(track.kind) or not packet.size or packet.is_discard:
                continue
            stamp = track.stamp(packet)
            if stamp is not None:
                yield track, packet, stamp

    # Deciding

    def _time(self, track: Track, packet: Packet) -> None:
        """Put an audio or video packet on the repaired clock."""
        stamp = track.stamp(packet)
        if stamp is None:
            track.shift(packet, track.offset)
            return

        if track.last is None:
            self._begin(track, stamp)
            wrong = self._first_is_wrong(track, packet, stamp)
        else:
            leap = track.leap(stamp, packet)
            wrong = self._after_leap(track, packet, stamp, leap) if leap else None
            if not leap:
                self._measure_skew(track, stamp)

        had_time = packet.pts is not None
        if wrong is not None and track.is_shuffled:
            track.shift(packet, track.offset)  # the time of its frame is determined when it is decoded
            return

        if wrong is not None:
            self._repairs.outliers += 1
            track.replace(packet, wrong)
        else:
            late = track.is_shown_late(packet, stamp) and self._stays_alone(track, packet, stamp)
            self._repairs.outliers += track.accept(packet, stamp, late=late)
            self._epochs[track.epoch].now_s = stamp * track.unit_s
        self._repairs.untimed += had_time and packet.pts is None

    def _stays_alone(self, track: Track, packet: Packet, stamp: int) -> bool:
        """Return whether a packet is shown later than all following ones, although some
        of them must be shown after it."""
        assert packet.pts is not None, "a packet that is shown late"
        coming = (later.pts for other, later, _ in self._coming() if other is track and later.pts is not None)
        following = list(islice(coming, REORDERED))
        far = len(following) == REORDERED or (packet.pts - stamp) * track.unit > _LATEST_S
        return far and max(following, default=stamp) < packet.pts

    def _begin(self, track: Track, stamp: int) -> None:
        """Move a stream that starts late to the clock of the others."""
        for number, epoch in reversed(list(enumerate(self._epochs))):
            if number and abs(float(stamp * track.unit) - epoch.now_s) <= _NEAR_S:
                track.move_to(number, epoch.offset_s)
                return

    def _first_is_wrong(self, track: Track, packet: Packet, stamp: int) -> int | None:
        """Return the correct timestamp of a stream's first packet; None if its own is
        plausible."""
        if track.is_shuffled:
            ahead = self._following(track)
            return min(ahead) if len(ahead) == REORDERED and max(ahead) < stamp else None
        probe = track.walker(packet, stamp)
        following: list[int] = []
        for other, later, found in self._coming():
            if other is track:
                leap = probe.leap(found, later)
                if following:
                    if leap:
                        return None
                    probe.go_on(later, found)
                else:
                    if not leap or 0 < leap * track.unit < 2 * _NEAR_S:
                        return None
                    probe = track.walker(later, found)
                following.append(found)
                if len(following) == 3:
                    return following[0] - track.lasts(packet)
        return None

    def _after_leap(self, track: Track, packet: Packet, stamp: int, leap: int) -> int | None:
        """Decide about a packet at an unexpected time. Returns the correct timestamp if
        its own is wrong, None if it is kept. Moves the track to another clock if the
        clock has changed.
        """
        base = track.base
        assert base is not None, "a stream that was seen before"
        if track.is_shuffled:
            return self._after_shuffled_leap(track, packet, stamp, leap)
        if self._join(track, stamp):
            return None
        run, elapsed, after = self._run(track, packet, stamp)
        returns = after is not None and base - track.slack <= after and (leap < 0 or after < stamp)
        if returns and after is not None and elapsed * track.unit <= _LONGEST_RUN_S:
            return base + round(Fraction((after - base) * track.step, elapsed + track.step))
        if leap > 0:
            if run == 1 and after is None and self._is_lost(track, stamp, leap):
                return base + track.step
            self._after_jump(track, packet, stamp, leap)
            return None
        starts = self._others_leaping(track, packet, stamp)
        if run == 1 and after is None and len(starts) == 1:
            return base + track.step  # no further packets to decide by
        self._start_epoch(track, stamp, starts)
        return None

    def _following(self, track: Track) -> list[int]:
        """Return the timestamps of as many next packets of a stream as may be shown
        before the current one."""
        return list(islice((found for other, _, found in self._coming() if other is track), REORDERED))

    def _after_shuffled_leap(self, track: Track, packet: Packet, stamp: int, leap: int) -> int | None:
        """Like ``_after_leap``, for a stream whose packets are not in the order of
        their timestamps."""
        base = track.base
        assert base is not None, "a stream that was seen before"
        following = self._following(track)
        if leap > 0:
            # A pause, unless more packets follow with earlier times than any codec
            # reorders.
            return base if len(following) == REORDERED and max(following) < stamp else None
        if self._join(track, stamp):
            return None
        starts = self._others_leaping(track, packet, stamp)
        if min(following, default=base) >= base - track.slack and len(starts) == 1:
            return base
        self._start_epoch(track, stamp, starts)
        return None

    def _run(self, track: Track, packet: Packet, stamp: int) -> tuple[int, int, int | None]:
        """Return how many packets of the stream continue from this one, their duration,
        and the first that does not."""
        probe = track.walker(packet, stamp)
        run, elapsed = 1, track.lasts(packet)
        for other, later, found in self._coming():
            if other is track:
                if probe.leap(found, later):
                    return run, elapsed, found
                probe.go_on(later, found)
                run += 1
                elapsed += track.lasts(later)
                if elapsed * track.unit > _LONGEST_RUN_S:
                    break
        return run, elapsed, None

    def _after_jump(self, track: Track, packet: Packet, stamp: int, leap: int) -> None:
        """Decide whether a jump ahead is a pause, another clock, or wrong in this stream alone."""
        jump_s = float(leap * track.unit)
        at_s = float(stamp * track.unit)
        # If another stream is already near this time, only this one pauses.
        margin_s = self._skew_s + (0.5 if self._broadcast else _WAIT_S)
        others = [other for other in self._dense if other is not track and other.last is not None]
        behind = [at_s - float(other.last * other.unit) for other in others if other.last is not None]
        too_long = self._broadcast and jump_s > _LONGEST_GAP_S
        if jump_s <= margin_s or (behind and min(behind) <= margin_s):
            return
        if not others:
            if too_long:
                self._start_epoch(track, stamp, self._others_leaping(track, packet, stamp))
            return
        starts = self._others_leaping(track, packet, stamp)
        alone = len(starts) == 1
        if too_long if not alone else self._others_go_on(track):
            self._start_epoch(track, stamp, starts)

    def _is_lost(self, track: Track, stamp: int, leap: int) -> bool:
        """Return whether the last packet of a stream is far from all other packets of
        the file."""
        if not self._broadcast:
            return False
        others = [other.last * other.unit for other in self._dense if other is not track and other.last is not None]
        if others:
            return stamp * track.unit - max(others) > _NEAR_S
        return leap * track.unit > _LONGEST_GAP_S

    def _others_go_on(self, track: Track) -> bool:
        """Return whether other streams continue as if nothing had happened."""
        coming = Counter(other.index for other, _, _ in self._coming() if other is not track)
        return any(count > 2 for count in coming.values())

    def _others_leaping(self, track: Track, packet: Packet, stamp: int) -> list[tuple[Track, Fraction, Fraction]]:
        """Return the streams that soon jump to the same times, with the end of each and
        its new start.

        The end is on the repaired clock, the start on the file's, both in seconds.
        """
        at_s = float(stamp * track.unit)
        walkers = {each.index: each.walker(None, each.last) for each in self._dense if each.last is not None}
        starts = {track.index: (track, track.end, [track.shown(packet, stamp)])}
        waited = track.lasts(packet)
        for other, later, found in self._coming():
            shown = other.shown(later, found)
            if other.index in starts:
                firsts = starts[other.index][2]
                if len(firsts) < _LEADING and abs(float(shown * other.unit) - at_s) <= _NEAR_S:
                    firsts.append(shown)

                if other is track:
                    waited += track.lasts(later)
            elif (walker := walkers.get(other.index)) is not None:
                if walker.leap(found, later) and abs(float(found * other.unit) - at_s) <= _NEAR_S:
                    starts[other.index] = (other, walker.end, [shown])
                else:
                    walker.go_on(later, found)
            settled = all(len(firsts) >= _LEADING for _, _, firsts in starts.values())
            if waited * track.unit > _WAIT_S or (settled and len(starts) == len(walkers)):
                break
        return [(each, end * each.unit, min(firsts) * each.unit) for each, end, firsts in starts.values()]

    def _start_epoch(self, track: Track, stamp: int, starts: list[tuple[Track, Fraction, Fraction]]) -> None:
        """Start a new clock, with a shift by which no stream overlaps its earlier
        part."""
        offset_s = max(end_s - start_s for _, end_s, start_s in starts)
        alone = len(starts) == 1 and any(other is not track and other.last is not None for other in self._dense)
        if alone:
            is_back = offset_s > track.offset * track.unit
            (self._repairs.steps_back if is_back else self._repairs.jumps)[track.kind] += 1
        else:
            if not self._repairs.restarts:
                self._repairs.restart_s = float(starts[0][1])
            self._repairs.restarts += 1
        self._epochs.append(_Epoch(offset_s, float(stamp * track.unit)))
        track.move_to(len(self._epochs) - 1, offset_s)

    def _join(self, track: Track, stamp: int) -> bool:
        """Move a track to the clock that other streams are already on, if its packet
        fits there."""
        at_s = float(stamp * track.unit)
        used = {other.epoch for other in self._dense if other is not track}
        for number in range(len(self._epochs) - 1, -1, -1):
            epoch = self._epochs[number]
            if number == track.epoch or (number < track.epoch and number not in used):
                continue
            late_s = at_s + float(epoch.offset_s) - float(track.end * track.unit)
            early_s = 1 + 4 * float(track.step * track.unit)
            if abs(at_s - epoch.now_s) <= _NEAR_S and -early_s <= late_s <= _LATEST_S:
                track.move_to(number, epoch.offset_s)
                return True
        return False

    def _measure_skew(self, track: Track, stamp: int) -> None:
        """Update the largest distance between streams in this file."""
        for other in self._dense:
            if other is not track and other.last is not None and other.epoch == track.epoch:
                apart_s = abs(stamp * track.unit_s - other.last * other.unit_s)
                if self._skew_s < apart_s <= _NEAR_S:
                    self._skew_s = apart_s

    def _sparse_offset(self, track: Track, packet: Packet) -> int:
        """Return the shift of a subtitle: that of the clock on which it is closest to
        audio and video."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        ends = [float(each.end * each.unit) for each in self._dense if each.last is not None]
        if stamp is None or not ends:
            return track.offset
        now_s, at_s = max(ends), float(stamp * track.unit)
        newest = max(each.epoch for each in self._dense)
        candidates = self._epochs[max(0, newest - 2) : newest + 1]
        best = min(reversed(candidates), key=lambda epoch: abs(at_s + float(epoch.offset_s) - now_s))
        return round(best.offset_s / track.unit)


def _has_times(stream: Stream) -> bool:
    return stream.type in ("video", "audio", "subtitle") and not stream.disposition & Disposition.attached_pic
