"""Start and length of clips."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av

from tests.video.clips import ClipPlan, ffmpeg, make_clip, shown_times
from tests.video.sources import X264, made, read


def test_a_clip_cut_within_an_open_group_begins_with_what_can_be_shown(tmp_path: Path) -> None:
    whole, cut = tmp_path / "a.ts", tmp_path / "b.ts"
    ffmpeg(*made("2"), "-c:v", "libx264", "-bf", "3", "-g", "10", "-x264-params", "open-gop=1", str(whole))
    data = whole.read_bytes()
    cut.write_bytes(data[len(data) // 188 * 2 // 5 * 188 :])
    info, frames, _, _ = read(cut)
    times = shown_times(cut)
    ours = [frame.pts * info.time_base for frame in frames]
    assert ours == times[-len(ours) :] and len(times) - len(ours) <= 4


def test_doubled_and_missing_timestamps_are_made_to_grow_and_it_is_reported_once(tmp_path: Path) -> None:
    source, path = make_clip(tmp_path / "a.mkv", ClipPlan(codec="ffv1", options={})), tmp_path / "b.mkv"
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(given.demux(video=0)):
            if packet.size:
                packet.pts = packet.dts = (number - (number in (4, 5, 6))) * 40
                packet.stream = stream
                out.mux_one(packet)
    _, frames, warnings, report = read(path)
    assert len(frames) == 12
    assert report.repaired_times == 1 and not report.damaged
    assert len(warnings) == 1 and "one timestamp was missing, repeated or went backwards" in warnings[0]


def test_a_clip_whose_clock_wraps_or_restarts_continues(tmp_path: Path) -> None:
    part = tmp_path / "a.ts"
    ffmpeg(*made("0.4"), *X264, "-output_ts_offset", "30", str(part))
    path = tmp_path / "b.ts"
    path.write_bytes(part.read_bytes() * 3)
    info, frames, warnings, report = read(path)
    assert len(frames) == 30 and (report.restarts, report.repaired_times) == (2, 0)
    assert len(warnings) == 1 and "timestamps restart 2 times, first at 0.40 s" in warnings[0]
    assert {(after.pts - before.pts) * info.time_base for before, after in pairwise(frames)} == {Fraction(1, 25)}
    assert (info.duration_s, info.end_pts) == (1.2, frames[-1].pts + frames[-1].duration)
