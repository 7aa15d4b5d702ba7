"""One screen a command: options in, job run, report shown."""

__all__: list[str] = []
