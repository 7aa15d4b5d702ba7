"""Load weight files into networks: every key must match, every number be finite."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ultraflash_cli.errors import WeightsError

__all__ = ["SCALE", "load_strictly", "read_tensors", "require_finite", "stored_in_8_bits"]

SCALE = ".scale"
"""Name suffix of the row scales of an 8-bit matrix."""


def read_tensors(
    path: Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, in the file's dtypes unless ``dtype`` is given.

    Without ``dtype`` and ``device`` they are memory-mapped; otherwise they are copied
    one at a time. Tensors stored by ``stored_in_8_bits`` are returned in float32, or in
    ``dtype``. Raises WeightsError for a damaged file or values that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
            for name in file.keys():  # noqa: SIM118
                if name.removesuffix(SCALE) != name and name.removesuffix(SCALE) in names:
                    continue
                tensor = file.get_tensor(name).to(device=device)
                if tensor.dtype == torch.int8 and name + SCALE in names:
                    scale = file.get_tensor(name + SCALE).to(device=device)
                    tensor = tensor.float() * scale.float().view(-1, *[1] * (tensor.ndim - 1))
                require_finite(tensor, name, path.name)
                tensors[name] = tensor.to(dtype=dtype)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path.name}: not a readable safetensors file ({error})") from error
    return tensors


def stored_in_8_bits(tensors: Mapping[str, Tensor], *, exact: Collection[str] = ()) -> dict[str, Tensor]:
    """Return float tensors in a compact form for a file: matrices as int8 with a
    float16 scale per row, the rest and those named in ``exact`` in float16. The
    rounding error is at most 1/254 of a row's largest value. In a convolution kernel
    single taps may be off by twice that, but not their sum: the error of each tap is
    carried over to the next, because pictures are smooth. ``read_tensors`` reverses the
    conversion.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or name in exact:
            stored[name] = tensor.half()
            continue
        rows = tensor.float().flatten(1)
        # A float16 scale must not be rounded down.
        scale = (rows.abs().amax(1) / 127 * (1 + 2**-10)).clamp_min(2**-14).half()
        steps = (rows / scale.float()[:, None]).view(tensor.shape)
        stored[name] = _rounded(steps).clamp(-127, 127).to(torch.int8).contiguous()
        stored[name + SCALE] = scale
    return stored


def _rounded(steps: Tensor) -> Tensor:
    """Return integers ``[O, I, *taps]``, with the rounding error of each tap carried
    over to the next."""
    taps = steps.flatten(2) if steps.ndim > 2 else steps.unsqueeze(-1)
    left, whole = torch.zeros_like(taps[..., 0]), torch.empty_like(taps)
    for number, tap in enumerate(taps.unbind(-1)):
        whole[..., number] = (tap + left).round()
        left += tap - whole[..., number]
    return whole.view(steps.shape)


def require_finite(tensor: Tensor, name: str, file: str) -> None:
    """Raise WeightsError if a tensor contains NaN or infinity, without copying it."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return
    low, high = tensor.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise WeightsError(f"{file}: {name} contains NaN or infinite values; the file is damaged")


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], *, name: str) -> None:
    """Load weights into ``network``; raises WeightsError for a missing or unexpected
    key or a wrong shape. A network on the meta device adopts the tensors with their
    dtype and device; any other copies them into its own.
    """
    own = network.state_dict()
    wanted = {key: tuple(value.shape) for key, value in own.items()}
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        raise WeightsError(
            f"{name}: {len(missing)} keys are missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'})"
        )
    for key, shape in wanted.items():
        if tuple(tensors[key].shape) != shape:
            raise WeightsError(f"{name}: {key} has shape {tuple(tensors[key].shape)}, expected {shape}")
    network.load_state_dict(tensors, strict=True, assign=any(value.is_meta for value in own.values()))
