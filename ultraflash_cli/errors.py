"""The family of errors a user can meet, one exit code each."""

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
    "UltraflashError",
    "UsageError",
    "WeightsError",
    "is_out_of_memory",
]

_PERHAPS_NO_MEMORY = ("could not create a primitive",)
"""What oneDNN says for lack of memory, among other reasons: believed where the process has a limit."""
_NO_MEMORY = ("can't allocate memory", "annot allocate memory", "failed to map segment", "std::bad_alloc")


class UltraflashError(Exception):
    """A failure with a message for people: what was found, what was expected, what to do."""

    exit_code: int = 1
    source: str = ""
    """The input that it is about, as it was named; empty where it is about none."""


class UsageError(UltraflashError):
    """The command was asked for something that makes no sense."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value is outside what it can be."""


class InputError(UltraflashError):
    """The input is missing, unreadable or unsupported."""

    exit_code = 3


class DeviceError(UltraflashError):
    """No usable device."""

    exit_code = 4


class OutOfMemory(UltraflashError):
    """Memory ran out after every smaller plan was tried.

    `planned_bytes` is what the plan was for that did not fit; None where there is no smaller one to try.
    """

    exit_code = 5

    def __init__(self, message: str, *, planned_bytes: int | None = None) -> None:
        super().__init__(message)
        self.planned_bytes = planned_bytes


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error of Python or of a library, or what it came from, means that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        words = _NO_MEMORY + (_PERHAPS_NO_MEMORY if _has_limit() else ())
        if isinstance(error, (ImportError, OSError, RuntimeError)) and any(word in str(error) for word in words):
            return True
        # torch.OutOfMemoryError by name, so that torch need not be imported to look.
        if type(error).__name__ == "OutOfMemoryError":
            return True
        error = error.__cause__ or error.__context__
    return False


def _has_limit() -> bool:
    """Tell whether this process may map only so much memory (ulimit -v)."""
    try:
        import resource
    except ImportError:  # Windows has none
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


class OutputCheckError(UltraflashError):
    """The finished output failed its own check; nothing was left in place."""

    exit_code = 6


class OutputError(UltraflashError):
    """The output cannot be written: disk full, no permission, locked, or not a folder."""

    exit_code = 7


class MuxError(OutputError):
    """The container does not take what it is given."""


class WeightsError(UltraflashError):
    """Weights are missing, changed, unusable or offline."""

    exit_code = 8


class BatchError(UltraflashError):
    """Some or all files of a batch failed."""

    exit_code = 9


class Interrupted(UltraflashError):
    """SIGINT, SIGTERM or SIGHUP stopped the work; the same command resumes it."""

    def __init__(self, message: str, *, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
