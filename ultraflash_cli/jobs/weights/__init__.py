"""Install weights on this machine."""

__all__: list[str] = []
