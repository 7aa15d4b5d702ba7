"""The picture in the README: crops of clips enlarged by lanczos and by `lite`, and of
the originals.

Every clip is downscaled like the quality benchmark's compressed input (blur, bicubic,
H.264 at crf 28), and enlarged by two. A crop is given as CLIP:X,Y, the upper left
corner in pixels of the original.

    python -m benchmarks.before_after --clips FOLDER --crop e3_city_facade:700,300 --out docs/before_after.png
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks import quality
from benchmarks.rgb import read_rgb

__all__ = ["main", "sheet"]

CROP_PX = (150, 110)
"""Width and height of a crop."""
ZOOM = 3
FRAMES = 8
SHOWN = 6
"""Index of the frame that is shown."""
MARGIN_PX, HEADER_PX = 6, 40
TITLES = ("lanczos", "ultraflash (lite)", "original")


def sheet(rows: list[list[Image.Image]], titles: tuple[str, ...]) -> Image.Image:
    """Return crops in rows, enlarged by whole pixels, below column headings."""
    wide, high = CROP_PX[0] * ZOOM, CROP_PX[1] * ZOOM
    size = (len(titles) * (wide + MARGIN_PX) + MARGIN_PX, HEADER_PX + len(rows) * (high + MARGIN_PX))
    made = Image.new("RGB", size, (24, 26, 30))
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(20)
    for column, title in enumerate(titles):
        left = MARGIN_PX + column * (wide + MARGIN_PX)
        draw.text((left + 4, HEADER_PX // 2), title, fill=(236, 236, 232), font=font, anchor="lm")
        for row, crops in enumerate(rows):
            crop = crops[column].resize((wide, high), Image.Resampling.NEAREST)
            made.paste(crop, (left, HEADER_PX + row * (high + MARGIN_PX)))
    return made


def crops_of(clip: Path, corner: tuple[int, int], folder: Path) -> list[Image.Image]:
    """Return the crop of a clip enlarged by lanczos and by `lite`, and of the clip itself."""
    (case,) = quality.prepare(clip, folder, scale=2, frames=FRAMES, kinds=["deg"])
    x, y = corner
    if x + CROP_PX[0] > case.width_px or y + CROP_PX[1] > case.height_px:
        sys.exit(f"{clip.name}: a crop at {x},{y} leaves the picture of {case.width_px}x{case.height_px}")
    crops: list[Image.Image] = []
    for method in ("lanczos", quality.OURS, None):
        path = case.truth
        if method is not None:
            path = folder / f"{clip.stem}.{method}.mkv"
            quality.enlarge(case, method, path, quality.Setup())
        frame = list(read_rgb(path, width_px=case.width_px, height_px=case.height_px))[SHOWN]
        crops.append(Image.fromarray(np.ascontiguousarray(frame[y : y + CROP_PX[1], x : x + CROP_PX[0]])))
    return crops


def main() -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of full-size clips")
    parser.add_argument("--crop", action="append", required=True, metavar="CLIP:X,Y", help="repeatable")
    parser.add_argument("--out", type=Path, required=True, help="the picture (PNG)")
    settings = parser.parse_args()
    rows: list[list[Image.Image]] = []
    with tempfile.TemporaryDirectory(prefix="before_after_") as temporary:
        for crop in settings.crop:
            found = re.fullmatch(r"([^:]+):(\d+),(\d+)", crop)
            if found is None:
                parser.error(f"--crop is CLIP:X,Y, got {crop}")
            clip = settings.clips / f"{found[1]}.mp4"
            rows.append(crops_of(clip, (int(found[2]), int(found[3])), Path(temporary)))
    sheet(rows, TITLES).save(settings.out, optimize=True)


if __name__ == "__main__":
    main()
