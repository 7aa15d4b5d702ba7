"""Command-line names of job fields, declared by jobs and read by the command line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Flag"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Names and help of an option; type and default are those of the annotated
    field."""

    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    shows_default: bool = True
    given: Any = None
    """The type on the command line if it differs from the field's; `read` converts it."""
    read: Callable[[Any], Any] | None = None
    """Converter; raises UsageError."""
