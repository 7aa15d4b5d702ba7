"""Recordings with broken clocks, upscaled through the command."""

from pathlib import Path

import pytest

from tests.jobs.doubler import builder
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main

__all__ = ["cases", "doubled", "upscale"]


@pytest.fixture(autouse=True)
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Double every pixel instead of upscaling, which takes no time."""
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))


@pytest.fixture
def cases(repository: Path) -> Path:
    folder = repository.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("the shared cases are not on this machine")
    return folder


def upscale(source: Path, output: Path, *options: str) -> int:
    fixed = ("-y", "--res", "2x", "--model", "lite", "--device", "cpu", "--threads", "1", "--progress", "none")
    return main(["upscale", str(source), "-o", str(output), *fixed, *options])
