"""What the environment says, read once, and what libraries are told through it; no other module touches it."""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Self

__all__ = ["Settings", "quieten_libraries"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The part of the environment that the program listens to."""

    no_color: bool = False
    """`NO_COLOR` is set to anything but nothing (https://no-color.org)."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read `environ`; nothing is read again later."""
        return cls(no_color=bool(environ.get("NO_COLOR")))


def quieten_libraries(environ: MutableMapping[str, str] = os.environ) -> None:
    """Keep SVT-AV1 from printing twenty lines to stderr for every segment; it listens to nothing but this."""
    environ.setdefault("SVT_LOG", "1")
