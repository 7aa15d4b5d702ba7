"""Generated clips like those on tapes and discs: fields of different moments, repeated
fields, noise."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

NTSC = Fraction(30000, 1001)
FILM = Fraction(24000, 1001)
Luma = NDArray[np.uint8]


def moment(time: float, *, size: tuple[int, int] = (160, 96), speed: float = 3.0) -> Luma:
    """Return the luma of a detailed picture that moves ``speed`` pixels per unit of
    time."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float64)
    at = time * speed
    waves = 60 * np.sin((x + at) / 7) * np.cos((y + at / 3) / 9) + 40 * np.sin((x * 0.31 + y * 0.2 - at / 2) / 3)
    return (128 + waves).round().clip(16, 235).astype(np.uint8)


def woven(fields: Sequence[Luma], *, top_first: bool = True) -> list[Luma]:
    """Return frames of two fields each; the lines of a field are taken from a whole
    picture of its moment."""
    frames: list[Luma] = []
    for first, second in zip(fields[::2], fields[1::2], strict=False):
        frame = first.copy()
        frame[int(top_first) :: 2] = second[int(top_first) :: 2]
        frames.append(frame)
    return frames


def interlaced(count: int, *, top_first: bool = True) -> list[Luma]:
    """Return frames whose fields are half a frame apart."""
    return woven([moment(number) for number in range(2 * count)], top_first=top_first)


def telecined(film: Sequence[Luma], *, top_first: bool = True) -> list[Luma]:
    """Return film whose pictures last alternately two and three fields."""
    fields = [picture for number, picture in enumerate(film) for _ in range(2 + number % 2)]
    return woven(fields, top_first=top_first)


def telecined_pal(film: Sequence[Luma]) -> list[Luma]:
    """Return film of 24 pictures per second in 25 frames: every twelfth picture lasts
    three fields."""
    fields = [picture for number, picture in enumerate(film) for _ in range(3 if number % 12 == 11 else 2)]
    return woven(fields)


def film_pictures(count: int) -> list[Luma]:
    """Return pictures of film, two and a half fields apart."""
    return [moment(2.5 * number) for number in range(count)]


def write(
    path: Path,
    lumas: Sequence[Luma],
    *,
    rate: Fraction = NTSC,
    codec: str = "ffv1",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    chroma: Sequence[tuple[Luma, Luma]] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Write pictures, grey ones unless ``chroma`` gives planes of full size, at a constant rate."""
    height, width = lumas[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {}, width=width, height=height)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, luma in enumerate(lumas):
            if chroma is None:
                planes = [luma, *[np.full_like(luma, 128)] * 2]
            else:
                planes = [luma, *chroma[number]]
            frame = av.VideoFrame.from_ndarray(np.stack(planes), format="yuv444p")
            frame.color_range, frame.colorspace = 1, 6
            frame = frame.reformat(format=pix_fmt, src_color_range=1, dst_color_range=1)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_soft_telecine(path: Path, film: Sequence[Luma]) -> Path:
    """Write film as on discs: 24 frames per second, flagged to be shown alternately for
    three and two fields."""
    raw = write(
        path.with_suffix(".m2v"), film, codec="mpeg2video", options={"qmin": "2", "qmax": "2", "g": "12", "bf": "2"}
    ).read_bytes()
    coded = bytearray(raw)
    place, shown, before, number = 0, 0, 0, 0
    while (place := coded.find(b"\0\0\1", place)) >= 0:
        kind, extension = coded[place + 3], coded[place + 4] >> 4
        if kind == 0xB8:  # a group of pictures, which restarts their count
            before = shown
        elif kind == 0:
            number = before + (coded[place + 4] << 2 | coded[place + 5] >> 6)
            shown += 1
        elif kind == 0xB5 and extension == 1:
            coded[place + 5] &= ~0x08 & 0xFF  # not a progressive sequence
        elif kind == 0xB5 and extension == 8:
            top_first, repeats = ((1, 1), (0, 0), (0, 1), (1, 0))[number % 4]
            coded[place + 7] = coded[place + 7] & 0x7D | top_first << 7 | 0x40 | repeats << 1
            coded[place + 8] |= 0x80  # a progressive frame
        place += 4
    raw_path = path.with_suffix(".m2v")
    raw_path.write_bytes(coded)
    if path.suffix != ".m2v":
        _timed(raw_path, path)
    return path


def _timed(raw: Path, path: Path) -> None:
    """Mux packets of such a stream into a container, each with its time."""
    field = Fraction(1001, 60000)
    unit = Fraction(1, 90000)
    with av.open(str(raw), format="mpegvideo") as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0], opaque=True)
        stream.time_base = unit
        packets = [packet for packet in source.demux(video=0) if packet.size]
        start = [sum((3, 2)[n % 2] for n in range(number)) for number in range(len(packets))]
        before = 0
        for number, packet in enumerate(packets):
            coded = bytes(packet)
            before = number if b"\0\0\1\xb8" in coded else before
            head = coded.index(b"\0\0\1\0")
            shown = before + (coded[head + 4] << 2 | coded[head + 5] >> 6)
            packet.stream, packet.time_base = stream, unit
            packet.pts = round(start[shown] * field / unit) + 9009
            packet.dts = round(start[number] * field / unit) + 3003
            packet.duration = round((3, 2)[shown % 2] * field / unit)
            target.mux(packet)


def coloured(
    count: int, *, size: tuple[int, int] = (320, 240), shift: tuple[int, int] = (0, 0)
) -> tuple[list[Luma], list[tuple[Luma, Luma]]]:
    """Return luma and chroma of moving shapes; the chroma is displaced by ``shift``
    pixels right and down."""
    rng = np.random.default_rng(5)
    shapes = [
        (rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(14, 34), rng.uniform(-3, 3), rng.uniform(-2, 2))
        for _ in range(16)
    ]
    tones = rng.integers(-70, 70, (16, 3))
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float64)
    lumas: list[Luma] = []
    colours: list[tuple[Luma, Luma]] = []
    for number in range(count):
        luma, blue, red = np.full_like(x, 110), np.full_like(x, 128), np.full_like(x, 128)
        for (left, top, radius, across, down), tone in zip(shapes, tones, strict=True):
            at = (left + across * number) % size[0], (top + down * number) % size[1]
            # All edges are equally soft, as from a camera.
            for plane, part, moved in ((luma, tone[0], (0, 0)), (blue, tone[1], shift), (red, tone[2], shift)):
                distance = np.hypot(x - at[0] - moved[0], y - at[1] - moved[1])
                plane += part / (1 + np.exp((distance - radius) * 1.2))
        lumas.append(luma.round().clip(16, 235).astype(np.uint8))
        colours.append((blue.round().clip(16, 240).astype(np.uint8), red.round().clip(16, 240).astype(np.uint8)))
    return lumas, colours


def framed(luma: Luma, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0, black: int = 16) -> Luma:
    """Return a picture whose borders are black, with a soft edge."""
    made = luma.copy()
    height, width = luma.shape
    made[:top], made[height - bottom :], made[:, :left], made[:, width - right :] = black, black, black, black
    if left:
        made[:, left] = (made[:, left].astype(int) + 3 * black) // 4
    return made


def head_switched(luma: Luma, lines: int, rng: np.random.Generator) -> Luma:
    """Return a picture whose last lines are displaced and noisy, as at the end of a
    tape's fields."""
    made = luma.copy()
    for line in range(luma.shape[0] - lines, luma.shape[0]):
        made[line] = np.roll(luma[line], int(rng.integers(15, 60)))
    noise = rng.normal(0, 25, (lines, luma.shape[1]))
    made[-lines:] = (made[-lines:] + noise).clip(16, 235).astype(np.uint8)
    return made


def grainy(luma: Luma, rng: np.random.Generator, *, dark: float = 2.0, bright: float = 6.0, soft: float = 0.7) -> Luma:
    """Return a picture with grain whose deviation increases with brightness, and whose
    neighbouring pixels are correlated."""
    reach = np.arange(-3, 4)
    taps = np.exp(-0.5 * (reach / soft) ** 2)
    noise = rng.standard_normal(luma.shape)
    for axis in (0, 1):
        noise = np.sum([tap * np.roll(noise, int(n), axis) for n, tap in zip(reach, taps, strict=True)], axis=0)
    noise /= noise.std()
    strength = dark + (bright - dark) * (luma.astype(np.float64) - 16) / 219
    return (luma + strength * noise).round().clip(0, 255).astype(np.uint8)
