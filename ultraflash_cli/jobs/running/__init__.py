"""From what is decided to a finished output: frames through three threads."""

__all__: list[str] = []
