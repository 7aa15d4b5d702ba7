"""What the environment says, read once; no other module reads it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The part of the environment that the program listens to."""

    no_color: bool = False
    """`NO_COLOR` is set to anything but nothing (https://no-color.org)."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read `environ`; nothing is read again later."""
        return cls(no_color=bool(environ.get("NO_COLOR")))
