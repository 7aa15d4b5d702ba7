"""Export models to the formats of other programs."""

import logging
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ultraflash_cli.errors import ConfigError, OutputError, UsageError

__all__ = ["Exported", "export_onnx"]

_NEEDED = ("onnx", "onnxscript")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model."""

    output: str
    model: str
    scale: int
    detail: float
    inputs: tuple[str, ...]
    """Names of the inputs; each state is returned as an output named `next_` plus its
    name."""
    bytes: int


def export_onnx(
    output: Path, *, scale: int = 2, detail: float = 1.0, overwrite: bool = False, model: str = "lite"
) -> Exported:
    """Write the upscaler as an ONNX model, with its state as inputs and outputs.

    Raises UsageError for an output that exists or a missing package, ConfigError for other values, OutputError.
    """
    if scale not in (2, 3):
        raise ConfigError(f"--scale must be 2 or 3, got {scale}")
    if not 0 <= detail <= 1:
        raise ConfigError(f"--detail must be between 0 and 1, got {detail}")
    if output.suffix.lower() != ".onnx":
        raise UsageError(f"{output} is not the name of an ONNX model; use {output.with_suffix('.onnx')}")
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; use -y to replace it, or -o for another file")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(f"export needs {' and '.join(missing)}; run pip install '.[onnx]' in the source folder")

    import torch

    from ultraflash_cli.models.build import take_pixel_path
    from ultraflash_cli.models.onnx import input_names, write_onnx
    from ultraflash_cli.models.profile import find_profile
    from ultraflash_cli.models.shelf import Shelf

    profile = find_profile(model).at_scale(scale)
    path = take_pixel_path(Shelf(None), profile, device=torch.device("cpu"), dtype=torch.float32, detail=detail)
    part = output.with_name(f".{output.name}.part.onnx")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_onnx(path, part)
        part.replace(output)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}; choose another location with -o") from error
    finally:
        part.unlink(missing_ok=True)
    return Exported(
        output=str(output),
        model=model,
        scale=scale,
        detail=detail,
        inputs=tuple(input_names(path)),
        bytes=output.stat().st_size,
    )
