"""The temporary copy of a photo on stdin, when the command is stopped or killed."""

import io
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.jobs.clips import moving_picture
from ultraflash_cli.jobs.resume.work_folder import private_folder
from ultraflash_cli.main import main


class Unfinished(io.BytesIO):
    """The start of a photo; whoever reads on meets `event`, which ends the reading."""

    def __init__(self, start: bytes, event: Callable[[], None]) -> None:
        super().__init__(start)
        self._event = event

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if not found:
            self._event()
            raise AssertionError("reading goes on after the signal")
        return found


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def obeyed() -> Iterator[None]:
    """Obey Ctrl-C also where the tests were begun in the background, which ignores it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def begin(monkeypatch: pytest.MonkeyPatch, kind: str, event: Callable[[], None]) -> None:
    whole = io.BytesIO()
    Image.fromarray(moving_picture(0, width=64, height=48)).save(whole, kind)
    stream = Unfinished(whole.getvalue()[:2000], event)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))


@pytest.mark.usefixtures("obeyed")
@pytest.mark.parametrize("kind", ["TIFF", "JPEG"], ids=["known by its head", "read by libavformat"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_while_a_photo_is_read_ends_at_once_and_leaves_nothing(
    number: signal.Signals, kind: str, temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(monkeypatch, kind, lambda: os.kill(os.getpid(), number))
    assert main(["upscale", "-", "-o", str(temp.parent / "out.png"), "-q"]) == 128 + number
    assert list(temp.iterdir()) == [] and not (temp.parent / "out.png").exists()


def test_what_a_killed_command_leaves_is_found_by_clean(
    temp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, object]] = []

    def clean(*options: str) -> list[dict[str, object]]:
        assert main(["clean", "--json", *options]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    def die() -> None:
        seen.extend(clean("-y"))
        shutil.copytree(private_folder(), temp / "left")
        os.kill(os.getpid(), signal.SIGTERM)

    begin(monkeypatch, "TIFF", die)
    assert main(["upscale", "-", "-o", str(temp.parent / "out.png"), "-q"]) == 143
    assert [each["in_use"] for each in seen] == [True]

    # What the process would have left, had it had no time to clean up.
    (temp / "left").rename(private_folder())
    (found,) = clean("-y")
    assert found["removed"] and found["size_bytes"] == 2000
    assert list(private_folder().iterdir()) == [] and clean() == []
