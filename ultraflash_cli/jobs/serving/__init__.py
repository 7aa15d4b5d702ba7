"""Show a running job in a browser: the pictures and events, and the local server for
them."""

__all__: list[str] = []
