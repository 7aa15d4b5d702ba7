"""Sources for several test modules."""

from itertools import pairwise

from ultraflash_cli.video.decode import ReadReport, read_frames
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.probe import ClipInfo, probe
from ultraflash_cli.video.source import Source

__all__ = ["X264", "made", "read"]

X264 = ("-c:v", "libx264", "-preset", "ultrafast")


def made(seconds: str = "0.4", size: str = "64x48", rate: int = 25) -> list[str]:
    return ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}"]


def read(source: Source, *, alpha: bool = False) -> tuple[ClipInfo, list[Frame], list[str], ReadReport]:
    info = probe(source)
    warnings: list[str] = []
    report = ReadReport()
    frames = list(read_frames(info, alpha=alpha, warn=warnings.append, report=report))
    assert report.frames == len(frames)
    assert all(b.pts > a.pts for a, b in pairwise(frames))
    return info, frames, warnings, report
