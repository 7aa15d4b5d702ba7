"""A running job in a browser: what it shows, and the server on this machine that shows it."""

__all__: list[str] = []
