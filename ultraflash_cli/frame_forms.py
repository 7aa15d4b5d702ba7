"""The forms of callers' frames: NumPy, torch or DLPack, integers or floats."""

from typing import TYPE_CHECKING, Any

from ultraflash_cli.errors import UsageError

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    Frames = ndarray | Tensor

__all__ = ["Form", "taken"]


class Form:
    """The caller's form of frames: array library, dtype and device."""

    def __init__(self, kind: str, dtype: str, device: str) -> None:
        self.kind, self.dtype, self.device = kind, dtype, device

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Form) and vars(self) == vars(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __str__(self) -> str:
        return f"{self.dtype} ({self.kind}, {self.device})"

    def give(self, pictures: "list[ndarray]", side: tuple[int, int]) -> "Frames":
        """Return integer pictures [H, W, 3] as one array of this form."""
        import numpy as np

        empty = np.empty((0, *side, 3), np.uint8 if self.dtype == "uint8" else np.uint16)
        whole = np.stack(pictures) if pictures else empty
        if self.dtype == "float32":
            whole = whole.astype(np.float32) / np.float32(65535)
        if self.kind == "numpy":
            return whole
        import torch

        return torch.from_numpy(whole).to(self.device)


def taken(frames: Any, size: tuple[int, int]) -> "tuple[Form, list[ndarray]]":
    """Return the form of frames, and the frames as integer pictures."""
    import numpy as np
    import torch

    kind = "torch" if isinstance(frames, torch.Tensor) else "numpy"
    if not isinstance(frames, torch.Tensor | np.ndarray):
        if not hasattr(frames, "__dlpack__"):
            raise UsageError(f"frames must be a NumPy array, a tensor or support DLPack, got {type(frames).__name__}")
        frames, kind = torch.from_dlpack(frames), "torch"
    where = "cpu"
    if isinstance(frames, torch.Tensor):
        where = str(frames.device)
        held = frames.detach().cpu()
        frames = (held.float() if held.is_floating_point() else held).numpy()
    array: Any = frames
    width, height = size
    if array.ndim != 4 or array.shape[1:] != (height, width, 3):
        raise UsageError(f"frames must be [T, {height}, {width}, 3], got {list(array.shape)}")
    name = str(array.dtype)
    if name in ("uint8", "uint16"):
        return Form(kind, name, where), list(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"frames must be uint8, uint16 or floats in 0..1, got {array.dtype}")
    if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise UsageError("float frames must be within 0..1; some values are not")
    deep = np.rint(array.astype(np.float64) * 65535).astype(np.uint16)
    return Form(kind, "float32", where), list(deep)
