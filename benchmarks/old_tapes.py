"""The picture in docs/old-tapes.md: a rendered scene as on a tape, and as read with
each repair.

`python -m benchmarks.old_tapes docs/old-tapes.png` makes it again.
"""

import argparse
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.video.old_clips import Luma, coloured, framed, grainy, head_switched, moment, telecined, write
from ultraflash_cli.video.color import Picture
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.deinterlacing import with_deinterlacing
from ultraflash_cli.video.mending import mend
from ultraflash_cli.video.probe import ClipInfo, probe

__all__ = ["main"]

SIZE = (320, 240)
_FRAMES = 40
_SHOWN = 17


def _frame(info: ClipInfo, number: int) -> Picture:
    return [frame.rgb_hwc for frame in read_frames(info, warn=lambda _: None)][number]


def _labelled(picture: Picture, words: str) -> Image.Image:
    canvas = Image.new("RGB", (SIZE[0], SIZE[1] + 18), "white")
    canvas.paste(Image.fromarray(picture), (0, 18))
    ImageDraw.Draw(canvas).text((4, 3), words, fill="black")
    return canvas


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * len(rows[0]) + 8, height * len(rows) + 8 * (len(rows) - 1)), "white")
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            sheet.paste(picture, (across * (width + 8), down * (height + 8)))
    return sheet


def make(folder: Path) -> Image.Image:
    """Make the clips in a folder, read them with and without repairs, and return the
    picture."""
    rng = np.random.default_rng(7)
    film: list[Luma] = [moment(2.5 * number, size=SIZE, speed=5) for number in range(_FRAMES)]
    telecine = probe(write(folder / "film.mkv", telecined(film)))
    own = with_deinterlacing(telecine, "auto")
    woven = with_deinterlacing(telecine, "off")

    lumas, colours = coloured(_FRAMES, size=SIZE, shift=(6, 3))
    lumas = [framed(head_switched(grainy(luma, rng, dark=4, bright=10), 10, rng), left=8, right=8) for luma in lumas]
    tones = [tuple(framed(tone, left=8, right=8, black=128) for tone in pair) for pair in colours]
    tape = probe(
        write(folder / "tape.mkv", lumas, chroma=[(a, b) for a, b in tones], rate=Fraction(25), pix_fmt="yuv444p")
    )
    mended = mend(tape, crop="auto", chroma_shift="auto", grain="remove")
    print(*mended.notes, sep="\n")

    shown = _frame(mended.info, _SHOWN)
    whole = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    top, left = (mended.crop.top_px, mended.crop.left_px) if mended.crop else (0, 0)
    whole[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
    combed = _SHOWN // 5 * 5 + 2
    return _sheet(
        [
            [
                _labelled(_frame(woven, combed), "telecined film: two moments in one frame"),
                _labelled(_frame(own, combed * 4 // 5), "its own frame (--deinterlace auto)"),
            ],
            [
                _labelled(_frame(tape, _SHOWN), "a tape: grain, shifted colours, borders, torn lines"),
                _labelled(whole, "--crop auto --chroma-shift auto --grain remove"),
            ],
        ]
    )


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = make(Path(folder))
    picture.quantize(128).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
