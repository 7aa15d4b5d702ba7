"""Captioned clips in a folder: files, captions and licences."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultraflash_cli.errors import InputError

__all__ = ["CaptionedClip", "captioned_clips"]

LISTING = "captions.jsonl"
"""Rows of file, caption, licence and source, next to the clips."""

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".m4v", ".avi", ".ts")
"""Files that count as clips."""


@dataclass(frozen=True, kw_only=True)
class CaptionedClip:
    """A clip and what is known about it."""

    path: Path
    name: str
    """Path within the folder."""
    caption: str
    licence: str
    source: str = ""
    """Source of the clip."""


def captioned_clips(folder: Path, *, licence: str | None) -> list[CaptionedClip]:
    """Return the clips of a folder by name, from its ``captions.jsonl``, or with a caption
    next to each: ``NAME.txt``, or ``NAME.json`` with ``caption``, ``licence`` and ``source``.

    ``licence`` applies to clips without one of their own. Raises InputError for a
    folder without clips, and for clips without a caption or a licence.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of clips")
    rows = list(_rows(folder))
    if not rows:
        raise InputError(f"{folder}: no clips ({', '.join(SUFFIXES)})")

    clips: list[CaptionedClip] = []
    for name, facts in sorted(rows, key=lambda row: row[0]):
        caption = str(facts.get("caption", "")).strip()
        stated = str(facts.get("licence") or facts.get("license") or licence or "").strip()
        if not caption:
            raise InputError(f"{folder / name}: no caption; write one to {Path(name).stem}.txt next to it")
        if not stated:
            raise InputError(f"{folder / name}: no licence; state one for all with --licence")
        clips.append(
            CaptionedClip(
                path=folder / name,
                name=name,
                caption=caption,
                licence=stated,
                source=str(facts.get("source", "")),
            )
        )
    return clips


def _rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    listing = folder / LISTING
    if listing.is_file():
        for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                yield str(row["file"]), row
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{listing}: line {number} is not JSON with a file ({error})") from error
        return

    for path in folder.rglob("*"):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        facts: dict[str, Any] = {}
        text, record = path.with_suffix(".txt"), path.with_suffix(".json")
        if record.is_file():
            try:
                facts = json.loads(record.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{record}: not readable as JSON ({error})") from error
        elif text.is_file():
            facts = {"caption": text.read_text(encoding="utf-8")}
        yield str(path.relative_to(folder)), facts
