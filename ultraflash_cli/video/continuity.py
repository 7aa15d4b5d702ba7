"""Timestamps of one stream: where the next packet is expected, and how unexpected
packets are treated."""

from dataclasses import dataclass, replace
from fractions import Fraction

from av.packet import Packet
from av.stream import Stream

__all__ = ["REORDERED", "Track", "Walker", "is_dense"]

_SLACK_S = Fraction(1, 10)
REORDERED = 17
"""Maximum reordering in frames; no codec reorders more."""
_LEAD_S = 2
"""Minimum allowance for the delay from decoding to display."""


def is_dense(kind: str) -> bool:
    """Return whether streams of this kind have packets throughout, without gaps."""
    return kind in ("video", "audio")


@dataclass
class Walker:
    """A position in a stream, relative to which the next packet is judged; timestamps
    are those of the file, in its ticks."""

    unit: Fraction
    by_decoding: bool
    """Whether decoding times, which always increase, are compared instead of
    presentation times."""
    reorders: bool
    last: int | None = None
    top: int = 0
    """The latest timestamp so far."""
    step: int = 1
    """Duration of a packet."""
    offset: int = 0
    """Amount added to every timestamp."""
    end: int = 0
    """End of everything so far, with the offset."""
    lead: int = 0
    """Maximum delay from decoding to display."""
    delay: int = 0
    """Delay of the first packet from decoding to display: the decoder's delay."""
    packets: int = 0
    keys: int = 0
    """Number of packets marked as keyframes."""
    recent: tuple[int, ...] = ()
    """The latest timestamps of a stream whose packets are not in display order."""

    def __post_init__(self) -> None:
        self._tenth = int(_SLACK_S / self.unit)
        self._second = int(1 / self.unit)

    def stamp(self, packet: Packet) -> int | None:
        """Return the timestamp used for comparison."""
        if self.by_decoding:
            return packet.dts
        return packet.pts if packet.pts is not None or self.reorders else packet.dts

    def lasts(self, packet: Packet) -> int:
        """Return the duration of a packet."""
        return packet.duration or self.step

    @property
    def is_shuffled(self) -> bool:
        """Whether the compared timestamps may decrease in an intact stream."""
        return self.reorders and not self.by_decoding

    @property
    def base(self) -> int | None:
        """The timestamp to which the next one is compared; None before the first
        packet."""
        return self.last if self.by_decoding or self.last is None else self.top

    @property
    def slack(self) -> int:
        """Maximum backward step of timestamps due to rounding alone."""
        return max(1, min(2 * self.step, self._tenth))

    def leap(self, stamp: int, packet: Packet) -> int:
        """Return the distance of a packet from the expected position: negative if
        behind, positive if ahead, else 0."""
        base = lowest = self.base
        assert base is not None and lowest is not None, "a stream that was seen before"
        shuffled = 0
        if self.is_shuffled:
            shuffled = REORDERED * self.step
            # All pictures before a keyframe in the stream are shown before it.
            believed = packet.is_keyframe and 2 * self.keys <= self.packets and self.packets >= 2
            if not believed:
                lowest = min(self.recent) if len(self.recent) == REORDERED else stamp
        if stamp < lowest - self.slack:
            return stamp - base
        expected = base + self.step
        if stamp > expected + self.slack + shuffled:
            return stamp - expected
        return 0

    def go_on(self, packet: Packet, stamp: int) -> None:
        """Advance to the next packet of the stream."""
        if packet.duration:
            self.step = packet.duration
        elif self.last is not None and stamp > self.last and not self.reorders:
            self.step = stamp - self.last
        self.packets += 1
        self.keys += packet.is_keyframe
        self.last = stamp
        self.top = max(self.top, stamp)
        if self.is_shuffled:
            self.recent = (*self.recent[1 - REORDERED :], stamp)
        if self.by_decoding and packet.pts is not None and self.lead < packet.pts - stamp <= self.longest_lead:
            self.lead = packet.pts - stamp
            self.delay = self.delay or self.lead
        self.end = max(self.end, self.shown(packet, stamp) + self.offset + self.lasts(packet))

    def shown(self, packet: Packet, stamp: int) -> int:
        """Return when a packet is shown or, if unknown, when a packet with its decoding
        time would be."""
        return packet.pts if packet.pts is not None else stamp + self.delay

    @property
    def longest_lead(self) -> int:
        """Maximum delay from decoding to display of the next packet."""
        return self.lead + max(_LEAD_S * self._second, 20 * self.step)


class Track(Walker):
    """One stream of a file, while its timestamps are moved to the repaired clock."""

    def __init__(self, stream: Stream, *, by_decoding: bool) -> None:
        self.index = stream.index
        self.kind = stream.type
        unit = stream.time_base or Fraction(1, 1000)
        video = stream.type == "video"
        # PyAV's type hints do not say that streams without a known decoder have no context.
        context = getattr(stream, "codec_context", None)
        reorders = video and (context is None or context.codec.reorder)
        super().__init__(unit=unit, by_decoding=by_decoding and is_dense(stream.type), reorders=reorders)
        self.unit_s = float(unit)
        rate = getattr(stream, "average_rate", None) if video else None
        self.step = max(1, round(1 / (rate * unit))) if rate else max(1, round(Fraction(1, 40) / unit))
        self.epoch = 0
        self.seen: int | None = None
        """The last timestamp that was read."""

    def unwrap(self, packet: Packet, period: int, others: int | None) -> None:
        """Undo wrap-arounds of the counter, whose values repeat after ``period`` ticks:
        choose the value closest to the stream's position or, for a new stream, to that
        of ``others``.
        """
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:
            return
        near = self.last if self.last is not None else self.seen if self.seen is not None else others
        wraps = 0 if near is None or 2 * abs(stamp - near) <= period else round(Fraction(stamp - near, period))
        self.seen = stamp - wraps * period
        if wraps:
            self._add(packet, -wraps * period)

    def walker(self, packet: Packet | None, stamp: int | None) -> Walker:
        """Return the walker that judges packets after one at ``stamp``, or after the
        latest one."""
        there = Walker(
            unit=self.unit,
            by_decoding=self.by_decoding,
            reorders=self.reorders,
            last=self.last,
            top=self.top,
            step=self.step,
            offset=self.offset,
            end=self.end,
            lead=self.lead,
            delay=self.delay,
            packets=self.packets,
            keys=self.keys,
            recent=self.recent,
        )
        if packet is None or stamp is None:
            return there
        there = replace(there, last=stamp, top=stamp, recent=())
        there.go_on(packet, stamp)
        return there

    def move_to(self, epoch: int, offset_s: Fraction) -> None:
        """Switch to another clock of the file."""
        self.epoch = epoch
        self.offset = round(offset_s / self.unit)
        self.top = -(1 << 62)
        self.recent = ()

    def shift(self, packet: Packet, offset: int) -> None:
        """Move a packet to the repaired clock."""
        self.offset = offset
        if offset:
            self._add(packet, offset)

    def is_shown_late(self, packet: Packet, stamp: int) -> bool:
        """Return whether a packet's delay from decoding to display is implausibly
        long."""
        return self.by_decoding and packet.pts is not None and packet.pts - stamp > self.longest_lead

    def accept(self, packet: Packet, stamp: int, *, late: bool) -> bool:
        """Accept a packet with its own timestamp; return whether its presentation time
        is wrong (``late``, or too early), in which case that time is removed.
        """
        if self.last is None:
            self.top = self.end = stamp
        pts = packet.pts
        wrong = late or (self.by_decoding and pts is not None and pts < stamp - self.slack - self._second)
        if wrong:
            packet.pts = None if self.lead else stamp
        elif pts is not None and self.is_shown_late(packet, stamp):
            self.lead = pts - stamp
        self.go_on(packet, stamp)
        self.shift(packet, self.offset)
        return wrong

    def replace(self, packet: Packet, stamp: int) -> None:
        """Replace the compared timestamp of a packet; its presentation time moves
        along, or is kept if it is plausible."""
        pts, dts = packet.pts, packet.dts
        longest = self.longest_lead
        packet.dts = stamp
        if not self.reorders or pts is None:
            packet.pts = stamp
        elif dts is not None and 0 <= pts - dts <= self.lead + self.slack:
            packet.pts = stamp + pts - dts  # both are wrong
        elif not -self.slack <= pts - stamp <= longest:
            packet.pts = None if self.lead else stamp
        if self.last is None:
            self.top = self.end = stamp
        self.go_on(packet, stamp)
        self.shift(packet, self.offset)

    def _add(self, packet: Packet, ticks: int) -> None:
        if packet.pts is not None:
            packet.pts += ticks
        if packet.dts is not None:
            packet.dts += ticks
