"""Conversion of out-of-memory errors."""

import gc
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from ultraflash_cli.errors import OutOfMemory, is_out_of_memory

__all__ = ["free_memory", "oom_errors"]

_ADVICE = "close other programs, choose a smaller --res, or --device cpu"


@contextmanager
def oom_errors(planned_bytes: int | None = None, *, by_device: Mapping[str, int] | None = None) -> Generator[None]:
    """Convert the libraries' out-of-memory errors to OutOfMemory; ``planned_bytes`` is
    the size of the plan, ``by_device`` its sizes on two devices."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if is_out_of_memory(error):
            raise _out_of_memory(error, planned_bytes, by_device or {}) from error
        raise


def _out_of_memory(error: BaseException, planned_bytes: int | None, by_device: Mapping[str, int]) -> OutOfMemory:
    if not by_device:
        return OutOfMemory(f"out of memory; {_ADVICE}", planned_bytes=planned_bytes)

    found = re.search(r"\bGPU (\d+)\b", str(error))  # as in torch's message
    device = f"cuda:{found[1]}" if found and f"cuda:{found[1]}" in by_device else ""
    message = f"out of memory{f' on {device}' if device else ''}; {_ADVICE}"
    if planned_bytes is None:
        return OutOfMemory(message, device=device)

    # Next time each device may hold what is planned now, and the full one less.
    full = device or max(by_device, key=lambda name: by_device[name])
    limits = [str(count - (name == full)) for name, count in by_device.items()]
    return OutOfMemory(message, planned_bytes=by_device[full], device=device, retry_within=",".join(limits))


def free_memory() -> None:
    """Free unreferenced memory, on the GPU too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch is not None and torch.accelerator.is_available():
        torch.accelerator.empty_cache()
