"""The contents of a file as read by another program, the FFmpeg that imageio-ffmpeg
includes."""

import re
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

__all__ = ["Seen", "Track", "look"]

SMALL = (16, 12)
_STREAM = re.compile(r" +Stream #0:(\d+)(?:\[\w+\])?(?:\((\w+)\))?: (\w+): (\w+)(.*)")
_OF_CONTAINERS = {"encoder", "major_brand", "minor_version", "compatible_brands", "ultraflash"}


@dataclass(frozen=True, kw_only=True)
class Track:
    """A stream as stored in the file."""

    kind: str
    codec: str
    language: str
    times: tuple[Fraction, ...]
    """Presentation time of each packet, in seconds."""
    end: Fraction
    hashes: tuple[str, ...]
    """Hashes of the packets, or of an attachment's content."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A file: its main picture decoded, the rest packet by packet."""

    times: tuple[Fraction, ...]
    """Presentation time of each frame, in seconds."""
    end: Fraction
    """End of the last frame, in seconds."""
    pictures: NDArray[np.float64]
    """``[frames, 12, 16, 4]``: red, green, blue and how opaque, in levels of 255."""
    picture: str
    """Description of the main video: codec, pixel format, colour, aspect, and the side
    data of stream and frames."""
    tracks: tuple[Track, ...]
    """All tracks except the main video."""
    tags: dict[str, str]
    chapters: tuple[tuple[Fraction, Fraction, str], ...]

    @property
    def pix_fmt(self) -> str:
        """Pixel format."""
        found = re.search(r", (\w+)(?:\([^)]*\))?, \d+x\d+", self.picture)
        assert found is not None, self.picture
        return found[1]

    @property
    def bits(self) -> int:
        """Bits a sample."""
        found = re.search(r"p(\d\d?)(?:le|be)|(?:gray|rgb|x2rgb|ya)(\d\d)(?:le|be)", self.pix_fmt)
        bits = int(found[1] or found[2]) if found else 8
        return bits // 3 if bits > 32 else bits

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as coded."""
        found = re.search(r", (\d+)x(\d+)", self.picture)
        assert found is not None, self.picture
        return int(found[1]), int(found[2])

    @property
    def aspect(self) -> Fraction:
        """Width over height of a pixel."""
        found = re.findall(r"SAR (\d+):(\d+)", self.picture)  # the container's comes last, and wins
        return Fraction(int(found[-1][0]), int(found[-1][1])) if found else Fraction(1)

    @property
    def colors(self) -> set[str]:
        """Range, matrix, primaries and transfer, as printed."""
        found = re.search(r", \w+\(([^)]*)\), \d+x\d+", self.picture)
        words = set(re.split(r", ", found[1])) if found else set[str]()
        return {word for word in words if not re.search(r"progressive|first|unknown/unknown", word)}

    @property
    def turn(self) -> str:
        """Rotation in degrees; empty if there is none."""
        found = re.search(r"rotation of (\S+) degrees", self.picture)
        return found[1] if found else ""


def look(path: Path, folder: Path, *, decoder: str = "", before: str = "", scaling: str = "") -> Seen:
    """Read a file; ``before`` and ``scaling`` are filters and settings that its pictures need; ``folder`` is scratch.

    It fails if the other program does.
    """
    size = f"scale={SMALL[0]}:{SMALL[1]}:flags=area+accurate_rnd+full_chroma_int{scaling}"
    shown = ["-map", "0:V:0", "-fps_mode", "passthrough", "-enc_time_base", "demux"]
    packets = ["-map", "0", "-ignore_unknown", "-c", "copy"]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", "-nostats", "-copyts", "-noautorotate",
        *(["-c:v", decoder] if decoder else []), "-i", str(path),
        *shown, "-vf", "showinfo=checksum=0", "-f", "framehash", "-hash", "crc32", str(folder / "frames"),
        *shown, "-vf", f"{before}{size}", "-pix_fmt", "rgba", "-f", "rawvideo", str(folder / "pictures"),
        *packets, "-f", "framehash", "-hash", "md5", str(folder / "packets"),
        "-map", "0:V:0", "-c", "copy", "-f", "ffmetadata", str(folder / "tags"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=False)
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 0, said
    frames = _packets(folder / "frames")[0]
    pictures = np.fromfile(folder / "pictures", np.uint8).reshape(-1, SMALL[1], SMALL[0], 4)
    blocks = _blocks(said)
    main = next(index for index, (head, _) in blocks.items() if head[3] == "Video" and "attached pic" not in head[0])
    beside = sorted(set(re.findall(r"side data - (.*?):", said)))
    packets_of = _packets(folder / "packets")
    tags, chapters = _tags(folder / "tags")
    return Seen(
        times=frames[0],
        end=frames[1],
        pictures=pictures.astype(np.float64),
        picture="\n".join((*blocks[main][1], *beside)),
        tracks=tuple(
            Track(kind=head[3], codec=head[4], language=head[2] or "", times=times, end=end, hashes=hashes)
            for index, (head, _) in blocks.items()
            if index != main
            for times, end, hashes in [packets_of.get(index, ((), Fraction(0), ()))]
        ),
        tags=tags,
        chapters=chapters,
    )


def _blocks(said: str) -> dict[int, tuple[re.Match[str], list[str]]]:
    """Yield the description of each stream of the input."""
    blocks: dict[int, tuple[re.Match[str], list[str]]] = {}
    current: list[str] = []
    for line in said.split("Stream mapping:")[0].split("\nOutput #")[0].splitlines():
        if (head := _STREAM.match(line)) is not None:
            current = [line]
            blocks[int(head[1])] = head, current
        else:
            current.append(line)
    return blocks


def _packets(path: Path) -> dict[int, tuple[tuple[Fraction, ...], Fraction, tuple[str, ...]]]:
    """Times, end and hashes by stream."""
    units: dict[int, Fraction] = {}
    rows: dict[int, list[tuple[Fraction, Fraction, str]]] = {}
    held: dict[int, str] = {}
    for line in path.read_text().splitlines():
        words = [word.strip() for word in line.split(",")]
        if line.startswith("#tb"):
            units[int(line.split()[1].rstrip(":"))] = Fraction(line.split()[2])
        elif line.startswith("#extradata"):
            held[int(words[0].split()[1])] = words[2]
        elif not line.startswith("#"):
            unit = units[int(words[0])]
            rows.setdefault(int(words[0]), []).append((int(words[2]) * unit, int(words[3]) * unit, words[5]))
    found = {
        index: (
            tuple(start for start, _, _ in each),
            max(start + lasts for start, lasts, _ in each),
            tuple(hash_ for _, _, hash_ in each),
        )
        for index, each in rows.items()
    }
    return {index: ((), Fraction(0), (hash_,)) for index, hash_ in held.items()} | found


def _tags(path: Path) -> tuple[dict[str, str], tuple[tuple[Fraction, Fraction, str], ...]]:
    sections: list[tuple[str, dict[str, str]]] = [("", {})]
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("["):
            sections.append((line.strip("[]"), {}))
        elif "=" in line:
            sections[-1][1].__setitem__(*line.split("=", 1))
    tags = {key.lower(): value for key, value in sections[0][1].items() if key.lower() not in _OF_CONTAINERS}
    chapters = [section for name, section in sections if name == "CHAPTER"]
    return tags, tuple(
        (int(each["START"]) * Fraction(each["TIMEBASE"]), int(each["END"]) * Fraction(each["TIMEBASE"]),
         each.get("title", ""))
        for each in chapters
    )  # fmt: skip
