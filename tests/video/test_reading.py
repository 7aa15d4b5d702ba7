"""Every kind of file is read as by an independent reader: number of frames, timestamps,
pixels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.video.clips import ffmpeg, shown_times
from tests.video.kinds import KINDS, make
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.probe import ClipInfo, probe


def independent_pictures(path: Path, info: ClipInfo, scaling: str) -> NDArray[np.float64]:
    """Return ``[frames, height, width, 3]`` in levels of 255, as read by the
    independent reader."""
    deep = info.bit_depth > 8
    raw = path.with_suffix(".raw")
    scale = f"scale=flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp:{scaling}"
    bwdif = "bwdif=mode=send_frame:deint=all," if info.interlaced else ""
    ffmpeg(
        "-noautorotate", "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-vf", bwdif + scale,
        "-f", "rawvideo", "-pix_fmt", "rgb48le" if deep else "rgb24", str(raw),
    )  # fmt: skip
    levels = np.fromfile(raw, np.uint16 if deep else np.uint8)
    return levels.reshape(-1, info.height_px, info.width_px, 3) / (257 if deep else 1)


def errors(frames: Sequence[Frame], pictures: NDArray[np.float64]) -> list[float]:
    return [
        float(np.abs(frame.rgb_hwc / (257 if frame.rgb_hwc.dtype == np.uint16 else 1) - picture).mean())
        for frame, picture in zip(frames, pictures, strict=True)
    ]


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_read_as_the_independent_reader_reads_it(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    path = make(kind, tmp_path)
    info = probe(path)
    warnings: list[str] = []
    frames = list(read_frames(info, warn=warnings.append))
    pictures = independent_pictures(path, info, f"in_chroma_loc={kind.chroma}{kind.reader}")
    assert len(frames) == len(pictures)
    assert [frame.pts * info.time_base for frame in frames] == shown_times(path)
    assert max(errors(frames, pictures)) < kind.levels
    for fact, value in kind.facts:
        assert getattr(info, fact) == value, fact
    assert [kind.says in warning for warning in warnings] == ([True] if kind.says else [])
