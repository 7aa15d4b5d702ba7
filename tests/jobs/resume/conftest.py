"""Fixtures that several files of this folder share."""

from tests.jobs.resume.somebody import clip, victim

__all__ = ["clip", "victim"]
