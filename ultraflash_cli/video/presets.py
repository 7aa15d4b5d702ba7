"""Choice of the encoder's preset, for a CPU that also runs the model, and for cores
that have only to keep up with a GPU."""

from ultraflash_cli.video.codecs import Codec

__all__ = ["choose_preset"]

_MARGIN = 1.1
"""How much faster than the model the encoder is expected to be beside a GPU."""


def choose_preset(codec: Codec, pixels: int, cores: int, *, fed_fps: float | None = None) -> str:
    """Look up the encoder's preset for a picture of this many pixels; empty if it has
    none. ``fed_fps`` is the number of frames per second that a GPU is expected to
    deliver: the choice is then the slowest preset that keeps up, or the fastest one of
    the table. None means that the model runs on the same cores.
    """
    if fed_fps is not None and codec.speeds:
        needed = _MARGIN * fed_fps * pixels / 1e6 / min(cores, codec.most_cores)
        for preset, speed in codec.speeds:
            if speed >= needed:
                return preset
        return codec.speeds[-1][0]

    for most_pixels, rows in codec.presets:
        if pixels <= most_pixels:
            return next(preset for least_cores, preset in rows if cores >= least_cores)
    return ""
