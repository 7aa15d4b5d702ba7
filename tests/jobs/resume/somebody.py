"""Files that belong to the user, an interrupted run, and the messages of the next
run."""

from pathlib import Path
from typing import Any

import pytest

from tests.jobs.clips import make_clip
from tests.jobs.doubler import upscale
from ultraflash_cli.errors import Interrupted
from ultraflash_cli.jobs.events import Event, Started

__all__ = ["clip", "contents", "interrupted", "note_of", "victim"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=30)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the user's files, some of them with names that the program uses for
    its own."""
    folder = tmp_path / "victim"
    (folder / "inner").mkdir(parents=True)
    for name in ("thesis.txt", "segment-000000.video", "journal.jsonl", "stdin", "inner/photo.jpg"):
        (folder / name).write_text(f"mine: {name}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def note_of(events: list[Event]) -> str:
    (started,) = [event for event in events if isinstance(event, Started)]
    return started.note or ""


def interrupted(made: Any) -> None:
    with pytest.raises(Interrupted):
        upscale(made, stop_at=17)
