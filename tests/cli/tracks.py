"""Files with many tracks, upscaled and read back by another FFmpeg."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.doubler import builder
from tests.video.clips import ffmpeg
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main

__all__ = ["PICTURE", "QUICK", "X264", "Ran", "Runner", "cases", "frames", "make", "run", "samples"]

PICTURE = "-f lavfi -i testsrc2=size=64x48:rate=25:duration={}"


QUICK = ("--model", "lite", "--device", "cpu", "--threads", "1")


X264 = "-c:v libx264 -preset ultrafast"


@dataclass(frozen=True)
class Ran:
    """The outcome of one command."""

    code: int
    output: Path
    warnings: str
    error: str


class Runner:
    """Runs `ultraflash upscale` in this process, with a model that doubles pixels."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys

    def __call__(self, source: Path, output: str = "", *more: str) -> Ran:
        """Upscale ``source`` to a name, or into a folder if the name is empty."""
        target = self._folder / (output or "out")
        target.mkdir(exist_ok=True) if not output else None
        command = ["upscale", source, "-o", target, "--res", "2x", *QUICK, "--json", "-q", *more]
        code = main([str(word) for word in command])
        said = self._capsys.readouterr()
        report: dict[str, Any] = json.loads(said.out) if said.out else {}
        return Ran(code, Path(report.get("output") or ""), " | ".join(report.get("warnings", ())), said.err)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))
    return Runner(tmp_path, capsys)


@pytest.fixture(scope="session")
def cases(repository: Path) -> Path:
    folder = repository.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("the shared cases are not on this machine")
    return folder


def make(path: Path, arguments: str) -> Path:
    ffmpeg(*arguments.split(), str(path))
    return path


def samples(path: Path, number: int = 0) -> str:
    """Return a hash of all samples of an audio track, decoded by the independent
    reader."""
    return ffmpeg("-i", str(path), "-map", f"0:a:{number}", "-c:a", "pcm_s32le", "-f", "hash", "-hash", "md5", "-")


def frames(path: Path, number: int = 0) -> int:
    listed = ffmpeg("-i", str(path), "-map", f"0:v:{number}", "-fps_mode", "passthrough", "-f", "framemd5", "-")
    return sum(not line.startswith("#") for line in listed.splitlines())
