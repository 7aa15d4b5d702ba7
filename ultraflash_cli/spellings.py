"""Other spellings: old ones of options, which keep working for one version with a
warning, and names of values that other programs use."""

import difflib
from collections.abc import Sequence

__all__ = ["meant", "modern"]

_FLAGS = {
    ("--color", "match"): "--match-colors",
    ("--color", "off"): "--no-match-colors",
    ("--cuts", "auto"): "--cuts",
    ("--cuts", "off"): "--no-cuts",
    ("--subs", "copy"): "--subs",
    ("--subs", "none"): "--no-subs",
    ("--audio", "none"): "--no-audio",
    ("--resume", "auto"): "--resume",
    ("--resume", "off"): "--no-resume",
    ("--cuda-graphs", "auto"): "--cuda-graphs",
    ("--cuda-graphs", "off"): "--no-cuda-graphs",
    ("--wall", "on"): "--wall",
    ("--wall", "off"): "--no-wall",
}
"""Current flags for former options with a value."""

_NAMES = {
    "h264": "x264 libx264 avc avc1 h264nvenc mpeg4avc",
    "hevc": "h265 x265 libx265 hvc1 hev1 hevcnvenc mpegh",
    "av1": "av01 svtav1 libsvtav1 libaomav1 aom rav1e av1nvenc",
    "vp9": "vp09 vpx vpx9 libvpx libvpxvp9 webm",
    "prores": "proresks proresaw apcn apch ap4h",
    "y4m": "rawvideo raw yuv yuv4mpeg",
    "frame": "on always yes",
    "off": "no never",
}
"""Names of codecs and modes in other programs, without punctuation, by ours."""


def modern(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments in their current spelling, and a warning for each change."""
    new: list[str] = []
    warnings: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*new, argument, *rest], warnings

        option, equals, value = argument.partition("=")
        old = (option, value) if equals else (argument, rest[0] if rest else "")
        if old not in _FLAGS:
            new.append(argument)
            continue
        if not equals:
            del rest[0]
        new.append(_FLAGS[old])
        warnings.append(f"'{' '.join(old)}' is an old spelling; use {_FLAGS[old]}")
    return new, warnings


def meant(value: str, known: Sequence[str]) -> str:
    """Return a question that ends a message about an unknown `value`, naming the one of
    the `known` values that was probably meant; empty if there is none."""
    word = "".join(letter for letter in value.lower() if letter.isalnum())
    found = [name for name in known if word == name or word in _NAMES.get(name, "").split()]
    found = found or difflib.get_close_matches(value.lower(), known, n=1)
    return f"; did you mean {found[0]}?" if found else ""
