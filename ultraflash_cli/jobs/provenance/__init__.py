"""The tag that records how an output was made: writing, reading and explaining it."""

__all__: list[str] = []
