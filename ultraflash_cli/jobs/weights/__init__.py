"""Weights brought to this machine."""

__all__: list[str] = []
