"""Pieces of work that need no terminal."""

__all__: list[str] = []
