"""Stand-ins for published files: the right names and shapes, made-up values, every
wrapper."""

import json
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ultraflash_cli.models.architectures import expected_shapes
from ultraflash_cli.weights.detect import Shape

__all__ = ["MANIFESTS", "manifest_of", "meta_tensors", "saved", "tiny_decoder", "upsampler", "wrapped"]

MANIFESTS: dict[str, str | None] = {
    "generator": "self_forcing_dmd.generator",
    "lora": "longlive_lora",
    "sr_dit": "sr_dit_sparse",
    "upsampler_x2": "latent_upsampler_x2",
    "upsampler_x3": "latent_upsampler_x3",
    "upsampler_v3_x2": "latent_upsampler_v3_x2",
    "tiny_decoder": "tiny_decoder",
    "tiny_decoder_lr": None,
    "ultra_decoder": "ultra_decoder_v3",
    "ultra_decoder_released": None,
    "wan_vae": "wan2.1_vae",
    "text_encoder": "umt5_xxl_encoder",
}
"""Manifest of each architecture; None for one that is identified by its names alone."""


def manifest_of(folder: Path, architecture: str) -> tuple[dict[str, Any], dict[str, Shape]]:
    """Return the names and shapes of a manifest."""
    manifest = json.loads((folder / f"{MANIFESTS[architecture]}.json").read_text())
    shapes = {name: tuple(shape) for name, shape in manifest["tensors"].items()}
    for row in manifest.get("repeated", []):
        for i in range(row["count"]):
            prefix = row["prefix"].replace("{i}", str(i))
            shapes |= {prefix + name: tuple(shape) for name, shape in row["tensors"].items()}
    return manifest, shapes


def meta_tensors(shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def wrapped(tensors: Mapping[str, Any], *keys: str, prefix: str = "") -> dict[str, Any]:
    """Add a prefix to every name and wrap the result in nested dicts."""
    content: dict[str, Any] = {prefix + name: value for name, value in tensors.items()}
    for key in reversed(keys):
        content = {key: content}
    return content


def saved(content: object) -> bytes:
    file = BytesIO()
    torch.save(content, file)
    return file.getvalue()


@cache
def tiny_decoder() -> dict[str, Tensor]:
    """Return full-size weights in float16; one time growth has too many rows; only
    the last ones are used."""
    tensors = {name: _values(name, shape, torch.float16) for name, shape in expected_shapes("tiny_decoder").items()}
    rows = tensors["decoder.7.conv.weight"]
    tensors["decoder.7.conv.weight"] = torch.cat([torch.zeros_like(rows), rows])
    return tensors


@cache
def upsampler(scale: int) -> dict[str, Tensor]:
    """Return full-size weights in bfloat16."""
    shapes = expected_shapes(f"upsampler_x{scale}")
    return {name: _values(name, shape, torch.bfloat16) for name, shape in shapes.items()}


def _values(name: str, shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, len(name) / 64, dtype=dtype)
