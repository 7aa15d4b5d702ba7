"""Small generated clips, the whole path through the `video` package, and an independent
reader."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
from av.codec.context import Flags
from numpy.typing import NDArray

from ultraflash_cli.video.color import ColorInfo, Picture
from ultraflash_cli.video.containers import StreamPlan, plan_streams
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.encode import EncodeSpec, choose_spec
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.join import Joined, join
from ultraflash_cli.video.probe import ClipInfo, probe
from ultraflash_cli.video.segment import SegmentWriter
from ultraflash_cli.video.segment_file import SegmentFile

WEIGHTS = {601: (0.299, 0.114), 709: (0.2126, 0.0722)}

SUBTITLES = "1\n00:00:00,040 --> 00:00:00,200\nFirst line\n\n2\n00:00:00,240 --> 00:00:00,400\nSecond line\n"


def picture(number: int, *, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """Return a smooth picture ``[height, width, 3]`` whose three colours all differ,
    moving with ``number``."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 140 + 70 * np.sin((x + 3 * number) / width * 6)
    green = 110 + 60 * np.sin((y - 2 * number) / height * 5 + 1)
    blue = 90 + 50 * np.cos((x + y + number) / (width + height) * 7)
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def to_yuv444(rgb_hwc: NDArray[np.uint8], *, standard: int, full: bool) -> NDArray[np.uint8]:
    """Convert as the standards define it, in floating point: planes ``[3, height,
    width]``."""
    weight_red, weight_blue = WEIGHTS[standard]
    red, green, blue = np.moveaxis(rgb_hwc.astype(np.float64) / 255, -1, 0)
    luma = weight_red * red + (1 - weight_red - weight_blue) * green + weight_blue * blue
    chroma_blue = (blue - luma) / (2 * (1 - weight_blue))
    chroma_red = (red - luma) / (2 * (1 - weight_red))
    if full:
        planes = [255 * luma, 128 + 255 * chroma_blue, 128 + 255 * chroma_red]
    else:
        planes = [16 + 219 * luma, 128 + 224 * chroma_blue, 128 + 224 * chroma_red]
    return np.stack(planes).round().clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """Contents of a generated clip."""

    pts: Sequence[int] = tuple(range(12))
    last_duration: int = 1
    time_base: Fraction = Fraction(1, 25)
    size: tuple[int, int] = (64, 48)
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: {"crf": "1", "preset": "ultrafast"})
    color: ColorInfo | None = None
    aspect: Fraction | None = None
    rotation: int = 0
    audio: Sequence[str] = ()
    subtitles: str | None = None
    attachment: bool = False
    chapters: int = 0
    tags: dict[str, str] = field(default_factory=dict[str, str])
    container_options: dict[str, str] = field(default_factory=dict[str, str])


def make_clip(path: Path, plan: ClipPlan | None = None) -> Path:
    """Write the clip; the frames are ``picture(0)``, ``picture(1)``, ..."""
    plan = plan or ClipPlan()
    options = dict(plan.container_options)
    if path.suffix in (".mp4", ".mov"):
        options.setdefault("video_track_timescale", str(plan.time_base.denominator))
        options.setdefault("movie_timescale", str(plan.time_base.denominator * 1000))
    plain = path.with_stem(path.stem + "_plain") if plan.subtitles else path
    with av.open(str(plain), "w", container_options=options) as container:
        stream = container.add_stream(
            plan.codec,
            rate=Fraction(25),
            options=plan.options,
            width=plan.size[0],
            height=plan.size[1],
            time_base=plan.time_base,
        )
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.pix_fmt = plan.pix_fmt
        context.thread_count = 1
        context.flags |= Flags.frame_duration
        if plan.color:
            context.colorspace, context.color_range = plan.color.matrix, plan.color.range
            context.color_primaries, context.color_trc = plan.color.primaries, plan.color.transfer
        if plan.aspect:
            context.sample_aspect_ratio = plan.aspect
        if plan.rotation:
            stream.set_display_rotation(plan.rotation)
        sounds = [container.add_stream(name, rate=48000) for name in plan.audio]
        for number, sound in enumerate(sounds):
            sound.metadata["language"] = ("eng", "jpn")[number]
        if plan.attachment:
            container.add_attachment("font.ttf", "font/ttf", bytes(range(200)))
        if plan.chapters:
            container.set_chapters(
                [
                    {
                        "id": number + 1,
                        "start": number * 200,
                        "end": number * 200 + 200,
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": f"Part {number + 1}"},
                    }
                    for number in range(plan.chapters)
                ]
            )
        container.metadata.update(plan.tags)
        for number, pts in enumerate(plan.pts):
            frame = av.VideoFrame.from_ndarray(picture(number, width=plan.size[0], height=plan.size[1]))
            frame.pts, frame.time_base = pts, plan.time_base
            after = plan.pts[number + 1] if number + 1 < len(plan.pts) else pts + plan.last_duration
            frame.duration = after - pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for number, sound in enumerate(sounds):
            assert isinstance(sound, av.AudioStream)
            for frame in _tone(sound, 300 * (number + 1), plan):
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    if plan.subtitles:
        text = path.with_suffix(".srt")
        text.write_text(plan.subtitles)
        codec = "mov_text" if path.suffix in (".mp4", ".mov") else "srt"
        maps = ["-map", "0:v", "-map", "0:a?", "-map", "0:t?", "-map", "1"]
        codecs = ["-c", "copy", "-c:s", codec, "-metadata:s:s:0", "language=ger"]
        ffmpeg("-i", str(plain), "-i", str(text), *maps, *codecs, "-copyts", str(path))
        plain.unlink()
    return path


def _tone(sound: av.AudioStream, hertz: int, plan: ClipPlan) -> list[av.AudioFrame]:
    total = int((plan.pts[-1] + plan.last_duration - plan.pts[0]) * plan.time_base * 48000)
    layout, size = sound.codec_context.layout.name, 1024
    frames: list[av.AudioFrame] = []
    for start in range(0, total, size):
        times = (np.arange(start, start + size) / 48000).astype(np.float32)
        wave = np.sin(times * 2 * np.pi * hertz).astype(np.float32) / 4
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        frames.append(frame)
    return frames


@dataclass(frozen=True, kw_only=True)
class Result:
    """A clip that was processed end to end with its pixels doubled."""

    path: Path
    info: ClipInfo
    spec: EncodeSpec
    plan: StreamPlan
    frames: list[Frame]
    warnings: list[str]
    """Warnings of reading and of joining."""
    segments: list[SegmentFile]
    joined: Joined


def enlarge(
    source: Path,
    folder: Path,
    *,
    suffix: str | None = None,
    per_segment: int = 5,
    scale: int = 2,
    codec: str = "auto",
    window: tuple[Fraction, Fraction] | None = None,
    **settings: int | str | None,
) -> Result:
    """Probe, decode, repeat every pixel, encode in segments and join."""
    warnings: list[str] = []
    info = probe(source)
    crf, pix_fmt = settings.get("crf"), settings.get("pix_fmt", "auto")
    assert (crf is None or isinstance(crf, int)) and isinstance(pix_fmt, str)
    spec = choose_spec(
        info,
        width_px=info.width_px * scale,
        height_px=info.height_px * scale,
        codec=codec,
        crf=crf,
        pix_fmt=pix_fmt,
        threads=1,
        suffix=suffix,
    )
    frames = list(read_frames(info, alpha=spec.alpha, warn=warnings.append))
    if window is not None:
        frames = [frame for frame in frames if window[0] <= frame.pts * info.time_base < window[1]]
    plan = plan_streams(info, suffix, codec=spec.codec)
    segments = write_segments(folder, spec, frames, per_segment=per_segment, scale=scale)
    target = folder / f"{source.stem}_out{plan.suffix}"
    joined = join(segments, info, plan, spec, target, window=window)
    warnings += joined.notes
    return Result(
        path=target,
        info=info,
        spec=spec,
        plan=plan,
        frames=frames,
        warnings=warnings,
        segments=segments,
        joined=joined,
    )


def write_segments(
    folder: Path, spec: EncodeSpec, frames: Sequence[Frame], *, per_segment: int, scale: int = 1
) -> list[SegmentFile]:
    """Encode frames into segment files."""
    segments: list[SegmentFile] = []
    for start in range(0, len(frames), per_segment):
        with SegmentWriter(folder / f"segment{start:05d}.mp4", spec) as writer:
            for frame in frames[start : start + per_segment]:
                alpha_hw = None if frame.alpha_hw is None else repeated(frame.alpha_hw, scale)
                writer.write(Frame(frame.pts, frame.duration, repeated(frame.rgb_hwc, scale), alpha_hw))
            segments.append(writer.close())
    return segments


def repeated(rgb_hwc: Picture, scale: int) -> Picture:
    """Repeat every pixel ``scale`` times in both directions."""
    return rgb_hwc.repeat(scale, axis=0).repeat(scale, axis=1)


def ffmpeg(*arguments: str) -> str:
    """Run the independent FFmpeg and return its output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown_times(path: Path) -> list[Fraction]:
    """Return the time at which the independent reader shows each frame, in seconds."""
    lines = ffmpeg(
        "-copyts", "-noautorotate", "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-enc_time_base",
        "demux", "-f", "framehash", "-hash", "crc32", "-",
    ).splitlines()  # fmt: skip
    unit = next(Fraction(line.split(":")[1].strip()) for line in lines if line.startswith("#tb 0"))
    return [int(line.split(",")[2]) * unit for line in lines if not line.startswith("#")]


def copied_hashes(path: Path, kinds: str = "as") -> list[str]:
    """Return a hash of the packets of every stream of the given kinds (a audio, s
    subtitle, t attachment), in order."""
    with av.open(str(path)) as container:
        if not {stream.type[0] for stream in container.streams} & set(kinds):
            return []
    maps = [part for kind in kinds for part in ("-map", f"0:{kind}?")]
    lines = ffmpeg("-i", str(path), *maps, "-c", "copy", "-f", "streamhash", "-hash", "md5", "-").splitlines()
    return [line.split(",", 1)[1] for line in lines]


def packet_times(path: Path, kind: str) -> list[list[Fraction]]:
    """Return the presentation times of the packets of every stream of a kind, in
    seconds."""
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        times: dict[int, list[Fraction]] = {stream.index: [] for stream in streams}
        if not streams:
            return []
        for packet in container.demux(*streams):
            if packet.size:
                assert packet.pts is not None
                times[packet.stream_index].append(packet.pts * packet.time_base)
    return list(times.values())


def mean_error(a: Picture, b: Picture) -> float:
    """Return the mean absolute difference in levels."""
    return float(np.abs(a.astype(np.int32) - b.astype(np.int32)).mean())
