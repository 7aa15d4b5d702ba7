"""Upscale demo/clip.mp4 with the installed command and show the difference in one picture.

python demo/run.py [--picture FILE]    prints the paths of the clip and the picture
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, ImageDraw, ImageFont

__all__ = ["before_and_after", "main", "read_frame"]

HERE = Path(__file__).resolve().parent
CLIP = HERE / "clip.mp4"
SIZE_PX = (1664, 960)
FRAME = 24
CROPS_XY = ((318, 520), (1204, 86))
"""Upper left corners, in pixels of the result: the notice board's letters, the lighthouse's top."""
CROP_PX = (330, 210)
ZOOM = 2
MARGIN_PX, HEADER_PX = 8, 44


def read_frame(path: Path, number: int, size_px: tuple[int, int]) -> Image.Image:
    """Return one frame as RGB at ``size_px``; a frame of another size is resampled with lanczos."""
    width, height = size_px
    scaling = f"scale={width}:{height}:flags=lanczos+accurate_rnd+full_chroma_int"
    arguments = ["-i", str(path), "-vf", rf"select=eq(n\,{number}),{scaling}", "-frames:v", "1"]
    command = [get_ffmpeg_exe(), "-v", "error", *arguments, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return Image.fromarray(np.frombuffer(data, np.uint8).reshape(height, width, 3))


def before_and_after(before: Image.Image, after: Image.Image) -> Image.Image:
    """Return the crops of both frames side by side, enlarged by whole pixels, below a
    heading."""
    wide, high = CROP_PX[0] * ZOOM, CROP_PX[1] * ZOOM
    rows = len(CROPS_XY)
    sheet = Image.new("RGB", (2 * wide + 3 * MARGIN_PX, HEADER_PX + rows * (high + MARGIN_PX)), (24, 26, 30))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(22)
    for column, (title, frame) in enumerate((("lanczos", before), ("ultraflash", after))):
        left = MARGIN_PX + column * (wide + MARGIN_PX)
        draw.text((left + 4, HEADER_PX // 2), title, fill=(236, 236, 232), font=font, anchor="lm")
        for row, (x, y) in enumerate(CROPS_XY):
            crop = frame.crop((x, y, x + CROP_PX[0], y + CROP_PX[1]))
            crop = crop.resize((wide, high), Image.Resampling.NEAREST)
            sheet.paste(crop, (left, HEADER_PX + row * (high + MARGIN_PX)))
    return sheet


def main() -> None:
    """Upscale the clip, write the picture, print both paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder of the result")
    parser.add_argument("--picture", type=Path, help="where the picture goes (before_after.png in --out)")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    result = settings.out / "clip_1k.mp4"
    picture = settings.picture or settings.out / "before_after.png"
    command = [str(Path(sys.executable).with_name("ultraflash")), "upscale", str(CLIP), "-o", str(result), "-y"]
    done = subprocess.run([*command, "--res", "1k", "--model", "lite"], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    sheet = before_and_after(read_frame(CLIP, FRAME, SIZE_PX), read_frame(result, FRAME, SIZE_PX))
    sheet.save(picture, optimize=True)
    print(f"result:  {result}")
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()
