"""Clips and jobs for several test modules."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.clips import make_clip
from ultraflash_cli.video.pipe import Pipe

__all__ = ["clip", "piped", "same"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=30)


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def piped(clip: Path) -> dict[str, Any]:
    return {"pipe": Pipe(io.BytesIO(clip.read_bytes()))}
