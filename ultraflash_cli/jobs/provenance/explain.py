"""Read the tag of an output: how it was made, and the command to repeat it."""

import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ultraflash_cli.errors import InputError
from ultraflash_cli.jobs.planning.target import is_pictures
from ultraflash_cli.jobs.provenance.made import Made

__all__ = ["Explanation", "explain", "explanation_of"]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Description of how a file was made."""

    file: str
    made: Made
    arguments: tuple[str, ...]
    """The arguments of the command that repeats it; INPUT stands for the input,
    INIT_CLIP for the clip that it continues."""
    command: str
    """The same command as a shell line."""
    differences: tuple[str, ...]
    """Reasons why this installation may produce different pixels."""


def explain(path: Path) -> Explanation:
    """Read the tag of a file, or of the first image of a folder or pattern. Raises
    InputError if there is none."""
    found = explanation_of(path)
    if found is None:
        raise InputError(
            f"{path}: no tag says how it was made; ultraflash writes one into mp4, mov, mkv, webm, png and jpg "
            "files unless --no-tag is given"
        )
    return found


def explanation_of(path: Path) -> Explanation | None:
    """Read the tag of a file; None if it has no readable tag. Raises InputError for a
    missing file."""
    from ultraflash_cli.video.made_tag import read_made

    name, file = _output_name(path)
    text = read_made(file)
    if text is None:
        return None
    try:
        made = Made.from_text(text)
    except (ValueError, RecursionError):
        return None
    if made.single:
        name = f"OUT{path.suffix}"
    arguments = made.arguments(name)
    command = shlex.join(arguments) + (f" > {shlex.quote(name)}" if made.streamed else "")
    return Explanation(
        file=str(path), made=made, arguments=tuple(arguments), command=command, differences=tuple(_differences(made))
    )


def _output_name(path: Path) -> tuple[str, Path]:
    """Return the output name to use in the command, and the file to read."""
    from ultraflash_cli.video.sequence import WRITTEN_PICTURES, existing_pictures, is_pattern

    patterns = [path / f"%05d{suffix}" for suffix in WRITTEN_PICTURES] if path.is_dir() else [path]
    if not is_pattern(patterns[0]):
        name = f"OUT/%05d{path.suffix}" if is_pictures(path) else f"OUT{path.suffix}"
        return name, path
    try:
        pattern, pictures = next(
            ((each, found) for each in patterns if (found := existing_pictures(each))), (patterns[0], {})
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the permissions") from error
    if not pictures:
        raise InputError(f"{path}: no image {pattern.name}; give a video or an image")
    return f"OUT/{pattern.name}", next(iter(pictures.values()))


def _differences(made: Made) -> list[str]:
    from ultraflash_cli.weights.manifest import read_manifest

    found: list[str] = []
    if made.version != version("ultraflash"):
        found.append(f"made by version {made.version}, this is {version('ultraflash')}")
    known = read_manifest()
    changed = [
        name for name, sha256 in made.weights.items() if name in known and known[name].sha256 not in (None, sha256)
    ]
    if changed:
        found.append(f"this version has other weights: {', '.join(changed)}")
    if made.unknown:
        found.append(f"this version does not know {', '.join(made.unknown)}")
    return found
