"""The errors that users can meet, each with its exit code, and the smallest warnings.

UltraflashError
├── UsageError 2
│   ├── ConfigError
│   └── OutputExists
├── InputError 3
├── DeviceError 4
├── OutOfMemory 5
├── OutputCheckError 6
├── OutputError 7
│   └── MuxError
├── WeightsError 8
├── BatchError 9
└── Interrupted 130, 143, 129

The first line of each docstring is its row in the table of docs/cli.md.
"""

import errno

__all__ = [
    "BatchError",
    "ConfigError",
    "DeviceError",
    "InputError",
    "Interrupted",
    "MuxError",
    "OutOfMemory",
    "OutputCheckError",
    "OutputError",
    "OutputExists",
    "Remark",
    "UltraflashError",
    "UsageError",
    "WeightsError",
    "is_out_of_memory",
]

_PERHAPS_NO_MEMORY = ("could not create a primitive",)
"""oneDNN's message when out of memory, but also for other reasons; taken as such if the
process has a limit."""
_NO_MEMORY = ("can't allocate memory", "annot allocate memory", "failed to map segment", "std::bad_alloc")


class UltraflashError(Exception):
    """An error with a message for users: what was found, what was expected, what to
    do."""

    exit_code: int = 1
    source: str = ""
    """The input concerned, as the user named it; empty if there is none."""


class UsageError(UltraflashError):
    """Wrong usage: a bad option or value, an impossible target, an existing output."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value is out of range."""


class OutputExists(UsageError):
    """The output exists, and may be neither replaced nor skipped."""


class InputError(UltraflashError):
    """The input is missing, unreadable or unsupported."""

    exit_code = 3


class DeviceError(UltraflashError):
    """No usable device."""

    exit_code = 4


class OutOfMemory(UltraflashError):
    """Out of memory, even with every smaller plan.

    `planned_bytes` is the size of the plan that did not fit; None if there is no smaller one to try.
    With two devices, `device` is the one that ran out, if known, and `retry_within` the limits for the next attempt.
    """

    exit_code = 5

    def __init__(
        self, message: str, *, planned_bytes: int | None = None, device: str = "", retry_within: str | None = None
    ) -> None:
        super().__init__(message)
        self.planned_bytes = planned_bytes
        self.device = device
        self.retry_within = retry_within


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, means that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        words = _NO_MEMORY + (_PERHAPS_NO_MEMORY if _has_limit() else ())
        if isinstance(error, (ImportError, OSError, RuntimeError)) and any(word in str(error) for word in words):
            return True
        # torch.OutOfMemoryError by name, to avoid importing torch.
        if type(error).__name__ == "OutOfMemoryError":
            return True
        error = error.__cause__ or error.__context__
    return False


def _has_limit() -> bool:
    """Return whether the address space of this process is limited (ulimit -v)."""
    try:
        import resource
    except ImportError:  # Windows has none
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


class OutputCheckError(UltraflashError):
    """The finished output failed its own check; nothing was left in place."""

    exit_code = 6


class OutputError(UltraflashError):
    """The output cannot be written: disk full, no permission, in use by another run, stream closed."""

    exit_code = 7


class MuxError(OutputError):
    """The container rejects a stream."""


class WeightsError(UltraflashError):
    """Weights are missing, changed, unusable or unreachable."""

    exit_code = 8


class BatchError(UltraflashError):
    """Some or all files of a batch failed (a single file keeps its own code)."""

    exit_code = 9


class Interrupted(UltraflashError):
    """Interrupted by a signal; the same command resumes."""

    def __init__(self, message: str, *, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Remark(str):
    """A warning about something so small that `-q` silences it."""

    __slots__ = ()

    def removesuffix(self, suffix: str, /) -> "Remark":
        """Like that of a plain text, but still a remark."""
        return Remark(super().removesuffix(suffix))
