"""Fixtures shared by the engine's tests."""

import pytest

from tests.engine.generators import build
from ultraflash_cli.engine.stages.generator import Generator


@pytest.fixture(scope="module")
def stage() -> Generator:
    """A tiny generator with a nonzero head."""
    return build()
