"""Clips from pipes."""

import io
from pathlib import Path

import av
import pytest

from tests.jobs.clips import audio_packets, make_clip, stream_kinds, timestamps
from tests.jobs.doubler import job, left_over, upscale
from tests.jobs.running.ways import piped
from ultraflash_cli.errors import ConfigError, Interrupted
from ultraflash_cli.jobs.events import Chunk, Event, Started
from ultraflash_cli.video.pipe import Pipe


def test_a_pipe_keeps_its_picture_and_says_what_it_would_need_for_more(clip: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    report = upscale(job(Path("-"), tmp_path / "out.mkv", **piped(clip)), events=events)
    assert report.input == "-"
    assert timestamps(tmp_path / "out.mkv") == timestamps(clip)
    assert stream_kinds(tmp_path / "out.mkv") == ["video"]
    assert any("--temp-dir" in warning for warning in report.warnings)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert "cannot be resumed" in str(started.note)
    assert left_over(tmp_path) == []


def test_with_a_temporary_folder_a_pipe_keeps_its_sound(clip: Path, tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    upscale(job(Path("-"), tmp_path / "out.mkv", temp=temp, **piped(clip)))
    assert audio_packets(tmp_path / "out.mkv") == audio_packets(clip)
    assert list(temp.iterdir()) == []


def test_an_interrupted_pipe_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="starts over"):
        upscale(job(Path("-"), tmp_path / "out.mkv", temp=tmp_path / "temp", **piped(clip)), stop_at=17)
    assert left_over(tmp_path) == []
    assert list((tmp_path / "temp").iterdir()) == []


def test_what_comes_through_a_pipe_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="-o"):
        job(Path("-"), pipe=Pipe(io.BytesIO(b"")))


def test_the_length_of_a_pipe_s_beginning_is_no_total(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=30, audio=False)
    fragmented = tmp_path / "in.mp4"
    with (
        av.open(source) as read,
        av.open(fragmented, "w", options={"movflags": "+empty_moov+frag_every_frame"}) as made,
    ):
        stream = made.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    events: list[Event] = []
    upscale(job(Path("-"), tmp_path / "out.mkv", **piped(fragmented)), events=events)
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert [(each.frames_total, each.eta_s) for each in chunks[-2:]] == [(None, None)] * 2
