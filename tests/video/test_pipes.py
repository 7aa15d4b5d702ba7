"""Reading clips from pipes."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.video.clips import ffmpeg
from tests.video.sources import X264, made, read
from ultraflash_cli.errors import InputError, OutputError
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.probe import probe
from ultraflash_cli.video.source import open_input


def same(a: Sequence[Frame], b: Sequence[Frame]) -> bool:
    return len(a) == len(b) and all(
        (x.pts, x.duration) == (y.pts, y.duration) and np.array_equal(x.rgb_hwc, y.rgb_hwc)
        for x, y in zip(a, b, strict=True)
    )


class Trickle(io.RawIOBase):
    """A pipe that returns a few bytes at a time and is not seekable."""

    def __init__(self, content: bytes, step: int = 777) -> None:
        self._rest = io.BytesIO(content)
        self._step = step

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._rest.read(min(self._step, size) if size >= 0 else self._step)


@pytest.mark.parametrize(
    ("suffix", "arguments"),
    [
        (".y4m", ("-pix_fmt", "yuv420p")),
        (".mkv", X264),
        (".ts", X264),
        (".nut", ("-c:v", "ffv1")),
        (".webm", ("-c:v", "libvpx-vp9", "-cpu-used", "8")),
        (".mp4", (*X264, "-movflags", "frag_keyframe+empty_moov")),
        (".h264", X264),
    ],
)
@pytest.mark.parametrize("spooled", [False, True])
def test_a_pipe_produces_the_frames_of_the_file(
    tmp_path: Path, suffix: str, arguments: Sequence[str], spooled: bool
) -> None:
    path = tmp_path / f"a{suffix}"
    ffmpeg(*made("1.2"), *arguments, str(path))
    _, expected, _, _ = read(path)
    pipe = Pipe(Trickle(path.read_bytes()))
    info = probe(pipe)
    assert probe(pipe).width_px == 64 and info.path == Path("-")
    digest = pipe.head_digest()
    if spooled:
        pipe.spool_to(tmp_path / "spool")
    frames = list(read_frames(info, warn=print))
    assert same(frames, expected)
    assert digest == Pipe(Trickle(path.read_bytes(), 50)).head_digest()
    if spooled:
        pipe.read_to_end()
        assert pipe.whole_file is not None and pipe.whole_file.read_bytes() == path.read_bytes()
        assert same(list(read_frames(info, warn=print)), expected)
        with open_input(pipe) as container:
            assert container.streams.video
    else:
        with pytest.raises(InputError, match="can only be read once"):
            list(read_frames(info, warn=print))


def test_a_pipe_holds_in_memory_no_more_than_its_head() -> None:
    pipe = Pipe(Trickle(bytes(1_000_000), 10_000))
    head = pipe.reader(last=False)
    assert len(head.read(4000)) == 4000
    reader = pipe.reader(last=True)
    sizes = []
    while content := reader.read(10_000):
        sizes.append(len(content))
        assert len(pipe._memory) <= 10_000
    assert sum(sizes) == 1_000_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "-: the pipe is empty", id="empty"),
        pytest.param(b"no film", "-: a text file, not a video", id="text"),
        pytest.param(bytes(200_000), "-: the pipe does not carry a video", id="zeros"),
    ],
)
def test_a_pipe_without_a_video_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe(Pipe(Trickle(content)))


def test_a_file_whose_index_is_at_the_end_cannot_come_through_a_pipe(tmp_path: Path) -> None:
    # Larger than a single read; otherwise the index would arrive before its frames are
    # requested.
    path = tmp_path / "a.mp4"
    noise = "testsrc2=size=320x240:rate=25:duration=0.4,noise=alls=60:allf=t"
    ffmpeg("-f", "lavfi", "-i", noise, "-c:v", "libx264", "-preset", "ultrafast", "-crf", "1", str(path))
    with pytest.raises(InputError, match="save it to a file"):
        read(Pipe(Trickle(path.read_bytes())))


def test_a_broken_pipe_and_a_full_spool_are_distinguished(tmp_path: Path) -> None:
    class Broken(Trickle):
        def read(self, size: int = -1, /) -> bytes:
            raise OSError("gone")

    with pytest.raises(InputError, match="gone"):
        probe(Pipe(Broken(b"")))
    with pytest.raises(OutputError):
        Pipe(Trickle(b"")).spool_to(tmp_path / "none" / "spool")
    if Path("/dev/full").exists():
        pipe = Pipe(Trickle(bytes(10)))
        with pytest.raises(OutputError):
            pipe.spool_to(Path("/dev/full"))
            pipe.read_to_end()
