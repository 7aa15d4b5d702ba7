"""One job on many machines: units of a plan on a shared file system, workers, the join; Ray drives the same."""

__all__: list[str] = []
