"""One job on many machines: units of a plan on a shared file system, workers and a join, which Ray can drive."""

__all__: list[str] = []
