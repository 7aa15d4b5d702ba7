"""The option `--guard`: how far a result may depart from its source."""

from ultraflash_cli.errors import ConfigError

__all__ = ["GUARD_LEVELS", "check_guard", "read_guard"]

GUARD_LEVELS = 32.0
"""Default limit: the strictest one that hardly lowers the quality of clean and compressed
clips, see docs/quality.md."""
_MOST_LEVELS = 255


def check_guard(levels: float | None) -> None:
    """Raise ConfigError for an invalid limit; None is no limit."""
    if levels is not None and not 1 <= levels <= _MOST_LEVELS:
        raise ConfigError(f"--guard must be off or 1 to {_MOST_LEVELS} levels, got {levels:g}")


def read_guard(text: str) -> float | None:
    """Read `off` or a number of levels. Raises ConfigError."""
    if text.strip().lower() == "off":
        return None
    try:
        levels = float(text)
    except ValueError:
        raise ConfigError(f"--guard must be off or 1 to {_MOST_LEVELS} levels, got {text!r}") from None
    check_guard(levels)
    return levels
