"""Adapt XMP to a picture that was enlarged, turned upright and written again. Layout:
XMP Specification, part 1, section 7 (ISO 16684-1)."""

from collections.abc import Iterator
from xml.dom import minidom
from xml.parsers.expat import ExpatError

__all__ = ["fitted_xmp"]

_TIFF = "http://ns.adobe.com/tiff/1.0/"
_EXIF = "http://ns.adobe.com/exif/1.0/"
_STORAGE = frozenset(
    {
        *("BitsPerSample", "Compression", "PhotometricInterpretation", "PlanarConfiguration", "SamplesPerPixel"),
        *("YCbCrPositioning", "YCbCrSubSampling"),
    }
)
"""Properties that say how a picture is stored, in the namespace of TIFF."""
_OTHER_PICTURES = (
    "http://ns.adobe.com/hdr-gain-map/",
    "http://ns.adobe.com/xmp/note/",
    "http://ns.apple.com/HDRGainMap/",
    "http://ns.apple.com/pixeldatainfo/",
    "http://ns.google.com/photos/",
    "urn:ultraflash:",
)
"""Namespaces about what else the file holds (gain map, depth, a short clip, more XMP),
which the output does not, and about how the input was made."""
_PANORAMA = "http://ns.google.com/photos/1.0/panorama/"
_BASIC = "http://ns.adobe.com/xap/1.0/"
_MOST_BYTES = 1 << 22
_WRAPPED = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{}<?xpacket end="w"?>'


def fitted_xmp(xmp: bytes, *, width_px: int, height_px: int) -> bytes:
    """Return XMP for an upright picture of this size: orientation and pixel dimensions
    are set, thumbnails and properties about other content of the input removed. Empty
    if it is damaged."""
    if len(xmp) > _MOST_BYTES or b"<!DOCTYPE" in xmp or b"<!ENTITY" in xmp:
        return b""
    values = {
        (_TIFF, "Orientation"): 1,
        (_TIFF, "ImageWidth"): width_px,
        (_TIFF, "ImageLength"): height_px,
        (_EXIF, "PixelXDimension"): width_px,
        (_EXIF, "PixelYDimension"): height_px,
    }
    try:
        document = minidom.parseString(xmp.strip(b"\0 \t\r\n"))
        for node in list(_properties(document)):
            name = (node.namespaceURI or "", node.localName or "")
            if name in values:
                _set(node, str(values[name]))
            elif _is_outdated(*name):
                _remove(node)
        root = document.documentElement
        return _WRAPPED.format(root.toxml()).encode() if root is not None else b""
    except (ExpatError, ValueError, RecursionError):
        return b""


def _properties(document: minidom.Document) -> Iterator[minidom.Attr | minidom.Element]:
    """Yield attributes and elements of all descriptions."""
    for description in document.getElementsByTagNameNS("http://www.w3.org/1999/02/22-rdf-syntax-ns#", "Description"):
        yield from description.attributes.values()
        yield from (node for node in description.childNodes if isinstance(node, minidom.Element))


def _is_outdated(namespace: str, name: str) -> bool:
    if namespace == _PANORAMA:
        return name.endswith("Pixels")
    if namespace == _TIFF:
        return name in _STORAGE
    return (namespace, name) == (_BASIC, "Thumbnails") or namespace.startswith(_OTHER_PICTURES)


def _set(node: minidom.Attr | minidom.Element, value: str) -> None:
    if isinstance(node, minidom.Attr):
        node.value = value
        return
    for child in list(node.childNodes):
        node.removeChild(child)
    document = node.ownerDocument
    assert document is not None, "an element of a document"
    node.appendChild(document.createTextNode(value))


def _remove(node: minidom.Attr | minidom.Element) -> None:
    if isinstance(node, minidom.Attr):
        owner = node.ownerElement
        assert owner is not None, "an attribute of an element"
        owner.removeAttributeNode(node)
    elif node.parentNode is not None:
        node.parentNode.removeChild(node)
