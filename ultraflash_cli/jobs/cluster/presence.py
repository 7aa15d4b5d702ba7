"""Locks on the folder of a plan: shared by workers, joins and drivers, exclusive for
`clean`."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ultraflash_cli.errors import OutputError
from ultraflash_cli.jobs.resume.owned_files import open_existing
from ultraflash_cli.jobs.resume.work_folder import lock_descriptor

__all__ = ["PRESENCE", "alone_in", "present_in"]

PRESENCE = "in-use"


@contextmanager
def present_in(folder: Path) -> Generator[None]:
    """Keep `ultraflash clean` from removing the folder of a plan meanwhile. If the file
    system has no locks or the folder is not writable, the units' leases have to
    suffice.
    """
    descriptor = None
    with suppress(OSError, OutputError):
        descriptor = open_existing(folder / PRESENCE, os.O_RDWR, create=True)
        lock_descriptor(descriptor, shared=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def alone_in(folder: Path) -> Generator[bool]:
    """Yield whether no other process is present, and keep others out meanwhile. Raises
    OSError, OutputError."""
    descriptor = open_existing(folder / PRESENCE, os.O_RDWR, create=True)
    try:
        yield lock_descriptor(descriptor)
    finally:
        os.close(descriptor)
