"""From a plan to a finished output: frames through three threads."""

__all__: list[str] = []
