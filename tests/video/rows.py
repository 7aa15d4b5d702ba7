"""Kinds of streams, and their expected outputs."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.video.clips import (
    SUBTITLES,
    ffmpeg,
)

__all__ = ["B_FRAMES", "LONG", "ROWS", "SINE", "TEST", "X264", "Row", "made", "sound"]

TEST = "-f lavfi -i testsrc=s=64x48:r=25:d=0.4"


LONG = "-f lavfi -i testsrc=s=64x48:r=25:d=1.2"


SINE = "-f lavfi -i sine=r=48000:d={}"


X264 = "-c:v libx264 -preset ultrafast"


B_FRAMES = "-c:v libx264 -preset medium -bf 3"


def sound(codec: str, seconds: float = 0.4) -> str:
    return f"{TEST} {SINE.format(seconds)} -map 0 -map 1 {X264} -ac 2 -c:a {codec} -strict -2"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of input and its expected output."""

    made: str
    """FFmpeg arguments that make it; ``{dir}`` is the test's folder."""
    source: str = "a.mkv"
    suffix: str | None = None
    """Suffix of the output that the user names."""
    becomes: str
    codec: str = "auto"
    dropped: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()
    says: str = ""
    """Part of the reason for a different container."""


ROWS = {
    "aac in mp4": Row(made=sound("aac"), source="a.mp4", becomes=".mp4"),
    "adts aac in ts": Row(made=sound("aac"), source="a.ts", becomes=".mp4", says=".ts is not a supported output"),
    "opus in mkv": Row(made=sound("libopus"), becomes=".mkv"),
    "opus to mp4": Row(made=sound("libopus"), suffix=".mp4", becomes=".mp4"),
    "flac in mkv": Row(made=sound("flac"), becomes=".mkv"),
    "flac to mp4": Row(made=sound("flac"), suffix=".mp4", becomes=".mp4"),
    "flac to mov": Row(made=sound("flac"), suffix=".mov", becomes=".mov", converted=("pcm_s16le",)),
    "vorbis to mp4": Row(made=sound("libvorbis"), suffix=".mp4", becomes=".mp4"),
    "vorbis in webm": Row(
        made=f"{TEST} {SINE.format(0.4)} -c:v libvpx -c:a libvorbis", source="a.webm", suffix=".webm", becomes=".webm"
    ),
    "ac3 in ts": Row(made=sound("ac3"), source="a.ts", becomes=".mp4", says=".ts is not a supported output"),
    "eac3 in mp4": Row(made=sound("eac3"), source="a.mp4", becomes=".mp4"),
    "dts in mkv": Row(made=sound("dca"), becomes=".mkv"),
    "dts to mp4": Row(made=sound("dca"), suffix=".mp4", becomes=".mp4"),
    "truehd in mkv": Row(made=sound("truehd"), becomes=".mkv"),
    "pcm in mov": Row(made=sound("pcm_s24le"), source="a.mov", becomes=".mov"),
    "pcm in avi": Row(made=sound("pcm_s16le"), source="a.avi", becomes=".mkv", says="pcm_s16le"),
    "pcm to mp4": Row(made=sound("pcm_s16le"), suffix=".mp4", becomes=".mp4", converted=("flac",)),
    "mp3 in avi": Row(made=sound("libmp3lame"), source="a.avi", becomes=".mp4", says=".avi is not a supported output"),
    "mp2 in mpg": Row(
        made=f"{TEST} {SINE.format(0.4)} -c:v mpeg2video -c:a mp2",
        source="a.mpg",
        becomes=".mp4",
        says="not a supported output",
    ),
    "wma in wmv": Row(
        made=f"{TEST} {SINE.format(0.4)} -c:v wmv2 -c:a wmav2",
        source="a.wmv",
        becomes=".mp4",
        dropped=("wmav2",),
        says="not a supported output",
    ),
    "sound longer than the picture": Row(made=sound("aac", 0.9), source="a.mp4", becomes=".mp4"),
    "sound shorter than the picture": Row(made=sound("aac", 0.1), source="a.mp4", becomes=".mp4"),
    "sound that starts later": Row(
        made=f"{TEST} -itsoffset 0.2 {SINE.format(0.3)} -map 0 -map 1 {X264} -c:a aac", source="a.mp4", becomes=".mp4"
    ),
    "picture that starts later": Row(
        made=f"-itsoffset 0.2 {TEST} {SINE.format(0.6)} -map 0 -map 1 {X264} -c:a aac -copyts",
        source="a.mp4",
        becomes=".mp4",
    ),
    "times before zero": Row(
        made=f"{TEST} {SINE.format(0.4)} {X264} -c:a ac3 -output_ts_offset -0.1 -avoid_negative_ts disabled",
        source="a.mp4",
        becomes=".mp4",
    ),
    "an edit list": Row(made="-ss 0.2 -i {dir}/long.mp4 -c copy", source="a.mp4", becomes=".mp4"),
    "two pictures that move": Row(
        made=f"{TEST} {LONG} -map 0 -map 1 {B_FRAMES} -video_track_timescale 12345", source="a.mp4", becomes=".mp4"
    ),
    "two pictures, hevc behind": Row(
        made=f"{TEST} {LONG} -map 0 -map 1 -c:v:0 libx264 -c:v:1 libx265 -x265-params log-level=none", becomes=".mkv"
    ),
    "two pictures, hevc behind, to mp4": Row(
        made=f"{TEST} {LONG} -map 0 -map 1 -c:v:0 libx264 -c:v:1 libx265 -x265-params log-level=none",
        suffix=".mp4",
        becomes=".mp4",
    ),
    "two pictures, av1 behind": Row(
        made=f"{TEST} {LONG} -map 0 -map 1 -c:v:0 libx264 -c:v:1 libsvtav1 -preset:v:1 12",
        source="a.mp4",
        becomes=".mp4",
    ),
    "two pictures, one that no container takes": Row(
        made=f"{TEST} {TEST} -map 0 -map 1 -c:v:0 libx264 -c:v:1 utvideo",
        source="a.avi",
        becomes=".mp4",
        dropped=("utvideo",),
        says="not a supported output",
    ),
    "subtitles of text to mp4": Row(
        made=f"{TEST} -i {{dir}}/a.srt -map 0 -map 1 {X264} -c:s srt -metadata:s:s:0 language=ger",
        suffix=".mp4",
        becomes=".mp4",
        converted=("mov_text",),
    ),
    "subtitles of mp4 to mkv": Row(
        made=f"{TEST} -i {{dir}}/a.srt -map 0 -map 1 {X264} -c:s mov_text -disposition:s:0 forced",
        source="a.mp4",
        suffix=".mkv",
        becomes=".mkv",
        converted=("subrip",),
    ),
    "subtitles of mp4": Row(
        made=f"{TEST} -i {{dir}}/a.srt -map 0 -map 1 {X264} -c:s mov_text", source="a.mp4", becomes=".mp4"
    ),
    "subtitles of webm": Row(
        made=f"{TEST} -i {{dir}}/a.srt -map 0 -map 1 -c:v libvpx-vp9 -c:s webvtt",
        source="a.webm",
        codec="vp9",
        becomes=".webm",
    ),
    "styled subtitles": Row(made=f"{TEST} -i {{dir}}/a.srt -map 0 -map 1 {X264} -c:s ass", becomes=".mkv"),
    "styled subtitles to mp4": Row(
        made=f"{TEST} -i {{dir}}/a.srt -map 0 -map 1 {X264} -c:s ass", suffix=".mp4", becomes=".mp4", dropped=("ass",)
    ),
    "a cover in mp4": Row(
        made=f"{TEST} -i {{dir}}/c.jpg -map 0 -map 1 {X264} -c:v:1 copy -disposition:v:1 attached_pic",
        source="a.mp4",
        becomes=".mp4",
    ),
    "a cover from mp4 to mkv": Row(
        made=f"{TEST} -i {{dir}}/c.png -map 0 -map 1 {X264} -c:v:1 copy -disposition:v:1 attached_pic",
        source="a.mp4",
        suffix=".mkv",
        becomes=".mkv",
    ),
    "a cover from mp4 to mov": Row(
        made=f"{TEST} -i {{dir}}/c.png -map 0 -map 1 {X264} -c:v:1 copy -disposition:v:1 attached_pic",
        source="a.mp4",
        suffix=".mov",
        becomes=".mov",
        dropped=("png",),
    ),
    "covers in mkv": Row(
        made=f"{TEST} {X264} -attach {{dir}}/c.jpg -metadata:s:t:0 mimetype=image/jpeg "
        "-attach {dir}/c.png -metadata:s:t:1 mimetype=image/png -attach {dir}/c.gif -metadata:s:t:2 mimetype=image/gif",
        becomes=".mkv",
    ),
    "a cover from mkv to mp4": Row(
        made=f"{TEST} {X264} -attach {{dir}}/c.jpg -metadata:s:t:0 mimetype=image/jpeg", suffix=".mp4", becomes=".mp4"
    ),
    "attachments of many kinds": Row(
        made=f"{TEST} {X264} -attach {{dir}}/a.srt -metadata:s:t:0 mimetype=application/octet-stream "
        "-attach {dir}/a.srt -metadata:s:t:1 mimetype=font/ttf -attach {dir}/c.bmp -metadata:s:t:2 mimetype=image/bmp",
        becomes=".mkv",
    ),
    "a time code in mov": Row(made=f"{TEST} {X264} -timecode 01:02:03:04", source="a.mov", becomes=".mov"),
    "a time code in mp4": Row(made=f"{TEST} {X264} -timecode 01:02:03:04", source="a.mp4", becomes=".mp4"),
    "a time code in mkv to mp4": Row(made=f"{TEST} {X264} -timecode 01:02:03:04", suffix=".mp4", becomes=".mp4"),
    "a time code in mov to mkv": Row(
        made=f"{TEST} {X264} -timecode 01:02:03:04", source="a.mov", suffix=".mkv", becomes=".mkv"
    ),
    "data in ts": Row(
        made=f"{TEST} -f data -i {{dir}}/a.srt -map 0 -map 1 -c:v mpeg2video -c:d copy",
        source="a.ts",
        becomes=".mp4",
        dropped=("bin_data",),
        says="not a supported output",
    ),
    "prores from mp4": Row(made=sound("aac"), source="a.mp4", codec="prores", becomes=".mov", says="prores video"),
    "ffv1 from mp4": Row(made=sound("aac"), source="a.mp4", codec="ffv1", becomes=".mkv", says="ffv1 video"),
    "png in mov": Row(made=sound("pcm_s16le"), source="a.mov", codec="png", suffix=".mov", becomes=".mov"),
    "webm by name": Row(made=sound("libopus"), suffix=".webm", becomes=".webm"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "a.srt").write_text(SUBTITLES)
    for ending in ("png", "jpg", "gif", "bmp"):
        ffmpeg("-f", "lavfi", "-i", "testsrc=s=32x32", "-frames:v", "1", str(folder / f"c.{ending}"))
    ffmpeg(*f"{LONG} {SINE.format(1.2)} {B_FRAMES} -g 10 -c:a aac".split(), str(folder / "long.mp4"))
    return folder
