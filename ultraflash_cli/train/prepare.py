"""Training material made from what its licences allow: clips and photos of a manifest, photos of packages, pages."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ultraflash_cli.errors import InputError, UsageError
from ultraflash_cli.train.captions import caption
from ultraflash_cli.train.data import is_allowed
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.pages import PagesConfig, page_words, render_pages
from ultraflash_cli.train.scenes import random_scene
from ultraflash_cli.video.partial import output_errors, partial_file
from ultraflash_cli.video.plain import read_plain_frames

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Entry", "PhotoSource", "PrepareJob", "prepare"]

PICTURES = (".jpg", ".png")
LEAST_FILE_BYTES = 100_000
"""Smaller picture files are patterns, icons and previews."""
LEAST_SIDE_PX = 900
"""A photo's shorter side."""
SCENE = "drawn: "
"""Opens the source of a scene; its caption follows."""
SCENE_FPS = 16
LEAST_DETAIL = 1.2
"""Mean step between neighbouring pixels of every second row and column, in grey levels."""


@dataclass(frozen=True, kw_only=True)
class PhotoSource:
    """A folder of photos under one licence, such as an unpacked Debian package of wallpapers."""

    folder: Path
    """Searched at any depth; its own name opens the names of the material."""
    licence: str
    """As the source words it; its allowance is checked."""


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """What to prepare; the order here is the order of the material, on which the samples depend."""

    manifests: tuple[Path, ...] = ()
    """Each JSON with a list ``files`` of {file, licence, split, source}, paths relative to it."""
    with_photos: bool = False
    """Whether the manifests' photos are taken beside their clips."""
    photos: tuple[PhotoSource, ...] = ()
    """Folders of photos."""
    fonts: Path | None = None
    """Folder of fonts for rendered pages; None renders none."""
    texts: tuple[Path, ...] = ()
    """Plain texts whose words fill the pages."""
    pages: PagesConfig = field(default_factory=PagesConfig)
    """The rendered pages."""
    scenes: int = 0
    """Clips of scenes drawn by code, with their captions."""
    scene_size: tuple[int, int] = (240, 416)
    """Their height and width in pixels."""
    scene_frames: int = 20
    """Their length."""

    def __post_init__(self) -> None:
        if self.scenes < 0:
            raise UsageError(f"scenes are 0 or more, got {self.scenes}")
        if not self.manifests and not self.photos and self.fonts is None and not self.scenes:
            raise UsageError("nothing to prepare: give a manifest, photos, fonts or a number of scenes.")
        for source in self.photos:
            if not is_allowed(source.licence):
                raise UsageError(
                    f"{source.folder}: licence {source.licence!r} is not one that shipped weights may use."
                )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of ``materials.json``."""

    name: str
    """The frames lie in NAME.npy."""
    kind: str
    """clip, screen, photo or graphic."""
    licence: str
    """As the source words it."""
    source: str
    """Where it comes from."""
    shape: list[int]
    """[T, H, W, 3]."""
    caption: str = ""
    """What it shows, where that is known."""


Found = tuple[str, str, str, str, npt.NDArray[np.uint8]]
"""Name, kind, licence, source, frames [T, H, W, 3]."""


def prepare(job: PrepareJob, folder: Path, *, on_entry: Callable[[Entry], None] | None = None) -> list[Entry]:
    """Write the material into ``folder``: one .npy each and, last, ``materials.json``.

    Raises InputError for a source that cannot be read, UsageError without Pillow where pictures are asked for.
    """
    if (job.photos or job.fonts or job.with_photos) and find_spec("PIL") is None:
        raise UsageError("photos and rendered pages need Pillow: pip install '.[train]' in the source folder")
    entries: list[Entry] = []
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, kind, licence, source, frames in _find_all(job):
        with output_errors(folder / f"{name}.npy"):
            np.save(folder / f"{name}.npy", frames)
        words = source.removeprefix(SCENE) if source.startswith(SCENE) else ""
        entries.append(
            Entry(name=name, kind=kind, licence=licence, source=source, shape=list(frames.shape), caption=words)
        )
        if on_entry is not None:
            on_entry(entries[-1])
    with partial_file(folder / "materials.json") as part:
        part.write_text(json.dumps([asdict(entry) for entry in entries], indent=1))
    return entries


def _find_all(job: PrepareJob) -> Iterator[Found]:
    for manifest in job.manifests:
        yield from _from_manifest(manifest, with_photos=job.with_photos)
    for source in job.photos:
        yield from _from_folder(source)
    if job.fonts is not None:
        words = page_words(job.texts)
        for i, page in enumerate(render_pages(job.pages, fonts=job.fonts, words=words)):
            licence = "made for this project (rendered text and shapes)"
            yield f"graphic_{i:02d}", "graphic", licence, "rendered", page[None]
    for number in range(job.scenes):
        yield _scene(job, number)


def _scene(job: PrepareJob, number: int) -> Found:
    scene = random_scene(number)
    height, width = job.scene_size
    renderer = Renderer(scene, height_px=height, width_px=width)
    shown = [renderer.frame(t / SCENE_FPS) for t in range(job.scene_frames)]
    licence = "made for this project (drawn scene)"
    return f"scene_{number:04d}", "clip", licence, SCENE + caption(scene), np.stack(shown)


def _from_manifest(manifest: Path, *, with_photos: bool) -> Iterator[Found]:
    for row in _allowed_rows(manifest):
        path = manifest.parent / row["file"]
        if path.suffix == ".mp4":
            kind = "screen" if path.stem.startswith("screen") else "clip"
            yield path.stem, kind, row["licence"], row["source"], np.stack(list(read_plain_frames(path)))
        elif with_photos and path.suffix.lower() in PICTURES:
            photo = _photo(path)
            if photo is not None:
                yield path.stem, "photo", row["licence"], row["source"], photo[None]


def _allowed_rows(manifest: Path) -> list[dict[str, Any]]:
    """Return the rows of split ``train`` whose licence may shape shipped weights."""
    try:
        rows = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return [row for row in rows if row["split"] == "train" and is_allowed(row["licence"])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest}: not a readable manifest of training files ({error!r}).") from error


def _from_folder(source: PhotoSource) -> Iterator[Found]:
    """Find photos at any depth. Links repeat others, and so do KDE's upright versions (`contents/images`)."""
    if not source.folder.is_dir():
        raise InputError(f"{source.folder}: no such folder of photos.")
    for path in sorted(source.folder.rglob("*"), key=str):
        inside = path.relative_to(source.folder).as_posix()
        is_picture = path.suffix.lower() in PICTURES and "screenshot" not in inside and not path.is_symlink()
        if not is_picture or path.stat().st_size < LEAST_FILE_BYTES:
            continue
        photo = _photo(path, upright="contents/images/" not in inside)
        if photo is not None:
            package = source.folder.name
            yield _name(package, inside), "photo", source.licence, package, photo[None]


def _name(package: str, inside: str) -> str:
    """Name a photo by its package and its place in it, without the words that all of them share."""
    name = package + inside.removeprefix("usr/share/")
    for word in ("backgrounds", "wallpapers", "/contents/images"):
        name = name.replace(word, "")
    return name.replace("/", "_").rsplit(".", 1)[0]


def _photo(path: Path, *, upright: bool = True) -> npt.NDArray[np.uint8] | None:
    """Read a photo, shrunk; None for one that is small, empty of detail, or upright where that is not wanted."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path}: not a readable picture ({error}).") from error
    if min(image.size) < LEAST_SIDE_PX or (image.height > image.width and not upright):
        return None
    photo = np.asarray(_shrunk(image))
    grey = photo[::2, ::2, 1].astype(np.int16)
    return photo if np.abs(np.diff(grey, axis=1)).mean() >= LEAST_DETAIL else None


def _shrunk(image: "Image") -> "Image":
    """Shrink large photos, which makes them as sharp as a good video frame."""
    from PIL.Image import Resampling

    longest = max(image.size)
    wanted = min(longest, 2600 if longest > 3000 else (1800 if longest > 2400 else 1600))
    if wanted == longest:
        return image
    sides = (round(image.width * wanted / longest), round(image.height * wanted / longest))
    return image.resize(sides, Resampling.LANCZOS)
