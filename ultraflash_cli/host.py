"""The machine that a job runs on: cores, memory, free space, allocator."""

import ctypes
import math
import os
import re
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ultraflash_cli.errors import OutOfMemory, UsageError

__all__ = [
    "check_address_space",
    "check_pair",
    "free_bytes",
    "host_bytes_available",
    "is_virtual",
    "keep_freed_memory",
    "keep_scheduling",
    "parse_memory",
    "peak_rss_bytes",
    "resident_bytes",
    "running_threads",
    "shortage",
    "usable_cores",
]

_LEAST_ADDRESS_SPACE = 800_000_000
"""Address space that Python, torch and FFmpeg map for a clip of a few pixels."""
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

_GROUP_FILES = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Files with a container's memory limit, use and statistics, in cgroup v2 and v1."""


def keep_freed_memory() -> bool:
    """Make glibc reuse large blocks instead of mapping and faulting them at every
    allocation. Whole networks run up to 1.9 times faster on a CPU. Call it once, before
    heavy work; returns whether it succeeded.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        # musl and others have a different allocator.
        return False
    limit = 2**31 - 1
    return bool(mallopt(_M_MMAP_THRESHOLD, limit)) and bool(mallopt(_M_TRIM_THRESHOLD, limit))


@contextmanager
def keep_scheduling() -> Generator[None]:
    """Restore the previous scheduling policy of all threads afterwards. Under root,
    opening SVT-AV1 puts the whole process under real-time scheduling of the highest
    priority, which starves everything else on the machine. Does nothing if threads
    cannot be listed.
    """
    if not sys.platform.startswith("linux"):
        yield
        return

    policy, rank = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in map(int, os.listdir("/proc/self/task")):
            with suppress(OSError):  # ended, or not permitted to change
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, rank)


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use, limited to a container's CPU quota.
    `root` is the parent of `proc` and `sys`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def running_threads(wanted: int) -> int:
    """Return how many threads of a network run: no more than there are cores, whose number changes no result.

    Many more would wait for one another most of the time, and for every other program.
    """
    return max(1, min(wanted, os.cpu_count() or wanted))


def _cpu_quota(root: Path) -> float | None:
    """Return the number of CPUs that the control groups of this process allow; None
    without a limit."""
    quotas: list[float] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            tops, read = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            tops, read = [root / "sys/fs/cgroup" / name for name in (controllers, "cpu")], _quota_v1
        else:
            continue
        # The group, its ancestors, and the top, where a container sees its own group
        # mounted.
        inside = Path(path.lstrip("/"))
        quotas += [quota for top in tops for each in (inside, *inside.parents) if (quota := read(top / each))]
    return min(quotas, default=None)


def _quota_v2(folder: Path) -> float | None:
    return _ratio(*(_text(folder / "cpu.max").split() or ["max"])[:2])


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip())


def _ratio(quota_us: str, period_us: str = "100000") -> float | None:
    """Divide; None if there is no limit (`max`, -1) or nothing to read."""
    if not (quota_us.isdecimal() and period_us.isdecimal() and int(quota_us) and int(period_us)):
        return None
    return int(quota_us) / int(period_us)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process; 0 if the system does not report
    it."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes(root: Path = Path("/")) -> int:
    """Return the memory this process has resident now; 0 where the system does not say."""
    pages = _text(root / "proc/self/statm").split()[1:2]
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages and pages[0].isdecimal() else 0


def check_pair(devices: str) -> None:
    """Raise UsageError unless a list for ``--device`` names two devices of one kind, for
    the two halves of a generation."""
    names = devices.split(",")
    kinds = {name.partition(":")[0] for name in names}
    if len(names) != 2:
        raise UsageError(f"--device {devices}: a clip is generated on one device or two, got {len(names)}")
    if len(kinds) > 1:
        raise UsageError(f"--device {devices}: different kinds of device produce different pixels; name only one kind")
    if len({(name if ":" in name else f"{name}:0") for name in names}) == 1:
        raise UsageError(f"--device {devices}: this is one device, named twice; name two GPUs, or one device")


def parse_memory(text: str, *, option: str = "--max-memory") -> int:
    """Parse ``6G``, ``512M``, ``5.5GB``, ``6GiB`` or a plain number of bytes; G is
    10^9. Raises UsageError for anything else, including an empty string.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    count = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if count < 1:
        raise UsageError(f"{option} must be a size such as 6G, 512M or 6GiB, got {text!r}")
    return count


def host_bytes_available(root: Path = Path("/")) -> int | None:
    """Return the available host memory in bytes, within a container's limit; None if
    unknown."""
    known = [count for count in (_available(root), _within_limit(root)) if count is not None]
    return min(known) if known else None


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    for name in ("MemAvailable", "MemFree"):
        if fields.get(name, [""])[0].isdecimal():
            return int(fields[name][0]) * 1024
    return None


def _within_limit(root: Path) -> int | None:
    """Return the bytes that a container may still use; its reclaimable page cache
    counts as free."""
    for limit, used, kinds in _GROUP_FILES:
        try:
            most = (root / limit).read_text().strip()
            now = int((root / used).read_text())
            droppable = re.search(r"^(?:total_)?inactive_file (\d+)$", (root / kinds).read_text(), re.MULTILINE)
        except (OSError, ValueError):
            continue
        if most.isdecimal():
            return max(0, int(most) - now + (int(droppable[1]) if droppable else 0))
    return None


def check_address_space() -> None:
    """Raise OutOfMemory if the process may map less memory (`ulimit -v`) than its
    libraries need. They would otherwise crash, with obscure messages or none.
    """
    try:
        import resource
    except ImportError:
        return
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and most < _LEAST_ADDRESS_SPACE:
        raise OutOfMemory(
            f"this process may use {most / 1e9:.2f} GB of address space (ulimit -v), "
            f"{_LEAST_ADDRESS_SPACE / 1e9:.1f} GB are needed; raise that limit"
        )


def free_bytes(folder: Path) -> int:
    """Return the free space of the file system under `folder`, or under the nearest ancestor that exists."""
    return shutil.disk_usage(_existing(folder)).free


def shortage(free: int, needed: int) -> str:
    """Describe a lack of disk space in a unit, and with the decimals, in which the two
    numbers of bytes differ."""
    size, unit = next(
        (each for each in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if needed >= 10 * each[0]), (1, "bytes")
    )
    digits = next(each for each in range(10) if f"{free / size:.{each}f}" != f"{needed / size:.{each}f}")
    return f"{free / size:.{digits}f} {unit} free, about {needed / size:.{digits}f} {unit} are needed"


def is_virtual(folder: Path) -> bool:
    """Return whether the file system under `folder` has no space at all, like `/proc`
    and `/sys`."""
    return shutil.disk_usage(_existing(folder)).total == 0


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
