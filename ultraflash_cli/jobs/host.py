"""The machine a job runs on: cores, memory, free space, the allocator."""

import ctypes
import os
import shutil
import sys
from pathlib import Path

__all__ = ["free_bytes", "keep_freed_memory", "peak_rss_bytes", "usable_cores"]

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks instead of mapping and faulting them anew at every allocation.

    Whole networks run up to 1.9 times faster on a CPU. Call it once, before heavy work; says whether it took.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        # musl and friends have another allocator.
        return False
    limit = 2**31 - 1
    return bool(mallopt(_M_MMAP_THRESHOLD, limit)) and bool(mallopt(_M_TRIM_THRESHOLD, limit))


def usable_cores() -> int:
    """Count the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss_bytes() -> int:
    """Give the most memory this process has had resident; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes(folder: Path) -> int:
    """Give the free space of the file system under `folder`, or under the nearest ancestor that exists."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
