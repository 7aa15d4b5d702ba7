"""What tests of the engine share."""

import pytest

from tests.engine.generators import build
from ultraflash_cli.engine.stages.generator import Generator


@pytest.fixture(scope="module")
def stage() -> Generator:
    """A tiny generator whose head is not zero."""
    return build()
