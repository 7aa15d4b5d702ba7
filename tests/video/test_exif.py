"""EXIF tags adapted to an enlarged, upright PNG."""

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ultraflash_cli.video.exif import fitted_exif
from ultraflash_cli.video.photos import with_photo_data


def tags(order: str = "<") -> bytes:
    """Tags as a camera writes them: orientation, width, strip offsets, Exif table,
    maker's note and, in a table of its own, a thumbnail at the end."""
    note, thumbnail = b"a maker's note", b"\xff\xd8thumbnail\xff\xd9"
    exif_at, thumbs_at = 8 + 2 + 4 * 12 + 4, 8 + 2 + 4 * 12 + 4 + 2 + 2 * 12 + 4
    note_at = thumbs_at + 2 + 2 * 12 + 4
    short = [(0x0100, 3, 1, 64), (0x0111, 4, 1, 9), (0x0112, 3, 1, 6), (0x8769, 4, 1, exif_at)]
    exif = [(0x927C, 7, len(note), note_at), (0xA002, 3, 1, 64)]
    thumbs = [(0x0201, 4, 1, note_at + len(note)), (0x0202, 4, 1, len(thumbnail))]

    def table(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
        written = [
            struct.pack(f"{order}HHI", *entry[:3]) + struct.pack(f"{order}{'HH' if entry[1] == 3 else 'I'}", *value)
            for entry in entries
            for value in [(entry[3], 0) if entry[1] == 3 else (entry[3],)]
        ]
        return struct.pack(f"{order}H", len(entries)) + b"".join(written) + struct.pack(f"{order}I", following)

    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + table(short, thumbs_at) + table(exif) + table(thumbs) + note + thumbnail


@pytest.mark.parametrize("order", ["<", ">"], ids=["Intel", "Motorola"])
def test_size_and_orientation_are_set_and_thumbnail_and_storage_are_gone(order: str) -> None:
    given = tags(order)
    made = fitted_exif(given, width_px=70_000, height_px=96)
    exif = Image.Exif()
    exif.load(made)
    assert dict(exif) == {0x0100: 70_000, 0x0112: 1, 0x8769: exif[0x8769]}
    assert exif.get_ifd(0x8769)[0xA002] == 70_000 and b"a maker's note" in made
    assert made.index(b"a maker's note") == given.index(b"a maker's note"), "offsets within it stay valid"
    assert b"thumbnail" in given and b"thumbnail" not in made and len(made) < len(given)


@given(st.lists(st.tuples(st.integers(0, len(tags()) - 1), st.integers(0, 255)), max_size=6), st.integers(0, 200))
def test_damaged_tags_are_adapted_or_dropped(changes: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(tags())
    for place, value in changes:
        damaged[place] = value
    for each in (bytes(damaged), bytes(damaged[:length])):
        assert len(fitted_exif(each, width_px=2, height_px=2)) <= len(each)


def png(mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, format="PNG")
    content = b"cICP" + bytes([1, 13, 0, 1])
    chunk = struct.pack(">I", 4) + content + struct.pack(">I", zlib.crc32(content))
    return file.getvalue()[:33] + chunk + file.getvalue()[33:]


@pytest.mark.parametrize(
    ("mode", "space", "kept"),
    [
        ("RGB", b"RGB ", True),
        ("RGBA", b"RGB ", True),
        ("L", b"GRAY", True),
        ("RGB", b"CMYK", False),
        ("RGB", b"", False),
    ],
)
def test_a_profile_is_kept_if_it_describes_the_pixels_and_then_alone(mode: str, space: bytes, kept: bool) -> None:
    profile = bytes(16) + space + bytes(108) if space else b""
    made = with_photo_data(png(mode), {"ICC_PROFILE": profile})
    with Image.open(io.BytesIO(made)) as picture:
        picture.load()
        assert picture.info.get("icc_profile") == (profile if kept else None)
    assert (b"cICP" in made) != kept
