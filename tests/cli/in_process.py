"""The command in this process, with another model."""

from collections.abc import Callable

import pytest

from ultraflash_cli.jobs.running.loader import Models

__all__ = ["replace_model"]


def replace_model(monkeypatch: pytest.MonkeyPatch, build: Callable[..., object]) -> None:
    """Make `upscale` build its models with `build`."""
    monkeypatch.setattr(Models, "upscaler", staticmethod(build))
