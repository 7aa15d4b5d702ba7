"""Command-line names of job fields, declared by jobs and read by the command line, and
other programs' names of their values."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Flag", "meant"]

_NAMES = {
    "h264": "x264 libx264 avc avc1 mpeg4avc",
    "hevc": "h265 x265 libx265 hvc1 hev1 mpegh",
    "av1": "av01 svtav1 libsvtav1 libaomav1 aom rav1e",
    "h264_nvenc": "h264nvenc nvench264 nvenc avcnvenc x264nvenc",
    "hevc_nvenc": "hevcnvenc nvenchevc h265nvenc nvench265 x265nvenc",
    "av1_nvenc": "av1nvenc nvencav1",
    "vp9": "vp09 vpx vpx9 libvpx libvpxvp9 webm",
    "prores": "proresks proresaw apcn apch ap4h",
    "jpeg": "jpg mjpeg mjpg",
    "y4m": "rawvideo raw yuv yuv4mpeg",
    "frame": "on always yes",
    "off": "no never",
}
"""Names of codecs and modes in other programs, without punctuation, by ours."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Names and help of an option; type and default are those of the annotated
    field."""

    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    shows_default: bool = True
    given: Any = None
    """The type on the command line if it differs from the field's; `read` converts it."""
    read: Callable[[Any], Any] | None = None
    """Converter; raises UsageError."""


def meant(value: str, known: Sequence[str]) -> str:
    """Return a question that ends a message about an unknown `value`, naming the one of
    the `known` values that was probably meant; empty if there is none."""
    word = "".join(letter for letter in value.lower() if letter.isalnum())
    found = [name for name in known if word == name or word in _NAMES.get(name, "").split()]
    if not found and not value[:1].isdecimal():  # another size is not a slip
        found = difflib.get_close_matches(value.lower(), known, n=1)
    return f"; did you mean {found[0]}?" if found else ""
