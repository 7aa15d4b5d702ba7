"""The picture in docs/compare.md: the page of a comparison, as a browser shows it. A
clip is halved in size like the quality benchmark's compressed input (blur, bicubic,
H.264 at crf 28), upscaled and compared with the original; Chromium takes the
screenshot. Without `--clip` the demo clip is used.

    python -m benchmarks.compare_page --out docs/compare.jpg
    python -m benchmarks.compare_page --page look.html --width 400 --dark --out look.png
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks import quality
from ultraflash_cli.main import main as ultraflash

__all__ = ["main", "page_of", "photographed"]

DEMO = Path(__file__).parents[1] / "demo" / "clip.mp4"
FRAMES = 24
QUALITY = 84


def page_of(clip: Path, folder: Path, *, frames: int) -> Path:
    """Upscale a reduced copy of a clip, compare it with the clip, and return the
    page."""
    (case,) = quality.prepare(clip, folder, scale=2, frames=frames, kinds=["deg"])
    result, page = folder / f"{clip.stem}_upscaled.mp4", folder / "look.html"
    size = f"{case.width_px}x{case.height_px}"
    for command in (
        ["upscale", str(case.low), "-o", str(result), "--res", size, "-q"],
        ["compare", str(case.truth), str(result), "--html", str(page), "-q"],
    ):
        if code := ultraflash(command):
            sys.exit(code)
    return page


def photographed(page: Path, *, width_px: int, height_px: int, dark: bool, folder: Path) -> Image.Image:
    """Return a screenshot of a page in headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium on this machine; install it")
    shown = folder / "shown.html"
    theme = "dark" if dark else "light"
    shown.write_text(page.read_text().replace('<html lang="en">', f'<html lang="en" data-theme="{theme}">'))
    shot = folder / "shot.png"
    # A window of Chromium is at least 500 pixels wide; a frame in it can be as narrow as a phone.
    framed = folder / "framed.html"
    framed.write_text(
        f'<body style="margin:0"><iframe src="shown.html" style="border:0" width="{width_px}" height="{height_px}">'
    )
    window = f"--window-size={max(500, width_px)},{height_px}"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", window]
    command += [f"--user-data-dir={folder / 'profile'}", f"--screenshot={shot}", framed.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return Image.open(shot).convert("RGB").crop((0, 0, width_px, height_px))


def main() -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, default=DEMO, help="at full size")
    parser.add_argument("--page", type=Path, help="a page that is there already")
    parser.add_argument("--keep", type=Path, help="where the page is kept, too")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--width", type=int, default=1200, help="of the picture, in pixels")
    parser.add_argument("--height", type=int, default=1560)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--out", type=Path, required=True, help="the picture (JPEG or PNG)")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compare_page_") as temporary:
        folder = Path(temporary)
        page = settings.page or page_of(settings.clip, folder, frames=settings.frames)
        if settings.keep is not None:
            shutil.copyfile(page, settings.keep)
        made = photographed(page, width_px=settings.width, height_px=settings.height, dark=settings.dark, folder=folder)
        made.save(settings.out, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
