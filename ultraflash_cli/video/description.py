"""Describe a clip for `probe`, in the usual terms."""

from fractions import Fraction

from ultraflash_cli.video.color import FULL, LIMITED, ColorInfo
from ultraflash_cli.video.probe import ClipInfo

__all__ = ["describe_clip", "describe_color", "unusual_colors"]

_MATRICES = {
    0: "gbr",
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020nc",
    10: "bt2020c",
    14: "ictcp",
}
_PRIMARIES = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    10: "smpte428",
    11: "smpte431",
    12: "smpte432",
    22: "ebu3213",
}
_TRANSFERS = {
    1: "bt709",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "srgb",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084 (PQ)",
    17: "smpte428",
    18: "arib-std-b67 (HLG)",
}
"""FFmpeg's names for the code points of ITU-T H.273."""
_LIKE_SRGB = ((1, 2, 5, 6, 7, 22), (1, 2, 4, 5, 6, 7, 11, 12, 13, 14, 15))
"""Primaries and transfers that look about right where sRGB is assumed."""
_SCANS = {
    "progressive": "progressive",
    "flagged": "interlaced (some frames)",
    "tff": "interlaced, top field first",
    "bff": "interlaced, bottom field first",
    "all": "interlaced",
    "telecined": "telecined film",
    "telecined25": "telecined film, 24 frames in 25",
    "mixed": "telecined film in parts",
    "shifted": "film, a field late",
}


def describe_clip(info: ClipInfo, *, photo: bool = False) -> list[tuple[str, str]]:
    """Return pairs of a property's name and value, in display order; a photo has no
    frame rate."""
    rate = f"{float(info.average_rate):.6g}"
    size = f"{info.width_px}x{info.height_px}"
    if info.sample_aspect_ratio != 1:
        size += f", pixel aspect ratio {info.sample_aspect_ratio.numerator}:{info.sample_aspect_ratio.denominator}"
    if info.rotation_deg:
        size += f", rotated by {info.rotation_deg} degrees"

    lines = [
        ("container", info.container),
        ("video", f"{info.codec}, {info.pix_fmt}, {info.bit_depth} bit"),
        ("size", size),
        ("colour", describe_color(info.color)),
        ("scan", _SCANS[info.scan]),
    ]
    if photo:
        lines.append(("length", "a photo"))
    else:
        lines += [("frame rate", f"{rate} per second, time base {info.time_base} s"), ("length", _length(info))]
    return lines + [("streams" if at == 0 else "", each.describe()) for at, each in enumerate(info.streams)]


def describe_color(color: ColorInfo) -> str:
    """Return the colour tags by FFmpeg's names, such as ``bt709, limited``; all three
    are listed only if they differ."""
    tags = (
        _MATRICES.get(color.matrix, "unspecified"),
        _PRIMARIES.get(color.primaries, "unspecified"),
        _TRANSFERS.get(color.transfer, "unspecified"),
    )
    levels = {LIMITED: "limited", FULL: "full"}.get(color.range, "unspecified range")
    if len(set(tags)) == 1:
        return f"{tags[0]}, {levels}"
    return f"matrix {tags[0]}, primaries {tags[1]}, transfer {tags[2]}, {levels}"


def unusual_colors(color: ColorInfo) -> str:
    """Return the names of primaries and transfer that look wrong where sRGB is assumed,
    such as ``bt2020, smpte2084 (PQ)``; empty if they do not."""
    tags = ((color.primaries, _PRIMARIES, _LIKE_SRGB[0]), (color.transfer, _TRANSFERS, _LIKE_SRGB[1]))
    return ", ".join(names[tag] for tag, names, usual in tags if tag in names and tag not in usual)


def _length(info: ClipInfo) -> str:
    seconds = "unknown" if info.duration_s is None else f"{float(Fraction(info.duration_s)):.3f} s"
    frames = info.frame_count_estimate
    return seconds + (f", about {frames} frame{'s' if frames > 1 else ''}" if frames else "")
