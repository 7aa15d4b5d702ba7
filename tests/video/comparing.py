"""Comparing an output with its source using another FFmpeg."""

from fractions import Fraction
from pathlib import Path

import av

from tests.video.clips import (
    Result,
    ffmpeg,
    shown_times,
)
from ultraflash_cli.video.check import check_output
from ultraflash_cli.video.probe import probe

__all__ = ["checked", "compare", "facts", "stream_hash", "stream_times"]


def checked(result: Result) -> Result:
    first, last = result.frames[0], result.frames[-1]
    check_output(
        result.path,
        plan=result.plan,
        frames=len(result.frames),
        spec=result.spec,
        duration_s=(last.pts + last.duration - first.pts) * result.info.time_base,
        joined=result.joined,
    )
    return result


def compare(source: Path, result: Result) -> None:
    """Compare frames, times, copied packets, text, tags and chapters, as another
    program reads them."""
    exact = result.path.suffix not in (".mkv", ".webm") or source.suffix in (".mkv", ".webm")
    slack = Fraction(0) if exact else Fraction(1, 1000)
    before, after = shown_times(source), shown_times(result.path)
    moved = after[0] - before[0]
    assert moved <= (Fraction(1, 10) if result.warnings else slack)
    assert max(abs(b - a - moved) for a, b in zip(before, after, strict=True)) <= slack
    # Converted subtitles are compared by their text.
    gone = {each.stream.index for each in (*result.plan.dropped, *result.plan.converted)} | {result.info.video_index}
    kept = [each for each in result.plan.copied if each.kind in ("audio", "video", "subtitle")]
    assert {each.index for each in kept}.isdisjoint(gone)
    if source.suffix == ".ts" and any(each.codec == "aac" for each in kept):
        # The header before each AAC packet in a broadcast is stored elsewhere in MP4.
        (heard,), (plain,) = ([ffmpeg("-i", str(path), "-vn", "-f", "hash", "-hash", "md5", "-")]
                              for path in (source, result.path))  # fmt: skip
        assert heard == plain
        return
    hashes = [stream_hash(source, each.index) for each in kept]
    written = [s.index for s in probe(result.path).streams if s.kind in ("audio", "video", "subtitle")]
    found = {index: stream_hash(result.path, index) for index in written}
    assert [each for each in hashes if each not in found.values()] == []
    for each in kept:
        if not each.is_picture:
            twin = next(index for index in written if found[index] == stream_hash(source, each.index))
            a, b = stream_times(source, each.index), stream_times(result.path, twin)
            assert max(abs(y - x - moved) for x, y in zip(a, b, strict=True)) <= max(slack, Fraction(1, 20000))
    for converted in result.plan.converted:
        (index,) = (s.index for s in probe(result.path).streams if s.codec == converted.codec)
        form = ("-c:a", "pcm_s32le", "-f", "hash") if converted.stream.kind == "audio" else ("-f", "srt")
        texts = [ffmpeg("-i", str(path), "-map", f"0:{place}", *form, "-")
                 for path, place in ((source, converted.stream.index), (result.path, index))]  # fmt: skip
        assert texts[0] == texts[1] != ""
    assert facts(result.path).get("title") == facts(source).get("title")
    if "TIMECODE" in facts(source):
        assert facts(result.path)["TIMECODE"] == facts(source)["TIMECODE"] == "01:02:03:04"


def stream_hash(path: Path, index: int) -> str:
    line = ffmpeg("-i", str(path), "-map", f"0:{index}", "-c", "copy", "-f", "streamhash", "-hash", "md5", "-")
    return line.split("=")[-1].strip()


def stream_times(path: Path, index: int) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams[index]
        return [p.pts * p.time_base for p in container.demux(stream) if p.size and p.pts is not None]


def facts(path: Path) -> dict[str, str]:
    """Return the tags of the file, and its time code wherever it is stored."""
    with av.open(str(path), metadata_errors="replace") as container:
        tags = dict(container.metadata)
        for stream in container.streams:
            tags |= {key: value for key, value in stream.metadata.items() if key.lower() == "timecode"}
    return {("TIMECODE" if key.lower() == "timecode" else key): value for key, value in tags.items()}
