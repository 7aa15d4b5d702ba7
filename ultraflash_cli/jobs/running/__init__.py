"""Run a planned job: pass frames through three threads to a finished output."""

__all__: list[str] = []
