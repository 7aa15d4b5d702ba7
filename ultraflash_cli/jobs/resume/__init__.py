"""State that survives a kill: work folder, journal, spool."""

__all__: list[str] = []
