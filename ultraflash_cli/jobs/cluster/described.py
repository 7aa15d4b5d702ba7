"""Jobs as JSON, for the plan that other machines read."""

import dataclasses
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from ultraflash_cli.errors import ConfigError, OutputError, UsageError
from ultraflash_cli.jobs.batch import Job
from ultraflash_cli.jobs.planning.generate import GenerateJob
from ultraflash_cli.jobs.planning.upscale import UpscaleJob

__all__ = ["INDIVISIBLE", "as_json", "from_json"]

INDIVISIBLE = "a stream cannot be divided into units; name a file"
"""Message for a job that reads or writes a stream."""

_KINDS: dict[str, type[UpscaleJob] | type[GenerateJob]] = {"upscale": UpscaleJob, "generate": GenerateJob}
_HERE = ("stdout", "stdout_name", "pipe", "show", "store")
"""Fields that are only meaningful on the machine where they were given."""
_READ: dict[str, Callable[[Any], Any]] = {
    "source": Path,
    "output": Path,
    "folder": Path,
    "temp": Path,
    "init_clip": Path,
    "fps": Fraction,
    "enc_options": lambda pairs: tuple((str(key), str(value)) for key, value in pairs),
}
"""Converters for fields whose types JSON does not have."""


def as_json(job: Job) -> dict[str, object]:
    """Return a job as JSON with absolute paths. Raises UsageError for a job that reads
    or writes a stream."""
    if job.stdout is not None or getattr(job, "pipe", None) is not None:
        raise UsageError(INDIVISIBLE)
    kind = "upscale" if isinstance(job, UpscaleJob) else "generate"
    values = {
        field.name: _plain(getattr(job, field.name)) for field in dataclasses.fields(job) if field.name not in _HERE
    }
    return {"kind": kind, **values}


def from_json(described: Mapping[str, object], *, store: Path | None) -> Job:
    """Read a job written by `as_json`; `store` is the weights folder of this machine.

    Raises OutputError for invalid content, and for options of a newer version.
    """
    values = {name: value for name, value in described.items() if name != "kind"}
    try:
        kind = _KINDS[cast(str, described["kind"])]
        read = {
            name: _READ[name](value) if name in _READ and value is not None else value for name, value in values.items()
        }
        return kind(**cast(dict[str, Any], read), store=store)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise OutputError(f"the plan has a job that this version cannot read ({error}); run `plan` again") from error


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value.absolute())
    return str(value) if isinstance(value, Fraction) else value
