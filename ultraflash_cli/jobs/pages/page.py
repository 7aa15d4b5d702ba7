"""Helpers shared by all pages: filling the template, facts about a clip and how it was
made, writing the file."""

import base64
import json
import tempfile
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.errors import OutputError, UsageError
from ultraflash_cli.jobs.provenance.words import corrected

if TYPE_CHECKING:
    from ultraflash_cli.video.probe import ClipInfo

__all__ = ["FITTING", "PICTURES_BYTES", "check_page_place", "clip_facts", "filled", "made_by", "webp_url", "write_page"]


FITTING = ((90, 2560), (82, 2560), (72, 1920), (60, 1600), (45, 1280), (30, 960))
"""WebP quality and longest side in pixels; the first pair that keeps a page small is
used."""
PICTURES_BYTES = 9_000_000
"""Limit for the total size of a page's pictures; base64 adds a third."""
_HDR = {16: "PQ", 18: "HLG"}
"""HDR transfer characteristics by FFmpeg's numbers."""


def check_page_place(html: Path, clips: Iterable[Path], *, overwrite: bool) -> None:
    """Reject, before any work, a page that would replace a clip or another file, or
    that cannot be written.

    Raises UsageError, OutputError.
    """
    for clip in clips:
        if html.exists() and clip.exists() and html.samefile(clip):
            raise UsageError(f"{html} is one of the compared clips; choose another file with --html")
    if html.is_dir():
        raise UsageError(f"{html} is a folder; choose a file with --html")
    if html.exists() and not overwrite:
        raise UsageError(f"{html} exists; use -y to replace it, or choose another file with --html")
    if not html.parent.is_dir():
        raise OutputError(f"cannot write {html}: {html.parent} is not a folder; choose another location with --html")
    try:
        with tempfile.TemporaryFile(dir=html.parent):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot write {html}: {reason}; choose another location with --html") from error


def filled(data: Mapping[str, object]) -> str:
    """Return the page with its data; it loads no external resources."""
    footer = {"footer": f"Made by ultraflash {version('ultraflash')}. This file is complete: it loads nothing."}
    text = json.dumps({**data, **footer}).replace("<", "\\u003c")  # so that no file name can close the script element
    page = resources.files("ultraflash_cli.jobs.pages").joinpath("compare.html").read_text(encoding="utf-8")
    return page.replace("__DATA__", text)


def write_page(html: Path, page: str) -> None:
    """Write a page to its path, whole or not at all. Raises OutputError."""
    from ultraflash_cli.video.partial import output_errors, partial_file

    with partial_file(html) as part, output_errors(html):
        part.write_text(page, encoding="utf-8", errors="backslashreplace")


def webp_url(picture: bytes) -> str:
    """Return a WebP picture as a data URL."""
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def clip_facts(info: "ClipInfo", *, frames: int | None) -> dict[str, str]:
    """Return the facts about a clip for a page, by title."""
    facts = {
        "file": info.path.name,
        "size": f"{info.display_width_px}x{info.display_height_px}",
        "frames": str(frames) if frames is not None else "unknown",
        "frames per second": f"{float(info.average_rate):.3f}".rstrip("0").rstrip("."),
        "duration": f"{info.duration_s:.2f} s" if info.duration_s is not None else "unknown",
        "codec": f"{info.codec}, {info.pix_fmt}" + (", interlaced" if info.interlaced else ""),
        "colour": _color_words(info),
        "streams": ", ".join(stream.kind for stream in info.streams),
    }
    if isinstance(info.source, Path):
        facts["file size"] = f"{info.source.stat().st_size / 1e6:.2f} MB"
    return facts


def _color_words(info: "ClipInfo") -> str:
    """Describe the clip's coding: matrix and range, and the transfer if it is HDR."""
    from ultraflash_cli.video.color import FULL, UNSPECIFIED, scale_matrix

    color = info.color
    words = ["RGB" if info.is_rgb else "untagged" if color.matrix == UNSPECIFIED else scale_matrix(color)]
    words += ["full range"] if color.range == FULL else []
    return ", ".join([*words, *([_HDR[color.transfer]] if color.transfer in _HDR else [])])


def made_by(path: Path, commands: Mapping[str, str]) -> dict[str, object]:
    """Return how a file was made according to its tag, and the corresponding
    commands."""
    from ultraflash_cli.jobs.provenance.explain import explanation_of

    found = explanation_of(path)
    if found is None:
        facts = {"tag": "none; the file does not say how it was made"}
        return {"facts": facts, "commands": dict(commands)}
    made = found.made
    facts = {
        "version": made.version,
        "model": made.model,
        "weights": ", ".join(f"{name} {sha256[:12]}" for name, sha256 in made.weights.items()),
        "seed": str(made.seed),
        "device": f"{made.device}, {made.precision}",
    }
    if made.guarded_share is not None:
        facts["guard"] = corrected(made.guarded_share)
    return {"facts": facts, "commands": {"make it again": found.command, **commands}}
