"""Fixtures that several files of this folder share."""

from tests.video.rows import made

__all__ = ["made"]
