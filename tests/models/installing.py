"""Installing weights in a store without a hub."""

from safetensors.torch import save_file
from torch import Tensor

from ultraflash_cli.weights.manifest import read_manifest
from ultraflash_cli.weights.store import Receipt, WeightStore
from ultraflash_cli.weights.verify import sha256_of

__all__ = ["put"]


def put(store: WeightStore, name: str, tensors: dict[str, Tensor]) -> None:
    """Put a file into a store as a pull does."""
    entry = read_manifest()[name]
    part = store.part(entry)
    save_file(tensors, part)
    size, digest = part.stat().st_size, sha256_of(part)
    receipt = Receipt(
        name=name,
        repository=None,
        revision=None,
        source="file",
        source_bytes=size,
        source_sha256=entry.sha256 or digest,
        verified_by="keys",
        bytes=size,
        sha256=digest,
        mtime_ns=part.stat().st_mtime_ns,
    )
    store.add(entry, part, receipt)
