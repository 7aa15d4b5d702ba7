"""Prepare training material under allowed licences: clips and photos of manifests,
photos of packages, rendered pages and scenes."""

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
"""Minimum of a photo's shorter side."""
SCENE = "drawn: "
"""Prefix of a scene's ``source``, followed by its caption."""
SCENE_FPS = 16
SCENE_S = 4
"""Windows of scenes begin within this many seconds."""
WINDOW_SEED = 11
"""Seed of the windows' positions."""
LEAST_DETAIL = 1.2
"""Minimum mean difference between neighbouring pixels of every second row and column,
in grey levels."""


@dataclass(frozen=True, kw_only=True)
class PhotoSource:
    """A folder of photos under one licence, such as an unpacked Debian package of wallpapers."""

    folder: Path
    """Folder, searched recursively; its name is the prefix of the material's names."""
    licence: str
    """Licence as the source words it; it must be an allowed one."""


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """Material to prepare, in the order of the fields, on which the samples depend."""

    manifests: tuple[Path, ...] = ()
    """JSON files, each with a list ``files`` of {file, licence, split, source}; paths
    are relative to the manifest."""
    with_photos: bool = False
    """Whether the manifests' photos are used in addition to their clips."""
    photos: tuple[PhotoSource, ...] = ()
    """Folders of photos."""
    fonts: Path | None = None
    """Folder of fonts for rendered pages; None renders none."""
    texts: tuple[Path, ...] = ()
    """Plain texts whose words fill the pages."""
    pages: PagesConfig = field(default_factory=PagesConfig)
    """The rendered pages."""
    scenes: int = 0
    """Number of rendered scenes, with their captions."""
    scene_sizes: tuple[tuple[int, int], ...] = ((240, 416),)
    """Heights and widths of the scenes in pixels, used in turn."""
    scene_frames: int = 20
    """Frames per scene."""
    scene_window: int | None = None
    """Side of the square that is cut from each scene, half of the time where there is
    most motion; None keeps whole frames."""

    def __post_init__(self) -> None:
        if self.scenes < 0:
            raise UsageError(f"--scenes must be at least 0, got {self.scenes}")
        if self.scene_window is not None and not 0 < self.scene_window <= min(min(size) for size in self.scene_sizes):
            raise UsageError(f"--scene-window must fit into every scene, got {self.scene_window} px")
        if not self.manifests and not self.photos and self.fonts is None and not self.scenes:
            raise UsageError("nothing to prepare; give --manifest, --photos, --fonts or --scenes")
        for source in self.photos:
            if not is_allowed(source.licence):
                raise UsageError(f"{source.folder}: licence {source.licence!r} is not allowed for shipped weights")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of ``materials.json``."""

    name: str
    """Name of the material; the frames are in NAME.npy."""
    kind: str
    """clip, screen, photo, graphic or scene."""
    licence: str
    """Licence as the source words it."""
    source: str
    """Source of the material."""
    shape: list[int]
    """[T, H, W, 3]."""
    caption: str = ""
    """Caption, if known."""


Found = tuple[str, str, str, str, npt.NDArray[np.uint8]]
"""Name, kind, licence, source, frames [T, H, W, 3]."""


def prepare(job: PrepareJob, folder: Path, *, on_entry: Callable[[Entry], None] | None = None) -> list[Entry]:
    """Write the material into ``folder``: one .npy each and, last, ``materials.json``.

    Raises InputError for a source that cannot be read, UsageError without Pillow where pictures are requested.
    """
    if (job.photos or job.fonts or job.with_photos) and find_spec("PIL") is None:
        raise UsageError("photos and rendered pages need Pillow; run pip install '.[train]' in the source folder")
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
    height, width = job.scene_sizes[number % len(job.scene_sizes)]
    renderer = Renderer(scene, height_px=height, width_px=width)
    licence = "made for this project (drawn scene)"
    start, corner = 0, None
    if job.scene_window is not None:
        # Vary the start of the window, and half of the time centre it on motion.
        rng = np.random.default_rng((WINDOW_SEED, number))
        start = int(rng.integers(SCENE_S * SCENE_FPS))
        moved = rng.random() < 0.5
        corner = int(rng.integers(height - job.scene_window + 1)), int(rng.integers(width - job.scene_window + 1))
        if moved:
            ends = (renderer.frame((start + at) / SCENE_FPS).astype(np.int16) for at in (0, job.scene_frames))
            corner = _most_change(next(ends), next(ends), job.scene_window, rng)

    shown: list[npt.NDArray[np.uint8]] = []
    for t in range(start, start + job.scene_frames):
        frame = renderer.frame(t / SCENE_FPS)
        if corner is not None:
            frame = frame[corner[0] :, corner[1] :][: job.scene_window, : job.scene_window]
        shown.append(frame)
    return f"scene_{number:04d}", "scene", licence, SCENE + caption(scene), np.stack(shown)


def _most_change(
    first: npt.NDArray[np.int16], last: npt.NDArray[np.int16], side: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Return the corner of a window of ``side`` pixels that contains the largest
    difference between two frames, not always at its centre."""
    change = np.abs(last - first).sum(axis=-1)
    height, width = change.shape
    cells = change[: height // 16 * 16, : width // 16 * 16].reshape(height // 16, 16, width // 16, 16).sum(axis=(1, 3))
    row, column = np.unravel_index(int(cells.argmax()), cells.shape)
    y, x = (int(16 * at + 8 - side * rng.uniform(0.2, 0.8)) for at in (row, column))
    return min(max(0, y), height - side), min(max(0, x), width - side)


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
    """Return the rows of split ``train`` whose licence is allowed for shipped
    weights."""
    try:
        rows = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return [row for row in rows if row["split"] == "train" and is_allowed(row["licence"])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest}: not a readable manifest of training files ({error!r})") from error


def _from_folder(source: PhotoSource) -> Iterator[Found]:
    """Find photos at any depth, except symlinks and KDE's portrait versions
    (`contents/images`), which are duplicates."""
    if not source.folder.is_dir():
        raise InputError(f"{source.folder}: no such folder of photos")
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
    """Name a photo after its package and its path inside it, without the parts that all
    paths share."""
    name = package + inside.removeprefix("usr/share/")
    for word in ("backgrounds", "wallpapers", "/contents/images"):
        name = name.replace(word, "")
    return name.replace("/", "_").rsplit(".", 1)[0]


def _photo(path: Path, *, upright: bool = True) -> npt.NDArray[np.uint8] | None:
    """Read and shrink a photo; None if it is small, lacks detail, or is in unwanted
    portrait format."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path}: not a readable picture ({error})") from error
    if min(image.size) < LEAST_SIDE_PX or (image.height > image.width and not upright):
        return None
    photo = np.asarray(_shrunk(image))
    grey = photo[::2, ::2, 1].astype(np.int16)
    return photo if np.abs(np.diff(grey, axis=1)).mean() >= LEAST_DETAIL else None


def _shrunk(image: "Image") -> "Image":
    """Downscale large photos, which makes them as sharp as good video frames."""
    from PIL.Image import Resampling

    longest = max(image.size)
    wanted = min(longest, 2600 if longest > 3000 else (1800 if longest > 2400 else 1600))
    if wanted == longest:
        return image
    sides = (round(image.width * wanted / longest), round(image.height * wanted / longest))
    return image.resize(sides, Resampling.LANCZOS)
