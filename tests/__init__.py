"""Tests, and the golden runner: ``python -m tests.golden DIR``."""
