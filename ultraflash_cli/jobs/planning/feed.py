"""How fast a GPU is expected to deliver frames to the encoder."""

from ultraflash_cli.jobs.planning.models import ModelFacts

__all__ = ["expected_fps"]

_PUBLISHED = "ultraflash"
_PIXEL_S = {_PUBLISHED: 6.5e-9}
"""Seconds per output pixel: upscaling on one H200 as `bench --roofline` expects it, about
96 frames per second at 1K and 43 at 2K."""
_OTHER_PIXEL_S = 1e-9
"""The same for the small models, which are never waited for."""
_GENERATED_FRAME_S = {_PUBLISHED: 0.022}
"""Seconds that the generator adds to a frame of any size."""


def expected_fps(
    model: str, device: str, *, width_px: int, height_px: int, generates: bool = False, facts: ModelFacts
) -> float | None:
    """Return the frames per second that an NVIDIA GPU is expected to deliver; None if
    the model runs elsewhere. It does not depend on the machine's GPU, as the encoder's
    settings, and so the packets, follow from it.
    """
    kind = device.partition(":")[0]
    if kind != "cuda" and not (kind == "auto" and facts.has_cuda()):
        return None
    frame_s = _PIXEL_S.get(model, _OTHER_PIXEL_S) * width_px * height_px
    return 1 / (frame_s + (_GENERATED_FRAME_S.get(model, 0.0) if generates else 0.0))
