"""Photos with tags and a colour profile, and what another library reads of them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

__all__ = ["photo", "tags_of"]


def tags_of(path: Path) -> dict[str, object]:
    with Image.open(path) as picture:
        picture.load()
        exif, profile = picture.getexif(), picture.info.get("icc_profile", b"")
        more, place = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
        return {
            "size": picture.size,
            "maker": exif.get(0x010F),
            "copyright": exif.get(0x8298),
            "orientation": exif.get(0x0112, 1),
            "date": more.get(0x9003),
            "dimensions": (more.get(0xA002), more.get(0xA003)),
            "latitude": place.get(2),
            "profile": ImageCms.getProfileName(ImageCms.ImageCmsProfile(io.BytesIO(profile))) if profile else None,
        }


def photo(path: Path, *, maker: str = "Maker", orientation: int = 6, profile: bool = True) -> Path:
    """A photo of 64x48 stored pixels, red in the stored top left corner."""
    exif = Image.Exif()
    exif[0x010F], exif[0x8298], exif[0x0112] = maker, "(c) Ann", orientation
    exif.get_ifd(0x8769).update({0x9003: "2024:01:02 03:04:05", 0xA002: 64, 0xA003: 48})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.0)})
    pixels = np.full((48, 64, 3), 60, np.uint8)
    pixels[:24, :32] = [220, 30, 30]
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if profile else None
    Image.fromarray(pixels).save(path, exif=exif, icc_profile=icc)
    return path
