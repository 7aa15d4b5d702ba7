"""Weight files into networks: every key matched, every number finite."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ultraflash_cli.errors import WeightsError

__all__ = ["load_strictly", "read_tensors"]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file in float32. Raises WeightsError for a broken file or NaN."""
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path.name}: not a readable safetensors file ({error}).") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path.name}: {name} holds values that are not finite. The file is damaged.")
    return tensors


def load_strictly(network: nn.Module, tensors: dict[str, Tensor], *, name: str) -> None:
    """Give ``network`` its weights; raises WeightsError for a missing or unexpected key or another shape."""
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
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
    network.load_state_dict(tensors, strict=True)
