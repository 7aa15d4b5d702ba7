"""Warnings about a plan: its target, dropped streams, and the content of the clip."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.engine.plan import UpscalePlan
from ultraflash_cli.errors import Remark
from ultraflash_cli.jobs.planning.inputs import is_photo, may_be_photo
from ultraflash_cli.jobs.planning.models import ModelFacts
from ultraflash_cli.video.sequence import WRITTEN_PICTURES, ImageSequence

if TYPE_CHECKING:
    from ultraflash_cli.video.containers import StreamPlan
    from ultraflash_cli.video.encode import EncodeSpec
    from ultraflash_cli.video.probe import ClipInfo

__all__ = ["content_warnings", "plan_warnings"]

_CARRIED = {
    "EXIF": "EXIF tags",
    "ICC_PROFILE": "the colour profile",
    "XMP": "XMP tags",
    "IPTC": "IPTC tags",
    "COMMENT": "the comment",
    "TEXTS": "text tags",
}
_LOOKED_AT = 3
"""Number of frames examined to judge the content of a clip."""


def content_warnings(info: "ClipInfo", model: str, facts: ModelFacts) -> Iterator[str]:
    """Warn if the clip's first frames are flat-coloured and the model would add texture
    to them."""
    if model == "lite":
        return
    from ultraflash_cli.video.flatness import first_lumas, is_flat_coloured

    if facts.invents_texture(model) and is_flat_coloured(first_lumas(info, _LOOKED_AT)):
        yield (
            f"{info.path.name}: flat colours, as in drawings and screens; the model {model} invents texture there, "
            "--model lite does not"
        )


def plan_warnings(
    info: "ClipInfo",
    spec: "EncodeSpec",
    plan: UpscalePlan,
    streams: "StreamPlan",
    *,
    stretch: str | None,
    asked_res: bool,
    name: str,
) -> tuple[str, ...]:
    """Return warnings about several video streams, stretching and dropped content;
    ``stretch`` is the one about the target's shape. With ``asked_res`` the target was
    requested, so that another one can be."""
    from ultraflash_cli.video.encode import losses

    warnings = [f"{name}: {stretch}"] if stretch else []
    if info.other_videos:
        main = next(stream for stream in info.streams if stream.index == info.video_index)
        others = ", ".join(stream.describe() for stream in info.other_videos)
        warnings.append(f"{name}: several video streams: upscaling {main.describe()}, not {others}")
    warnings += [f"{name}: {note}" for note in _page_notes(info)]
    if plan.growth > 3 and asked_res:
        warnings.append(f"{name}: beyond x3 the source is first enlarged by a filter; no sharper than x3")
    if streams.reason:
        warnings.append(f"{name}: {streams.reason}")
    warnings += [f"{name}: left out: {dropped}" for dropped in streams.dropped]
    warnings += [f"{name}: {lost}" for lost in _photo_losses(info, spec, streams.suffix)]
    warnings += [f"{name}: {note}" for note in streams.notes]
    warnings += [Remark(f"{name}: {remark}") for remark in streams.remarks]
    warnings += [f"{name}: {loss}" for loss in losses(info, spec)]
    return tuple(warnings)


def _page_notes(info: "ClipInfo") -> Iterator[str]:
    """Yield a note about the further pages of a picture."""
    from ultraflash_cli.video.tiff import tiff_pages

    source = info.source.picture(0) if isinstance(info.source, ImageSequence) else info.source
    if not isinstance(source, Path):
        return
    with suppress(OSError):  # it was readable a moment ago
        pages = tiff_pages(source)
        if pages > 1:
            yield f"{source.name} has {pages} pages, and only the first is upscaled; save the others as files first"


def _listed(words: list[str]) -> str:
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def _photo_losses(info: "ClipInfo", spec: "EncodeSpec", suffix: str) -> Iterator[str]:
    """Yield what the output cannot hold of that which pictures carry beside their
    pixels, and of the meaning of their colours."""
    from ultraflash_cli.video.description import unusual_colors
    from ultraflash_cli.video.photos import misfits, photo_data

    is_jpeg = spec.capabilities.is_jfif
    becomes_pictures = suffix in WRITTEN_PICTURES and isinstance(info.source, ImageSequence)
    is_picture = may_be_photo(info.source) or is_photo(info)
    carried = photo_data(info.source) if is_picture or becomes_pictures else {}
    lost = misfits(carried, WRITTEN_PICTURES.get(suffix, ""))
    for other, codec in ((".png", "png"), (".jpg", "jpeg")):
        kept = [kind for kind in lost if kind not in misfits(carried, codec)]
        if kept:
            yield f"left out: {_listed([_CARRIED[kind] for kind in kept])}; {other} can hold them"
            lost = [kind for kind in lost if kind not in kept]
    if lost:
        yield f"left out: {_listed([_CARRIED[kind] for kind in lost])}; too large"
    profiled = carried.get("ICC_PROFILE", b"")[16:20].decode(errors="replace").strip()
    if suffix in WRITTEN_PICTURES and profiled not in ("", "RGB"):
        yield f"left out: the colour profile, which is for {profiled} pictures; the output is RGB"
    unusual = unusual_colors(spec.color)
    if is_jpeg and unusual and "ICC_PROFILE" not in carried:
        yield f"the colours are {unusual}, which JPEG cannot state; they are shown as if they were sRGB; .png can"
