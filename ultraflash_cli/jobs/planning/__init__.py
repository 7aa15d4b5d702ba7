"""From what is requested to what is decided; knows no torch."""

__all__: list[str] = []
