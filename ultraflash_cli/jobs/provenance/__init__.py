"""How an output was made: the tag that says so, and what can be read from it."""

__all__: list[str] = []
