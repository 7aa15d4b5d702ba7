"""Draw the demonstration clip, demo/clip.mp4: two seconds of a harbour, made only from
arithmetic and a font.

python demo/make_clip.py    (needs pillow, which `.[dev]` brings)
"""

import math
import subprocess
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, ImageDraw, ImageFont

__all__ = ["main"]

WIDTH_PX, HEIGHT_PX, RATE, FRAMES = 832, 480, 24, 48
FINE = 3  # drawn this much larger, then reduced
WIDE, HIGH = WIDTH_PX * FINE, HEIGHT_PX * FINE
PAN = 200  # how far the nearest layer travels, in fine pixels
SHORE = int(HIGH * 0.60)  # where the water meets the far shore
QUAY = int(HIGH * 0.80)  # where the stone of the quay begins

Color = tuple[int, int, int]


def cloud_noise(rng: np.random.Generator, height: int, width: int, *, power: float, stretch: float = 1) -> np.ndarray:
    """Return noise whose spectrum falls with ``power``, mean 0, deviation 1; ``stretch`` draws it out sideways."""
    fy = np.fft.fftfreq(height)[:, None] * height
    fx = np.fft.rfftfreq(width)[None] * width * stretch
    radius = np.maximum(np.hypot(fy, fx), 1)
    spectrum = np.fft.rfft2(rng.normal(size=(height, width))) / radius**power
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return noise / noise.std()


def picture(rgb: np.ndarray, mask: np.ndarray | None = None) -> Image.Image:
    """Return an RGBA layer from colours 0..255 and a coverage mask."""
    alpha = np.full(rgb.shape[:2], 255) if mask is None else np.where(mask, 255, 0)
    return Image.fromarray(np.dstack([rgb.clip(0, 255), alpha]).astype(np.uint8), "RGBA")


def mix(low: Color, high: Color, amount: np.ndarray) -> np.ndarray:
    """Blend two colours by an array of 0..1."""
    amount = amount.clip(0, 1)[..., None]
    return np.array(low) * (1 - amount) + np.array(high) * amount


def sky(rng: np.random.Generator) -> Image.Image:
    """Evening light with drawn-out clouds."""
    height = np.linspace(0, 1, HIGH)[:, None] * np.ones((1, WIDE))
    base = mix((70, 112, 168), (246, 214, 176), height / 0.62)
    clouds = cloud_noise(rng, HIGH, WIDE, power=1.75, stretch=2.2)
    cover = (clouds * 0.5 - 0.1).clip(0, 1)[..., None] * 0.75
    return picture(base * (1 - cover) + np.array((255, 240, 226)) * cover)


def mountains(rng: np.random.Generator) -> Image.Image:
    """Rock and snow, lit from the left."""
    width = WIDE + PAN
    ridge = SHORE * (0.52 - 0.13 * cloud_noise(rng, 1, width, power=1.4)[0])
    rows = np.arange(SHORE + 20)[:, None]
    relief = cloud_noise(rng, SHORE + 20, width, power=1.55)
    light = np.gradient(relief, axis=1) * 9 + np.gradient(relief, axis=0) * 5
    rock = mix((66, 72, 92), (186, 170, 162), 0.45 + light * 0.5)
    snow_line = ridge + SHORE * (0.12 + 0.05 * relief)
    snow = (rows < snow_line)[..., None] * (light > -0.35)[..., None]
    rock = np.where(snow, mix((172, 184, 208), (252, 248, 244), 0.6 + light * 0.5), rock)
    haze = ((rows - ridge) / (SHORE - ridge)).clip(0, 1)[..., None] * 0.45
    return picture(rock * (1 - haze) + np.array((196, 194, 204)) * haze, rows > ridge)


def forest(rng: np.random.Generator) -> Image.Image:
    """Firs on the far shore, darker if nearer."""
    layer = Image.new("RGBA", (WIDE + PAN, HIGH))
    draw = ImageDraw.Draw(layer)
    for depth in range(3):
        for x in np.sort(rng.uniform(0, WIDE + PAN, 90 + 30 * depth)):
            tall = rng.uniform(60, 130) * (0.7 + 0.25 * depth)
            foot = SHORE - 14 + 9 * depth
            tone = int(rng.integers(-9, 10))
            color = (64 - 16 * depth + tone, 92 - 18 * depth + tone, 84 - 20 * depth + tone)
            steps = 9
            left, right = [], []
            for step in range(steps):
                y = foot - tall + tall * step / steps
                reach = tall * 0.22 * (step + 0.6) / steps
                left += [(x - reach, y + tall * 0.1), (x - reach * 0.45, y + tall * 0.08)]
                right += [(x + reach, y + tall * 0.1), (x + reach * 0.45, y + tall * 0.08)]
            draw.polygon([(x, foot - tall), *right, *reversed(left)], fill=color)
    draw.rectangle([0, SHORE - 6, WIDE + PAN, SHORE + 12], fill=(44, 52, 50))
    return layer


def water(noises: list[np.ndarray], time: float) -> Image.Image:
    """Ripples: two patterns drift against each other, finer towards the shore."""
    height = noises[0].shape[0]
    depth = np.linspace(0, 1, height)[:, None]
    first = np.roll(noises[0], int(70 * time), axis=1)
    second = np.roll(noises[1], -int(50 * time), axis=1)
    glitter = (first + second) * (0.10 + 0.22 * depth)
    base = mix((206, 184, 166), (58, 96, 128), depth * 0.9 + 0.1 + glitter)
    sparkle = ((first * second) > 2.6)[..., None] * 46
    return picture(base + sparkle)


def bricks(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    base: Color,
) -> None:
    """Fill a box with bricks of slightly different tones and light joints."""
    left, top, right, bottom = box
    draw.rectangle(box, fill=tuple(min(255, int(c * 0.62)) for c in base))
    wide, high = size
    for row, y in enumerate(range(top, bottom, high)):
        for x in range(left - (wide // 2 if row % 2 else 0), right, wide):
            tone = rng.normal(1, 0.09)
            color = tuple(int(np.clip(c * tone, 0, 255)) for c in base)
            x0, x1, y1 = max(x + 2, left), min(x + wide - 2, right), min(y + high - 3, bottom)
            if x1 > x0 and y1 > y:
                draw.rectangle([x0, y + 1, x1, y1], fill=color)


def tower(rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int]]:
    """Draw the lighthouse, its quay and the notice board; also return the top of the
    mast."""
    layer = Image.new("RGBA", (WIDE + PAN, HIGH))
    draw = ImageDraw.Draw(layer)
    bricks(rng, draw, (0, QUAY, WIDE + PAN, HIGH), (66, 30), (150, 142, 132))
    draw.rectangle([0, QUAY - 12, WIDE + PAN, QUAY + 4], fill=(178, 172, 162))

    x, wide, top = int(WIDE * 0.78), 240, int(HIGH * 0.24)
    for band in range(5):
        upper = top + (QUAY - 12 - top) * band // 5
        lower = top + (QUAY - 12 - top) * (band + 1) // 5
        inset = 34 - 8 * band
        bricks(
            rng, draw, (x + inset, upper, x + wide - inset, lower), (30, 13), ((186, 62, 50), (232, 226, 214))[band % 2]
        )
    for row, column in ((0.36, 0.5), (0.55, 0.38), (0.70, 0.6)):
        wx, wy = x + int(wide * column) - 17, int(HIGH * row)
        draw.rectangle([wx - 6, wy - 6, wx + 40, wy + 62], fill=(240, 236, 226))
        draw.rectangle([wx, wy, wx + 34, wy + 56], fill=(36, 48, 66))
        draw.line([wx + 17, wy, wx + 17, wy + 56], fill=(240, 236, 226), width=4)
        draw.line([wx, wy + 28, wx + 34, wy + 28], fill=(240, 236, 226), width=4)
    draw.rectangle([x - 6, top - 16, x + wide + 6, top], fill=(56, 60, 66))
    for post in range(x - 6, x + wide + 7, 18):
        draw.line([post, top - 64, post, top - 14], fill=(40, 44, 50), width=3)
    for rail in (top - 64, top - 44, top - 28):
        draw.line([x - 6, rail, x + wide + 6, rail], fill=(40, 44, 50), width=3)
    draw.rectangle([x + 62, top - 130, x + wide - 62, top - 16], fill=(250, 226, 150))
    for pane in range(x + 62, x + wide - 61, 29):
        draw.line([pane, top - 130, pane, top - 16], fill=(52, 56, 62), width=4)
    for pane in (top - 130, top - 92, top - 54):
        draw.line([x + 62, pane, x + wide - 62, pane], fill=(52, 56, 62), width=4)
    draw.polygon([(x + 44, top - 130), (x + wide - 44, top - 130), (x + wide // 2, top - 206)], fill=(150, 44, 40))
    mast = (x + wide // 2, top - 320)
    draw.line([mast, (x + wide // 2, top - 200)], fill=(40, 44, 50), width=5)
    for stay in (-110, 110):
        draw.line([mast, (x + wide // 2 + stay, top - 60)], fill=(52, 56, 62), width=2)

    notice(rng, draw, int(WIDE * 0.20), int(HIGH * 0.46))
    return layer, mast


def notice(rng: np.random.Generator, draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """A board of planks with the ferry's timetable, large to small letters."""
    wide, high = 760, 430
    for post in (x + 70, x + wide - 100):
        draw.rectangle([post, y + 20, post + 30, QUAY], fill=(74, 56, 42))
    draw.rectangle([x, y, x + wide, y + high], fill=(196, 182, 154))
    for plank in range(6):
        top = y + high * plank // 6
        draw.rectangle([x, top, x + wide, top + high // 6 - 3], fill=(226 - 3 * (plank % 2), 214, 188))
        for _ in range(9):
            start, line = x + int(rng.uniform(0, wide - 180)), top + int(rng.uniform(6, high / 6 - 8))
            draw.line([start, line, start + int(rng.uniform(60, 180)), line], fill=(208, 194, 166), width=2)
    ink = (34, 44, 62)
    lines = (
        (0.06, 78, "NORTH HARBOUR"),
        (0.27, 44, "Ferry to the islands, every day"),
        (0.42, 52, "08:15   10:45   13:30   17:20"),
        (0.61, 33, "Tickets on board. Dogs and bicycles welcome."),
        (0.745, 26, "Please keep the slipway clear; mooring lines are live."),
        (0.87, 20, "Harbour office: second door on the left. Tides and weather posted daily."),
    )
    for place, size, text in lines:
        draw.text((x + wide / 2, y + high * place), text, fill=ink, font=ImageFont.load_default(size), anchor="ma")


def grass(rng: np.random.Generator) -> Image.Image:
    """Blades and flower heads close to the camera."""
    layer = Image.new("RGBA", (WIDE + PAN, HIGH))
    draw = ImageDraw.Draw(layer)
    for x in np.sort(rng.uniform(-20, WIDE + PAN + 20, 2600)):
        edge = 0.5 + 0.5 * math.sin(x / 310) * math.cos(x / 131)
        tall = rng.uniform(40, 120) * (0.45 + edge)
        lean = rng.normal(0, 26)
        green = rng.uniform(0.55, 1.15)
        color = (int(92 * green), int(122 * green), int(58 * green))
        foot = HIGH + 10
        bend = [(x + lean * s * s, foot - tall * s) for s in np.linspace(0, 1, 6)]
        draw.line(bend, fill=color, width=int(rng.integers(3, 6)))
        if rng.random() < 0.05:
            cx, cy = bend[-1]
            petal = ((244, 238, 220), (226, 120, 96), (240, 200, 84))[int(rng.integers(3))]
            for angle in np.arange(0, 2 * math.pi, math.pi / 4):
                px, py = cx + 10 * math.cos(angle), cy + 10 * math.sin(angle)
                draw.ellipse([px - 6, py - 6, px + 6, py + 6], fill=petal)
            draw.ellipse([cx - 6, cy - 6, cx + 6, cy + 6], fill=(120, 84, 40))
    return layer


def flag(draw: ImageDraw.ImageDraw, mast: tuple[float, float], time: float) -> None:
    """Five waving stripes."""
    x0, y0 = mast
    stripes: tuple[Color, ...] = ((38, 70, 128), (244, 240, 230), (196, 60, 52), (244, 240, 230), (38, 70, 128))
    xs = np.linspace(0, 170, 24)
    wave = 12 * (xs / 170) * np.sin(xs / 26 - 2 * math.pi * 1.5 * time)
    for index, color in enumerate(stripes):
        upper = [(x0 - x, y0 + 17 * index + w) for x, w in zip(xs, wave, strict=True)]
        lower = [(x, y + 17) for x, y in reversed(upper)]
        draw.polygon([*upper, *lower], fill=color)


def gulls(draw: ImageDraw.ImageDraw, time: float) -> None:
    """Five birds crossing the sky."""
    for bird in range(5):
        x = WIDE * (0.10 + 0.11 * bird) + 190 * time
        y = HIGH * (0.16 + 0.05 * math.sin(2.4 * bird)) + 12 * math.sin(2 * time + bird)
        lift = 16 * math.sin(2 * math.pi * 1.6 * time + bird)
        draw.line(
            [(x - 34, y - lift), (x - 14, y - 6), (x, y), (x + 14, y - 6), (x + 34, y - lift)],
            fill=(44, 48, 60),
            width=5,
        )


def main() -> None:
    """Draw every frame, add a tone, and encode."""
    rng = np.random.default_rng(2026)
    back, rocks, trees = sky(rng), mountains(rng), forest(rng)
    ripples = [cloud_noise(rng, HIGH - SHORE, WIDE, power=1.0, stretch=7) for _ in range(2)]
    near, mast = tower(rng)
    blades = grass(rng)
    target = Path(__file__).with_name("clip.mp4")
    video = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{WIDTH_PX}x{HEIGHT_PX}", "-framerate", str(RATE)]
    sound = ["-f", "lavfi", "-i", f"aevalsrc='0.12*sin(2*PI*220*t)*(1+sin(2*PI*t))':duration={FRAMES / RATE}"]
    matrix = ["-vf", "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p", "-colorspace", "bt709"]
    encode = ["-color_primaries", "bt709", "-color_trc", "bt709", "-c:v", "libx264", "-preset", "slow", "-crf", "24"]
    audio = ["-c:a", "aac", "-b:a", "48k", "-movflags", "+faststart", "-metadata", "title=North Harbour"]
    command = [get_ffmpeg_exe(), "-v", "error", "-y", *video, "-i", "-", *sound, *matrix, *encode, *audio, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as encoder:
        assert encoder.stdin is not None, "a pipe was asked for"
        for number in range(FRAMES):
            time = number / RATE
            moved = number / (FRAMES - 1)
            frame = back.copy()
            gulls(ImageDraw.Draw(frame), time)
            for layer, speed in ((rocks, 0.15), (trees, 0.35)):
                frame.alpha_composite(layer, source=(int(PAN * speed * moved), 0))
            frame.alpha_composite(water(ripples, time), dest=(0, SHORE + 8))
            shift = int(PAN * 0.6 * moved)
            frame.alpha_composite(near, source=(shift, 0))
            flag(ImageDraw.Draw(frame), (mast[0] - shift, mast[1]), time)
            frame.alpha_composite(blades, source=(int(PAN * moved), 0))
            small = frame.convert("RGB").resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS)
            encoder.stdin.write(small.tobytes())
    if encoder.returncode:
        raise SystemExit("ffmpeg could not write the clip")


if __name__ == "__main__":
    main()
