"""Kinds of input files, made by another FFmpeg."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.video.clips import ffmpeg

__all__ = ["KINDS", "X264", "Kind", "make"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """FFmpeg arguments that make a file, and the allowed deviation from FFmpeg's own
    conversion."""

    suffix: str
    arguments: str = ""
    """Arguments for the output: codec, pixel format, tags."""
    source: str = "testsrc2"
    size: str = "64x48"
    rate: int = 25
    seconds: str = "0.4"
    levels: float = 1.0
    """Mean absolute difference allowed, of 255."""
    chroma: str = "left"
    """Position of the chroma samples, which the independent reader must be given."""
    reader: str = ""
    """Other settings that it must be given."""
    facts: tuple[tuple[str, object], ...] = ()
    """Facts that the probe must report."""
    make: Callable[[Path], object] | None = None
    """Function that changes the file after it was made."""
    says: str = ""
    """Part of the only warning on reading; empty for none."""


X264 = "-c:v libx264 -preset ultrafast"


KINDS = {
    # containers
    "mp4": Kind(suffix=".mp4", arguments="-c:v libx264 -preset medium -bf 3"),
    "fragmented mp4": Kind(suffix=".mp4", arguments=f"{X264} -movflags frag_keyframe+empty_moov -g 4"),
    "mov prores": Kind(suffix=".mov", arguments="-c:v prores_ks", facts=(("bit_depth", 10),)),
    "mkv": Kind(suffix=".mkv", arguments=X264),
    "webm vp8": Kind(suffix=".webm", arguments="-c:v libvpx"),
    "webm vp9": Kind(suffix=".webm", arguments="-c:v libvpx-vp9 -cpu-used 8"),
    "webm av1": Kind(suffix=".webm", arguments="-c:v libsvtav1 -preset 12", size="128x96"),
    "ts": Kind(suffix=".ts", arguments=X264),
    "m2ts": Kind(suffix=".m2ts", arguments=X264),
    "mpeg ps": Kind(suffix=".mpg", arguments="-c:v mpeg2video -q:v 2"),
    "vob": Kind(suffix=".vob", arguments="-c:v mpeg2video -q:v 2"),
    "mpeg1": Kind(chroma="center", suffix=".mpg", arguments="-c:v mpeg1video -q:v 2"),
    "avi mpeg4": Kind(suffix=".avi", arguments="-c:v mpeg4 -q:v 2 -bf 2"),
    "avi huffyuv": Kind(suffix=".avi", arguments="-c:v huffyuv"),
    "avi mjpeg": Kind(chroma="center", suffix=".avi", arguments="-c:v mjpeg -q:v 2 -pix_fmt yuvj420p"),
    "avi raw": Kind(suffix=".avi", arguments="-c:v rawvideo -pix_fmt bgr24"),
    "avi pal8": Kind(suffix=".avi", arguments="-c:v msrle -pix_fmt pal8"),
    "flv": Kind(chroma="center", suffix=".flv", arguments="-c:v flv -q:v 2"),
    "wmv": Kind(suffix=".wmv", arguments="-c:v wmv2 -q:v 2"),
    "ogv theora": Kind(chroma="center", suffix=".ogv", arguments="-c:v libtheora -q:v 8"),
    "nut": Kind(suffix=".nut", arguments="-c:v ffv1"),
    "3gp h263": Kind(chroma="center", suffix=".3gp", arguments="-c:v h263", size="128x96"),
    "mxf": Kind(suffix=".mxf", arguments="-c:v mpeg2video -q:v 2"),
    "dv": Kind(suffix=".dv", size="720x576", arguments="-pix_fmt yuv420p", seconds="0.12", says="bwdif", levels=3),
    "ivf": Kind(suffix=".ivf", arguments="-c:v libvpx"),
    "asf": Kind(suffix=".asf", arguments="-c:v msmpeg4 -q:v 2"),
    "rm": Kind(chroma="center", suffix=".rm", arguments="-c:v rv20 -q:v 2", size="128x96"),
    "y4m": Kind(chroma="center", suffix=".y4m", arguments="-pix_fmt yuv420p"),
    "y4m 422 10": Kind(suffix=".y4m", arguments="-pix_fmt yuv422p10le -strict -1"),
    "raw h264": Kind(suffix=".h264", arguments=X264),
    "raw hevc": Kind(suffix=".hevc", arguments="-c:v libx265 -preset ultrafast -x265-params log-level=none"),
    "raw mjpeg": Kind(chroma="center", suffix=".mjpeg", arguments="-c:v mjpeg -q:v 2"),
    "gif": Kind(suffix=".gif"),
    "gif clear": Kind(
        suffix=".gif", source="color=red@0,format=rgba,drawbox=c=blue:x=9:y=9:w=20:h=20:t=fill:replace=1,null"
    ),
    "apng": Kind(suffix=".apng", arguments="-plays 0"),
    "one png": Kind(suffix=".png", arguments="-frames:v 1"),
    "one jpeg": Kind(chroma="center", suffix=".jpg", arguments="-frames:v 1 -q:v 2"),
    # layouts
    "gray": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt gray"),
    "gray10": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt gray10le", facts=(("bit_depth", 10),)),
    "gray16 png": Kind(suffix=".mov", arguments="-c:v png -pix_fmt gray16be", facts=(("bit_depth", 16),)),
    "gray png": Kind(suffix=".mov", arguments="-c:v png -pix_fmt gray"),
    "monochrome png": Kind(suffix=".mov", arguments="-c:v png -pix_fmt monob"),
    "ya8 png": Kind(suffix=".mov", arguments="-c:v png -pix_fmt ya8"),
    "422": Kind(suffix=".mp4", arguments=f"{X264} -pix_fmt yuv422p"),
    "444": Kind(suffix=".mp4", arguments=f"{X264} -pix_fmt yuv444p"),
    "411": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt yuv411p"),
    "410": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt yuv410p"),
    "440": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt yuv440p"),
    "nv12 raw": Kind(suffix=".nut", arguments="-c:v rawvideo -pix_fmt nv12"),
    "uyvy": Kind(suffix=".mov", arguments="-c:v rawvideo -pix_fmt uyvy422"),
    "v210": Kind(suffix=".mov", arguments="-c:v v210", facts=(("bit_depth", 10),)),
    "rgb h264": Kind(suffix=".mkv", arguments="-c:v libx264rgb -preset ultrafast -crf 5"),
    "gbrp ffv1": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt bgr0"),
    "gbrp10": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt gbrp10le", facts=(("bit_depth", 10),)),
    "gbrp16": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt gbrp16le", facts=(("bit_depth", 16),)),
    "rgb48 png": Kind(suffix=".mov", arguments="-c:v png -pix_fmt rgb48be", facts=(("bit_depth", 16),)),
    "rgb555": Kind(suffix=".avi", arguments="-c:v rawvideo -pix_fmt rgb555le"),
    "qtrle argb": Kind(suffix=".mov", arguments="-c:v qtrle -pix_fmt argb"),
    "hevc 10": Kind(
        suffix=".mp4",
        arguments="-c:v libx265 -preset ultrafast -pix_fmt yuv420p10le -x265-params log-level=none",
        facts=(("bit_depth", 10),),
    ),
    "hevc 12 422": Kind(
        suffix=".mp4",
        arguments="-c:v libx265 -preset ultrafast -pix_fmt yuv422p12le -x265-params log-level=none",
        facts=(("bit_depth", 12),),
    ),
    "ffv1 444 16": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt yuv444p16le", facts=(("bit_depth", 16),)),
    "ffv1 9": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt yuv420p9le", facts=(("bit_depth", 9),)),
    "odd": Kind(suffix=".mkv", arguments="-c:v ffv1 -pix_fmt yuv420p", size="63x47"),
    "xyz jpeg2000": Kind(suffix=".mov", arguments="-c:v jpeg2000 -pix_fmt xyz12le", facts=(("bit_depth", 16),)),
    "exr": Kind(suffix=".mkv", arguments="-c:v exr -pix_fmt gbrpf32le -format float", facts=(("bit_depth", 16),)),
    # colours
    "full range": Kind(suffix=".mp4", arguments=f"{X264} -pix_fmt yuvj420p"),
    "bt709 tagged": Kind(suffix=".mp4", arguments=f"{X264} -vf scale=out_color_matrix=bt709 -colorspace bt709"),
    "bt2020 10": Kind(
        suffix=".mkv",
        arguments="-c:v ffv1 -pix_fmt yuv420p10le "
        "-vf scale=out_color_matrix=bt2020,setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084",
    ),
    "smpte240m": Kind(suffix=".mkv", arguments="-c:v ffv1 -vf scale=out_color_matrix=smpte240m -colorspace smpte240m"),
    "hd untagged": Kind(
        suffix=".mkv",
        arguments="-c:v ffv1 -pix_fmt yuv420p",
        size="1280x720",
        seconds="0.08",
        reader=":in_color_matrix=bt709",
    ),
    # time
    "59.94": Kind(suffix=".mp4", arguments=f"{X264} -r 60000/1001"),
    "offset mp4": Kind(suffix=".mp4", arguments=f"{X264} -output_ts_offset 3.7"),
    "offset mkv": Kind(suffix=".mkv", arguments=f"{X264} -output_ts_offset 3.7"),
    "negative mp4": Kind(
        suffix=".mp4", arguments=f"{X264} -output_ts_offset -0.2 -avoid_negative_ts disabled -use_editlist 0"
    ),
    "editlist": Kind(suffix=".mp4", arguments="-c:v libx264 -preset medium -bf 3 -output_ts_offset 1 -use_editlist 1"),
    "vfr": Kind(
        suffix=".mp4",
        arguments=f"{X264} -vf settb=1/1000,setpts=N*N*3+N*7 -fps_mode passthrough -enc_time_base 1/1000 "
        "-video_track_timescale 1000",
    ),
    "one frame": Kind(suffix=".mp4", arguments=f"{X264} -frames:v 1"),
    "open gop": Kind(suffix=".ts", arguments="-c:v libx264 -preset medium -bf 3 -g 6 -x264-params open-gop=1"),
    "ts wrap": Kind(suffix=".ts", arguments=f"{X264} -mpegts_copyts 1 -output_ts_offset 95443.5", seconds="0.6"),
}


def make(kind: Kind, folder: Path) -> Path:
    path = folder / f"a{kind.suffix}"
    separator = ":" if "=" in kind.source else "="
    source = kind.source.replace(",null", "") if ",null" in kind.source else kind.source
    if source == kind.source:
        source = f"{source}{separator}size={kind.size}:rate={kind.rate}:duration={kind.seconds}"
    else:
        name, rest = source.split(",", 1)
        source = f"{name}:size={kind.size}:rate={kind.rate}:duration={kind.seconds},{rest}"
    ffmpeg("-f", "lavfi", "-i", source, *kind.arguments.split(), str(path))
    if kind.make is not None:
        kind.make(path)
    return path
