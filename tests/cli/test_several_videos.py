"""Files with several videos: which one is upscaled."""

from pathlib import Path

import av
import pytest

from tests.cli.tracks import PICTURE, X264, Runner, frames, make
from tests.video.clips import ffmpeg


def sizes(path: Path) -> list[tuple[int, int]]:
    """Width and height of every video, as the independent reader decodes it."""
    with av.open(str(path)) as container:
        count = len(container.streams.video)
    found: list[tuple[int, int]] = []
    for number in range(count):
        header = ffmpeg("-i", str(path), "-map", f"0:v:{number}", "-frames:v", "1", "-f", "framemd5", "-")
        line = next(line for line in header.splitlines() if line.startswith("#dimensions"))
        width, height = line.split(":")[1].strip().split("x")
        found.append((int(width), int(height)))
    return found


@pytest.mark.parametrize(
    ("case", "output", "expected", "frame_count"),
    [
        ("07-second-video-is-default.mkv", "out.mkv", [(96, 64), (128, 96)], 5),
        ("25-first-video-empty.ts", "out.mp4", [(128, 96)], 10),
        ("27-still-first.mp4", "out.mp4", [(320, 240), (128, 96)], 10),
    ],
)
def test_the_film_among_several_videos_is_enlarged(
    run: Runner, cases: Path, case: str, output: str, expected: list[tuple[int, int]], frame_count: int
) -> None:
    done = run(cases / case, output)
    assert done.code == 0, done.error
    assert sizes(done.output) == expected
    assert frames(done.output, len(expected) - 1) == frame_count
    assert "several video streams: upscaling stream 1 video h264" in done.warnings


def test_a_still_without_a_mark_beside_a_film_is_copied(run: Runner, tmp_path: Path) -> None:
    make(tmp_path / "still.jpg", "-f lavfi -i testsrc=s=96x96 -frames:v 1")
    source = make(
        tmp_path / "a.mkv",
        f"-i {tmp_path}/still.jpg {PICTURE.format(0.2)} -map 0 -map 1 -c:v:0 copy -c:v:1 libx264 "
        "-disposition:v:0 default -disposition:v:1 0",
    )
    done = run(source, "out.mkv")
    assert done.code == 0, done.error
    assert sizes(done.output) == [(96, 96), (128, 96)]
    assert (frames(done.output), frames(done.output, 1)) == (1, 5)


def test_the_larger_of_two_programs_is_the_film(run: Runner, tmp_path: Path) -> None:
    source = make(
        tmp_path / "a.ts",
        f"{PICTURE.format(0.2).replace('64x48', '32x32')} {PICTURE.format(0.2)} -map 0 -map 1 {X264} "
        "-program st=0 -program st=1",
    )
    done = run(source, "out.mkv")
    assert done.code == 0, done.error
    assert sizes(done.output) == [(32, 32), (128, 96)]


def test_when_the_film_gives_no_frame_the_next_video_is_taken(run: Runner, tmp_path: Path) -> None:
    good = make(tmp_path / "good.mp4", f"{PICTURE.format(0.2)} {X264}")
    source = tmp_path / "a.mkv"
    with av.open(str(good)) as given, av.open(str(source), "w") as out:
        picture = given.streams.video[0]
        broken, whole = (out.add_stream_from_template(picture, opaque=True) for _ in range(2))
        for packet in given.demux(picture):
            if packet.size:
                twin = av.Packet(bytes([0, 0, 0, 2, 0x1F, 0xFF]))
                twin.pts, twin.dts, twin.time_base, twin.stream = packet.pts, packet.dts, packet.time_base, broken
                packet.stream = whole
                out.mux([twin, packet])
    done = run(source, "out.mkv")
    assert done.code == 0, done.error
    assert "upscaling stream 1 video h264, not stream 0" in done.warnings
    with av.open(str(done.output)) as result:
        assert [(each.width, each.height) for each in result.streams.video] == [(64, 48), (128, 96)]
