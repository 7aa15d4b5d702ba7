"""Build networks by name: the only package that combines engine and weights."""

__all__: list[str] = []
