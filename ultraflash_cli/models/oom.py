"""Conversion of out-of-memory errors."""

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager

from ultraflash_cli.errors import OutOfMemory, is_out_of_memory

__all__ = ["free_memory", "oom_errors"]

_OUT_OF_MEMORY = "out of memory; close other programs, choose a smaller --res, or --device cpu"


@contextmanager
def oom_errors(planned_bytes: int | None = None) -> Generator[None]:
    """Convert the libraries' out-of-memory errors to OutOfMemory; ``planned_bytes`` is
    the size of the plan."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(_OUT_OF_MEMORY, planned_bytes=planned_bytes) from error
        raise


def free_memory() -> None:
    """Free unreferenced memory, on the GPU too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch is not None and torch.accelerator.is_available():
        torch.accelerator.empty_cache()
