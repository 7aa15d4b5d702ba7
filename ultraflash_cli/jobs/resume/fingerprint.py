"""Fingerprints of jobs: the content of inputs, and the versions of everything that
affects pixels."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from ultraflash_cli.errors import InputError

__all__ = [
    "ATTENTION",
    "content_digest",
    "file_facts",
    "is_only_another_version",
    "library_versions",
    "pictures_digest",
    "versions_in",
]

_SAMPLES = 64
_SAMPLE_BYTES = 64 << 10
"""A large file is identified by its size and 64 evenly spaced blocks of 64 KiB, including the first and the last."""

_PICTURES_BYTES = 256 << 20
"""Approximate number of bytes read from all images of a sequence together."""
_PICTURE_SAMPLES = 8
_LEAST_SAMPLE_BYTES = 4 << 10

ATTENTION = "the generator's attention"
"""Fact of jobs in 8 bits: earlier versions computed it in 16 bits, and so saved states."""

_VERSION = "the version of "
_OURS = ("the weights", "the plan", "the memory plan", "the encoder", "the streams", "the segment length", ATTENTION)
"""Choices that another version of the program may make differently for the same
command."""


def content_digest(path: Path, *, samples: int = _SAMPLES, sample_bytes: int = _SAMPLE_BYTES) -> str:
    """Hash a file's size and content; of a large file, evenly spaced blocks including
    both ends. Raises OSError."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as file:
        if size <= samples * sample_bytes:
            digest.update(file.read())
            return digest.hexdigest()
        for number in range(samples):
            file.seek((size - sample_bytes) * number // (samples - 1))
            digest.update(file.read(sample_bytes))
    return digest.hexdigest()


def pictures_digest(pictures: Sequence[Path]) -> str:
    """Hash names, sizes and contents of a sequence's images; the more there are, the
    less is read of each. Raises InputError.
    """
    each = _PICTURES_BYTES // max(1, len(pictures)) // _PICTURE_SAMPLES
    sample_bytes = max(_LEAST_SAMPLE_BYTES, min(_SAMPLE_BYTES, each))
    digest = hashlib.sha256()
    for picture in pictures:
        try:
            content = content_digest(picture, samples=_PICTURE_SAMPLES, sample_bytes=sample_bytes)
        except OSError as error:
            raise InputError(f"{picture}: cannot be read ({error.strerror}); check the permissions") from error
        digest.update(f"{picture.name} {content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def file_facts(name: str, path: Path) -> dict[str, object]:
    """Return facts that identify a file, for a fingerprint; `name` is its user-facing name.

    Modification times are not included, as copies have different ones.
    """
    return {f"{name}'s size": path.stat().st_size, f"{name}'s content": content_digest(path)}


def library_versions(*more: str) -> dict[str, object]:
    """Return the versions of everything that affects pixels and packets, for a fingerprint."""
    return {f"{_VERSION}{name}": _version(name) for name in ("ultraflash", "torch", "av", "numpy", *more)}


def is_only_another_version(old: Mapping[str, object], new: Mapping[str, object]) -> bool:
    """Return whether two fingerprints belong to the same command under different
    versions of the program or its libraries."""
    changed = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    versions = changed & {*versions_in(old), *versions_in(new)}
    return bool(versions) and changed - versions <= set(_OURS)


def versions_in(fingerprint: Mapping[str, object]) -> dict[str, object]:
    """Return the part of a fingerprint that names versions."""
    return {name: value for name, value in fingerprint.items() if name.startswith(_VERSION)}


@cache
def _version(name: str) -> str:
    return version(name)
