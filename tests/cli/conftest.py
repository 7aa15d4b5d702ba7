"""Fixtures that several files of command-line tests share."""

from tests.cli.tracks import cases, run

__all__ = ["cases", "run"]
