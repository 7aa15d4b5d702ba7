"""The commands. Each one turns options into a job, runs it and shows the report."""

__all__: list[str] = []
