"""Export a finished run to weight files: one safetensors file per network, and its row
in the list of weights."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ultraflash_cli.errors import WeightsError
from ultraflash_cli.models.architectures import expected_shapes
from ultraflash_cli.train.centring import centred_phases
from ultraflash_cli.train.recipes import RECIPES
from ultraflash_cli.train.record import read_record
from ultraflash_cli.train.run import AVERAGE
from ultraflash_cli.video.partial import output_errors, partial_file
from ultraflash_cli.weights.detect import READS_LOW_FRAMES, detect
from ultraflash_cli.weights.load import read_tensors, stored_in_8_bits
from ultraflash_cli.weights.manifest import WeightEntry, manifest_text, read_manifest, read_sets

__all__ = ["ExportJob", "export", "joined_coders", "list_entries", "networks_of", "published", "write_network"]


_ARCHITECTURES = {"text_encoder": "prompt_encoder", "pixels_detail": "pixels"}
"""Architectures of networks whose files are not named after them."""

_EXACT = {"decoder": ("decoder.1.weight", "decoder.18.weight")}
"""Matrices kept in float16 when the others are stored in 8 bits: the first and last of
the built-in decoder, whose rounding costs the most."""


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """Network to export, and its destination."""

    run: Path
    """Folder of a training run."""
    folder: Path
    """Output folder; its name becomes the model's."""
    listing: Path
    """The list of weights; rows of networks that are not exported are kept."""
    metrics: tuple[tuple[str, str], ...] = ()
    """Metrics on held-out clips, for the files' metadata."""
    licence: str = "Apache-2.0"
    """SPDX identifier of the weights."""


def export(job: ExportJob) -> list[WeightEntry]:
    """Write each network trained by the run's recipe to a file, with its row in the
    list; return the rows. Raises InputError if the folder contains no run, WeightsError
    for weights that are damaged or not finite.
    """
    record = read_record(job.run)
    roles: tuple[str, ...] = RECIPES[record.recipe].load().NETWORKS
    metadata = {
        "recipe": record.recipe,
        "recipe_hash": record.recipe_hash,
        "data_hash": record.data_hash,
        "steps": str(record.steps),
        "seed": str(record.seed),
        **dict(job.metrics),
    }
    networks = joined_coders(networks_of(read_tensors(job.run / AVERAGE), roles))
    entries = [
        write_network(job.folder, name, each, metadata, job.licence, in_8_bits=name == "generator")
        for name, each in networks.items()
    ]
    list_entries(job.listing, entries)
    return entries


def write_network(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    licence: str,
    *,
    in_8_bits: bool,
) -> WeightEntry:
    """Write the file of one network of the model named after ``folder``; return its
    row."""
    if name == "pixels_detail" and any(key.startswith("project.") for key in tensors):
        tensors = centred_phases(tensors)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    stored = {key: value.half() for key, value in tensors.items()}
    if in_8_bits:
        stored = stored_in_8_bits(tensors, exact=_EXACT.get(name, ()))
    with partial_file(path) as part:
        save_file(stored, part, metadata=dict(metadata))
        part.chmod(0o644)  # safetensors creates files that only their owner can read
    content = path.read_bytes()
    return WeightEntry(
        name=f"{folder.name}/{name}",
        architecture=published(tensors) or _ARCHITECTURES.get(name, name.split("_x")[0]),
        file=f"{folder.name}/{path.name}",
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        licence=licence,
    )


def list_entries(listing: Path, entries: Iterable[WeightEntry]) -> None:
    """Add rows to a list of weights, replacing those of the same name."""
    rows, sets = (read_manifest(listing), read_sets(listing)) if listing.exists() else ({}, {})
    rows |= {entry.name: entry for entry in entries}
    with partial_file(listing) as part:
        part.write_text(manifest_text(rows, sets), encoding="utf-8")


def published(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the architecture of a published network with encoder and decoder in one;
    None for any other network."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    found = detect(shapes)
    if found not in (*READS_LOW_FRAMES, *READS_LOW_FRAMES.values()):
        return None
    return found if shapes == expected_shapes(found) else None


def joined_coders(networks: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return the networks, with encoder and decoder merged if they have the published
    sizes, which their authors store in one file."""
    both = networks.get("encoder", {}) | networks.get("decoder", {})
    if published(both) is None:
        return networks
    return {name: tensors for name, tensors in networks.items() if name != "encoder"} | {"decoder": both}


def networks_of(tensors: Mapping[str, Tensor], roles: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """Split the weights of a run into networks; ``upsamplers.2`` becomes
    ``upsampler_x2``.

    Raises WeightsError if a role is missing.
    """
    networks: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        role, name = key.split(".", 1)
        if role not in roles:
            continue
        network = role
        if role == "upsamplers":
            scale, name = name.split(".", 1)
            network = f"upsampler_x{scale}"
        networks.setdefault(network, {})[name] = value.float().contiguous()
    lacking = [role for role in roles if not any(key.startswith(f"{role}.") for key in tensors)]
    if lacking:
        raise WeightsError(f"the run has no weights of {', '.join(lacking)}")
    return dict(sorted(networks.items()))
