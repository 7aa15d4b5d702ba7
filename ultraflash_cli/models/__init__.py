"""Names to built networks: the one room where engine and weights meet."""

__all__: list[str] = []
