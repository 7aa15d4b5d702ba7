"""XMP and IPTC of photos."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.jobs.doubler import builder
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main
from ultraflash_cli.video.photo_texts import photo_texts
from ultraflash_cli.video.xmp import fitted_xmp

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:note="http://ns.adobe.com/xmp/note/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"
 tiff:Orientation="6" tiff:Compression="6" note:HasExtendedXMP="ABC" hdrgm:Version="1.0" xmp:Rating="4"
 GPano:ProjectionType="equirectangular" GPano:FullPanoWidthPixels="64">
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">Lake &amp; sea \u00fc</rdf:li></rdf:Alt></dc:title>
<tiff:ImageWidth>64</tiff:ImageWidth><xmp:Thumbnails><rdf:Alt/></xmp:Thumbnails>
</rdf:Description></rdf:RDF></x:xmpmeta>
                                        <?xpacket end="w"?>""".encode()
IPTC = b"\x1c\x02\x05\x00\x05Title\x1c\x02\x50\x00\x03Ann"


@pytest.fixture(autouse=True)
def doubler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


def jpeg(path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (60, 90, 120)).save(file, "jpeg")
    iptc = b"8BIM\x04\x04\x00\x00" + struct.pack(">I", len(IPTC)) + IPTC + bytes(len(IPTC) % 2)
    other = b"8BIM\x03\xed\x03abc" + struct.pack(">I", 3) + b"xyz\0"
    added = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
    added += segment(0xED, b"Photoshop 3.0\0" + other + iptc)
    content = file.getvalue()
    path.write_bytes(content[:2] + added + content[2:])


def png(path: Path, *, is_compressed: bool = False) -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=is_compressed)
    Image.new("RGB", (64, 48)).save(path, pnginfo=info)


def compressed_png(path: Path) -> None:
    png(path, is_compressed=True)


def other(path: Path) -> None:
    Image.new("RGB", (64, 48)).save(path, xmp=XMP)


def tiff(path: Path) -> None:
    Image.new("RGB", (64, 48)).save(path, tiffinfo={0x02BC: XMP, 0x83BB: IPTC})


def xmp_of(path: Path) -> str:
    with Image.open(path) as picture:
        picture.load()
        found = picture.info.get("xmp", b"") or picture.info.get("XML:com.adobe.xmp", "")
    return found if isinstance(found, str) else found.decode()


@pytest.mark.parametrize("out", ["out.png", "out.jpg"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.jpg", jpeg),
        ("a.png", png),
        ("a.png", compressed_png),
        ("a.webp", other),
        ("a.avif", other),
        ("a.tif", tiff),
    ],
    ids=["jpg", "png", "compressed", "webp", "avif", "tif"],
)
def test_xmp_is_kept_and_fits_the_new_picture(
    name: str, make: Callable[[Path], None], out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / name)
    has_iptc = name in ("a.jpg", "a.tif")
    assert main(["upscale", str(tmp_path / name), "-o", str(tmp_path / out), "--res", "2x", "-q"]) == 0
    said = capsys.readouterr().err
    assert ("left out: IPTC tags; .jpg can hold them" in said) == (has_iptc and out == "out.png")
    kept = xmp_of(tmp_path / out)
    for wanted in (
        "Lake &amp; sea \u00fc",
        'tiff:Orientation="1"',
        "<tiff:ImageWidth>128<",
        "equirectangular",
        "Rating",
    ):
        assert wanted in kept
    for dropped in ("HasExtendedXMP", "hdrgm:", "Compression", "FullPano", "Thumbnails"):
        assert dropped not in kept.replace('xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"', "")
    assert photo_texts(tmp_path / out).get("IPTC") == (IPTC if has_iptc and out == "out.jpg" else None)


def test_what_a_clip_cannot_hold_of_a_photo_is_named_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jpeg(tmp_path / "a.jpg")
    command = ["upscale", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out.mp4"), "--res", "2x", "-q", "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "warning: out.mp4: left out: XMP tags; .png can hold them\n" in said
    assert "warning: out.mp4: left out: IPTC tags; .jpg can hold them\n" in said


def test_damaged_xmp_is_left_out(tmp_path: Path) -> None:
    assert fitted_xmp(XMP, width_px=9, height_px=7)
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + XMP
    for damaged in (b"", b"<x", XMP[: len(XMP) // 2], bomb, b"<a>" * 20_000 + b"</a>" * 20_000, bytes(1 << 23)):
        assert fitted_xmp(damaged, width_px=9, height_px=7) == b""


@pytest.mark.parametrize(
    ("name", "make"), [("a.jpg", jpeg), ("a.png", compressed_png), ("a.tif", tiff), ("a.webp", other)]
)
def test_a_photo_that_is_cut_off_gives_less_and_no_error(
    name: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / name
    make(path)
    content = path.read_bytes()
    whole = photo_texts(path)
    assert whole["XMP"].strip() == XMP
    for size_bytes in range(0, len(content), 23):
        path.write_bytes(content[:size_bytes])
        assert photo_texts(path).keys() <= whole.keys()
