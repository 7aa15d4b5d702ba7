"""From what is asked for to what is decided; knows no torch."""

__all__: list[str] = []
