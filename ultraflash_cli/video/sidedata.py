"""Side data that decoders attach to frames."""

import ctypes
import gc
from collections.abc import Iterable
from typing import cast

import av
from av.dictionary import Dictionary
from av.sidedata.sidedata import SideData, Type

__all__ = ["side_data"]

_LATER = {31: "EXIF"}
"""Kinds that FFmpeg knows and PyAV 18 does not."""


def side_data(frame: av.VideoFrame) -> dict[str, bytes]:
    """Return the side data of ``frame`` by FFmpeg's names (``DISPLAYMATRIX``,
    ``CONTENT_LIGHT_LEVEL``, ``ICC_PROFILE``, ``EXIF``)."""
    # The type hints declare a mapping by name; it iterates over the side data themselves.
    found = list(cast("Iterable[SideData]", frame.side_data))
    for data in found:
        _own_no_metadata(data)
    return {data.type.name: bytes(data) for data in found}


def _own_no_metadata(data: SideData) -> None:
    """Keep PyAV 18 from freeing what FFmpeg frees: it takes the dictionary of the side
    data, such as the name of a PNG's colour profile, for its own."""
    for each in gc.get_referents(data):
        if isinstance(each, Dictionary) and len(each):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


def _missing(kind: type[Type], value: object) -> Type | None:
    """Return the kind of a number that PyAV does not know, on which it otherwise fails
    with all side data of the frame."""
    if not isinstance(value, int):
        return None
    other = object.__new__(kind)
    other._name_, other._value_ = _LATER.get(value, f"KIND_{value}"), value
    return other


setattr(Type, "_missing_", classmethod(_missing))  # noqa: B010 - no attribute to assign for the type checker
