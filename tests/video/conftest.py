"""Fixtures that several files of this folder share."""

import pytest

from tests.video.clips import make_clip
from tests.video.rows import made
from ultraflash_cli.video.probe import ClipInfo, probe

__all__ = ["clip", "made"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipInfo:
    """A plain clip."""
    return probe(make_clip(tmp_path_factory.mktemp("clip") / "a.mp4"))
