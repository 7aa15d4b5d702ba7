"""Detect the architecture of a set of tensors by their names and shapes."""

from collections.abc import Mapping

__all__ = ["READS_LOW_FRAMES", "Shape", "detect"]

Shape = tuple[int, ...]
"""Sizes of a tensor's axes."""

READS_LOW_FRAMES = {"tiny_decoder": "tiny_decoder_lr"}
"""Decoder architectures and their variants with low-resolution frames as a second
input; a user's file of the variant may replace the first."""


def detect(shapes: Mapping[str, Shape]) -> str | None:
    """Return the architecture of unwrapped tensors without prefixes, or None. Only
    distinguishing features are checked; ``normalise`` checks that every tensor fits.
    """
    if any(".lora_A." in name for name in shapes):
        return "lora"
    patch = shapes.get("patch_embedding.weight")
    if patch is not None and "head.modulation" in shapes:
        return {16: "generator", 32: "sr_dit"}.get(patch[1]) if len(patch) == 5 else None
    if "pre_shuffle.0.weight" in shapes and "final.weight" in shapes:
        return _upsampler(shapes["pre_shuffle.0.weight"], shapes["final.weight"])
    if "net.0.weight" in shapes and "net.2.conv.0.weight" in shapes:
        return _flat_list(shapes, "net.", ".block.")
    if "decoder.0.weight" in shapes and "decoder.2.conv.0.weight" in shapes:
        return _flat_list(shapes, "decoder.", ".up.")
    if "token_embedding.weight" in shapes and "blocks.0.pos_embedding.embedding.weight" in shapes:
        return "text_encoder"
    if "encoder.downsamples.0.residual.2.weight" in shapes or "decoder.upsamples.0.residual.2.weight" in shapes:
        return "wan_vae"
    if "decoder.1.weight" in shapes and "encoder.0.weight" in shapes:
        if "decoder.6.up.0.weight" in shapes:
            return "ultra_decoder"
        return "tiny_decoder_lr" if "condition.features.weight" in shapes else "tiny_decoder"
    return None


def _flat_list(shapes: Mapping[str, Shape], prefix: str, shuffle: str) -> str | None:
    """Return the v3 upsampler from the released ultra decoder, which shares its layout.

    The decoder's last convolution has 3 output channels, and all three of its stages
    double the size.
    """
    doubled = [stage for stage in (5, 11, 17) if f"{prefix}{stage}{shuffle}0.weight" in shapes]
    last = shapes.get(f"{prefix}20.weight")
    if last is None or not doubled:
        return None
    if last[0] == 3:
        return "ultra_decoder_released" if len(doubled) == 3 else None
    return "upsampler_v3_x2" if len(doubled) == 1 and prefix == "net." else None


def _upsampler(pre_shuffle: Shape, final: Shape) -> str | None:
    """Return the scale: the first convolution has scale² times as many output channels
    as the last one has inputs."""
    if len(final) != 4 or not pre_shuffle or final[1] < 1:
        return None
    return {4: "upsampler_x2", 9: "upsampler_x3"}.get(pre_shuffle[0] // final[1])
