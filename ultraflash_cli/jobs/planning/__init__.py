"""Turn options into a plan; never imports torch."""

__all__: list[str] = []
