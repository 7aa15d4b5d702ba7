"""Tracks that the muxer rejects at the end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from av.error import ArgumentError

from tests.cli.tracks import PICTURE, X264, Runner, frames, make
from ultraflash_cli.video import join


def test_a_track_that_fails_at_the_end_costs_a_warning_and_never_the_file(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(
        tmp_path / "a.mkv",
        f"{PICTURE.format(0.4)} -f lavfi -i sine=d=0.4 -f lavfi -i sine=d=0.4 -map 0 -map 1 -map 2 {X264} -c:a:0 mp2 "
        "-c:a:1 flac",
    )

    def fails(container: Any, pictures: Any, copied: Iterator[av.Packet], written: Any) -> None:
        def refused() -> Iterator[av.Packet]:
            for packet in copied:
                if packet.stream.codec_context.codec.canonical_name == "flac" and (packet.pts or 0) > 200:
                    raise ArgumentError(22, "Invalid argument")
                yield packet

        interleave(container, pictures, refused(), written)

    interleave = join._interleave
    monkeypatch.setattr(join, "_interleave", fails)
    assert run(source, "out.mkv", "--strict").code == 7
    done = run(source, "out.mkv")
    assert done.code == 0, done.error
    assert "left out: stream 2 audio flac: the file cannot be made with it" in done.warnings
    assert frames(done.output) == 10
    with av.open(str(done.output)) as result:
        assert [each.codec_context.codec.canonical_name for each in result.streams.audio] == ["mp2"]
