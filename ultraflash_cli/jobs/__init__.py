"""Jobs that run without a terminal."""

__all__: list[str] = []
