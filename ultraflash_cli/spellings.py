"""Old spellings of options, which keep working for one version, with a warning."""

from collections.abc import Sequence

__all__ = ["modern"]

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
