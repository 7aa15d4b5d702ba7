"""Choice of an operation's implementation, Triton kernel or PyTorch reference, with the
reason."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = [
    "KERNEL_DTYPES",
    "Impl",
    "KernelUnsupportedError",
    "capability",
    "chooses_triton",
    "device_refusal",
    "on_its_device",
    "power_of_two",
    "prefers_kernels",
    "triton_refusal",
]

P = ParamSpec("P")
R = TypeVar("R")

Impl = Literal["auto", "triton", "reference"]
"""``triton`` and ``reference`` are used or raise; ``auto`` uses the kernel on supported
GPUs."""

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that most kernels read and write; all of them accumulate in float32."""
OLDEST_CAPABILITY = (8, 0)
"""Minimum compute capability for which kernels are compiled and checked; the
interpreter assumes it."""


class KernelUnsupportedError(RuntimeError):
    """The explicitly requested kernel does not support these arguments on this
    machine."""


def chooses_triton(
    op: str,
    impl: Impl,
    *tensors: Tensor,
    refusal: str | None = None,
    widens_bfloat16: bool = False,
) -> bool:
    """Return whether the kernel of ``op`` is used for ``tensors``; ``refusal`` is the
    operation's own reason not to.

    ``widens_bfloat16`` is passed to ``triton_refusal``. ``auto`` never uses the
    interpreter: kernels run there only in their tests. Raises KernelUnsupportedError if
    ``impl`` is ``triton`` and the kernel cannot run, ValueError for an unknown
    implementation.
    """
    if impl not in ("auto", "triton", "reference"):
        raise ValueError(f"{op}: impl must be auto, triton or reference, got {impl!r}")
    if impl == "reference" or (impl == "auto" and not prefers_kernels(tensors[0].device)):
        return False
    reason = refusal or triton_refusal(*tensors, widens_bfloat16=widens_bfloat16)
    if impl == "triton" and reason:
        raise KernelUnsupportedError(f"{op}: {reason}")
    return reason is None


def prefers_kernels(device: torch.device) -> bool:
    """Return whether ``auto`` uses the kernels for tensors on ``device``, that is, on a
    supported GPU."""
    return device.type == "cuda" and device_refusal(device) is None


def triton_refusal(*tensors: Tensor, widens_bfloat16: bool = False) -> str | None:
    """Return a sentence that explains why no kernel supports ``tensors``, or None; an
    operation may have additional reasons. ``widens_bfloat16`` means that the kernel
    converts bfloat16 to float32 on loading, which the interpreter does correctly.
    """
    device = tensors[0].device
    if any(x.device != device for x in tensors):
        found = " and ".join(sorted({str(x.device) for x in tensors}))
        return f"tensors are on {found}, expected one device."
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "a tensor requires gradients, but the kernel has no backward pass."
    if (
        device.type == "cpu"
        and not widens_bfloat16
        and any(x.dtype == torch.bfloat16 for x in tensors)
    ):
        return "Triton's interpreter computes bfloat16 incorrectly."
    return device_refusal(device)


def device_refusal(device: torch.device) -> str | None:
    """Return a sentence that explains why no kernel runs on ``device``, or None. On a
    CPU they only run in the interpreter."""
    if not _has_triton():
        return "Triton is not installed."
    if _interprets():
        return None
    if device.type != "cuda":
        return f"Triton needs an NVIDIA GPU, the tensors are on {device}."
    if torch.version.hip is not None:
        return "the kernels are checked on NVIDIA GPUs only."
    if capability(device) < OLDEST_CAPABILITY:
        found = ".".join(map(str, capability(device)))
        return f"compute capability {found} is older than 8.0."
    return None


def on_its_device(launch: Callable[P, R]) -> Callable[P, R]:
    """Make the device of a launcher's first tensor the current one, on which Triton
    launches."""

    @functools.wraps(launch)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        first = _first_tensor(args)
        if first is None or not first.is_cuda:
            return launch(*args, **kwargs)
        with torch.cuda.device(first.device):
            return launch(*args, **kwargs)

    return guarded


def _first_tensor(args: Sequence[object]) -> Tensor | None:
    for each in args:
        if isinstance(each, Tensor):
            return each
        if isinstance(each, list | tuple) and each and isinstance(each[0], Tensor):
            return each[0]
    return None


def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability for choosing a kernel's tile sizes."""
    return (
        OLDEST_CAPABILITY
        if device.type == "cpu"
        else torch.cuda.get_device_capability(device)
    )


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()


# torch.compile treats the results of these as constants, but would trace through a
# cache around them.
@torch.compiler.assume_constant_result
def _has_triton() -> bool:
    return _finds_triton()


@torch.compiler.assume_constant_result
def _interprets() -> bool:
    """Return whether Triton was set to interpreter mode before it was imported."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


@functools.cache
def _finds_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
