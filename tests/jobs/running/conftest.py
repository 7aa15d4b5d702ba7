"""Fixtures that several files of this folder share."""

from tests.jobs.running.ways import clip

__all__ = ["clip"]
