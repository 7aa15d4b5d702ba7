"""One job on many machines: a plan of units on a shared file system, workers, and a
join, optionally driven by Ray."""

__all__: list[str] = []
