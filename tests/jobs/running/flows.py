"""A clip of numbers through the three threads."""

from collections.abc import Callable
from pathlib import Path

from tests.jobs.fakes import FakeUpscaler, TextSegment, frames_of
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.running.segments import Busy
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.upscaling import SourceFrame, move_frames

__all__ = ["flow", "text"]


def flow(
    folder: Path,
    *,
    count: int = 40,
    cuts: set[int] | None = None,
    stop_at: int | None = None,
    upscaler: FakeUpscaler | None = None,
    segment: Callable[[Path], TextSegment] = TextSegment,
    source: Callable[[], "list[SourceFrame]"] | None = None,
    frame_bytes: int = 1,
    segment_frames: int = 12,
) -> tuple[Journal, bool]:
    """Run the flow in `folder`, requesting a stop once `stop_at` frames are done."""
    folder.mkdir(exist_ok=True)
    journal, stop = Journal(folder, {"seed": 0}), Stop()

    def on_group(done: int) -> None:
        if stop_at is not None and done >= stop_at:
            stop.request()

    finished = journal.complete or move_frames(
        lambda: iter(source()) if source is not None else frames_of(count, cuts or set()),
        upscaler or FakeUpscaler(),
        journal,
        lambda path: [segment(path)],
        output=folder / "out.mp4",
        segment_frames=segment_frames,
        seed=0,
        output_frame_bytes=frame_bytes,
        source_frame_bytes=frame_bytes,
        stop=stop,
        busy=Busy(),
        on_group=on_group,
    )
    return journal, finished


def text(journal: Journal) -> str:
    return "".join(path.read_text() for path in [file.path for file in journal.files()])
