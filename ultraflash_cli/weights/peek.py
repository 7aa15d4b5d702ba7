"""Read the names and shapes of the tensors in a file on the hub with range requests,
without downloading it."""

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ultraflash_cli.errors import WeightsError
from ultraflash_cli.weights.convert import read_checkpoint
from ultraflash_cli.weights.fetch import Hub, RemoteFile, fetch_range

__all__ = ["peek"]

_BLOCK = 1 << 18
"""Bytes per request."""
_LARGEST_INDEX = 1 << 26
"""Maximum size of the index of tensors."""


def peek(hub: Hub, remote: RemoteFile) -> Mapping[str, Any] | None:
    """Return the content of a checkpoint on the hub, nested as it was saved, with meta
    tensors. Returns None for a format without an index (old pickles) or a server
    without range requests. Pickles may contain only tensors and plain values. Raises
    WeightsError for a damaged file, a pickle with other content, and hub or network
    errors.
    """
    if remote.cached is not None:
        return read_checkpoint(remote.cached, name=f"{remote}")
    file = _RangedFile(hub, remote)
    try:
        start = file.read(9)
        if len(start) == 9 and start[8:] == b"{":
            return _safetensors(file, struct.unpack("<Q", start[:8])[0], remote)
        if start[:4] == b"PK\x03\x04":
            return _zipped(file, remote)
    except _NoRanges:
        pass
    return None


class _NoRanges(Exception):
    """The server only sends whole files."""


class _RangedFile(io.RawIOBase):
    """A file on the hub that is read block by block on demand."""

    def __init__(self, hub: Hub, remote: RemoteFile) -> None:
        self._hub = hub
        self._remote = remote
        self._at = 0
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._remote.bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        number, skip = divmod(self._at, _BLOCK)
        if self._at >= self._remote.bytes:
            return 0
        piece = self._block(number)[skip : skip + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * _BLOCK
            end = min(start + _BLOCK, self._remote.bytes)
            block = fetch_range(self._hub, self._remote, start, end)
            if block is None:
                raise _NoRanges
            if len(block) != end - start:
                raise WeightsError(f"{self._remote}: the hub sent {len(block)} bytes of {end - start}; try again later")
            self._blocks[number] = block
        return self._blocks[number]


def _safetensors(file: _RangedFile, length: int, remote: RemoteFile) -> dict[str, Any]:
    if length > min(_LARGEST_INDEX, remote.bytes):
        raise WeightsError(f"{remote}: not a readable weight file; its index claims {length} bytes")
    try:
        file.seek(8)
        rows = json.loads(io.BufferedReader(file).read(length))
        shapes = {name: row["shape"] for name, row in rows.items() if name != "__metadata__"}
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # any JSON value
        raise WeightsError(f"{remote}: not a readable weight file; its index is broken") from error


def _zipped(file: _RangedFile, remote: RemoteFile) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            index = sum(each.file_size for each in archive.infolist() if each.filename.endswith(".pkl"))
        if index > _LARGEST_INDEX:
            raise WeightsError(f"{remote}: not a readable weight file; its index claims {index} bytes")
        file.seek(0)
        with FakeTensorMode():
            content: object = torch.load(cast("Any", file), map_location="cpu", weights_only=True)
    except (_NoRanges, WeightsError):
        raise
    except Exception as error:
        raise WeightsError(
            f"{remote}: not a readable weight file; expected tensors saved by torch, and nothing else"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{remote}: contains {type(content).__name__}, expected tensors by name")
    return {str(key): value for key, value in cast("Mapping[Any, Any]", content).items()}
