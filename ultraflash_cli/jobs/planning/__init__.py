"""From options to a plan; never imports torch."""

__all__: list[str] = []
