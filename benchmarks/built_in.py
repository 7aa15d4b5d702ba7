"""Turn the weights of runs into those of the built-in model: its files and their rows
in the list of weights.

    python -m benchmarks.built_in FOLDER                     # averages of runs, or what was kept of them
    python -m benchmarks.built_in FOLDER --metric sr_dit lpips_1k=0.083

FOLDER holds safetensors files in which every tensor's name begins with its role:
encoder, decoder, upsamplers, generator, text_encoder, sr_dit. A role that is in none of
them keeps its file. The recipe, data, steps and scores in a file's metadata are copied
to the files made from it; ``--metric`` adds scores to a role. Matrices are stored in 8
bits with a scale for each row (``weights.load.stored_in_8_bits``). At the end the sizes
are printed, and the exit status is 1 if the model exceeds its 16 MB.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from ultraflash_cli.train.export import list_entries, networks_of, write_network
from ultraflash_cli.weights.load import read_tensors
from ultraflash_cli.weights.manifest import WeightEntry, package_folder

__all__ = ["main", "put_in"]

BUDGET_BYTES = 16_000_000
ROLES = ("encoder", "decoder", "upsamplers", "generator", "text_encoder", "sr_dit")


def put_in(
    source: Path, folder: Path, listing: Path, *, metrics: Sequence[tuple[str, str]] = (), licence: str = "Apache-2.0"
) -> list[WeightEntry]:
    """Write the networks in the files of ``source`` to ``folder`` and their rows to ``listing``; return the rows.

    ``metrics`` are pairs of a role and ``NAME=VALUE``. Raises WeightsError for files that are broken.
    """
    entries: list[WeightEntry] = []
    for path in sorted(source.glob("*.safetensors")):
        tensors = read_tensors(path)
        roles = tuple(role for role in ROLES if any(name.startswith(f"{role}.") for name in tensors))
        for name, network in networks_of(tensors, roles).items():
            measured = dict(text.split("=", 1) for role, text in metrics if name.startswith(role.rstrip("s")))
            entries.append(
                write_network(folder, name, network, {**_metadata(path), **measured}, licence, in_8_bits=True)
            )
    list_entries(listing, entries)
    return entries


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return file.metadata() or {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files and print the sizes; return 1 if the total is too large, 2 if
    there is nothing to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=package_folder() / "weights" / "lite", help="the model's folder")
    parser.add_argument("--list", type=Path, default=package_folder().parent / "weights.toml", help="list of weights")
    parser.add_argument("--metric", nargs=2, action="append", default=[], metavar=("ROLE", "NAME=VALUE"))
    settings = parser.parse_args(arguments)
    entries = put_in(settings.folder, settings.out, settings.list, metrics=settings.metric)
    for entry in entries:
        print(f"{entry.name:24}{entry.bytes:>12,}")
    total = sum(path.stat().st_size for path in settings.out.glob("*.safetensors"))
    print(f"{'all of it':24}{total:>12,}")
    if not entries:
        print(f"{settings.folder}: no weights of {', '.join(ROLES)}", file=sys.stderr)
        return 2
    return int(total > BUDGET_BYTES)


if __name__ == "__main__":
    sys.exit(main())
