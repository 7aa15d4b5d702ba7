"""Weight files into networks: every key matched, every number finite."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ultraflash_cli.errors import WeightsError

__all__ = ["load_strictly", "read_tensors", "require_finite"]


def read_tensors(
    path: Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, in the file's dtypes unless ``dtype`` is given.

    Without ``dtype`` and ``device`` they are mapped from the file, not copied; else one tensor at a time is. Raises
    WeightsError for a broken file or values that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name).to(device=device)
                require_finite(tensor, name, path.name)
                tensors[name] = tensor.to(dtype=dtype)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path.name}: not a readable safetensors file ({error}).") from error
    return tensors


def require_finite(tensor: Tensor, name: str, file: str) -> None:
    """Raise WeightsError where a tensor holds NaN or infinity; makes no copy of it."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return
    low, high = tensor.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise WeightsError(f"{file}: {name} holds values that are not finite. The file is damaged.")


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], *, name: str) -> None:
    """Give ``network`` its weights; raises WeightsError for a missing or unexpected key or another shape.

    A network on the meta device takes the tensors as they are, in their dtype and on their device; any other copies
    them into its own.
    """
    own = network.state_dict()
    wanted = {key: tuple(value.shape) for key, value in own.items()}
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        raise WeightsError(
            f"{name}: {len(missing)} keys are missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'})."
        )
    for key, shape in wanted.items():
        if tuple(tensors[key].shape) != shape:
            raise WeightsError(f"{name}: {key} has shape {tuple(tensors[key].shape)}, expected {shape}.")
    network.load_state_dict(tensors, strict=True, assign=any(value.is_meta for value in own.values()))
