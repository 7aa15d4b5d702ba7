"""A process that opens encoders of the GPU, named by its arguments, and prints one JSON
object: by name, why it does not open, and its number of B-frames."""

import json
import sys
from fractions import Fraction

import av
import av.logging
from av.error import FFmpegError

from ultraflash_cli.video.nvenc import B_FRAMES, NVENC

__all__ = ["main", "try_encoder"]

_SIDE_PX = 256
_RATE = 25


def try_encoder(name: str) -> dict[str, object]:
    """Open an encoder with as many B-frames as it accepts."""
    refusal = _refusal(name, B_FRAMES)
    if refusal is None:
        return {"refusal": None, "b_frames": B_FRAMES}
    return {"refusal": _refusal(name, 0), "b_frames": 0}


def _refusal(name: str, b_frames: int) -> str | None:
    known = NVENC[name]
    context = av.CodecContext.create(known.encoder, "w")
    assert isinstance(context, av.VideoCodecContext), "a video encoder"
    context.options = known.options | {"bf": str(b_frames)}
    context.width = context.height = _SIDE_PX
    context.pix_fmt = known.pix_fmts[0]
    context.time_base, context.framerate = Fraction(1, _RATE), Fraction(_RATE)

    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    with av.logging.Capture() as said:
        try:
            context.open()
        except (OSError, FFmpegError, ValueError) as error:
            words = dict.fromkeys(text.strip().rstrip(".") for _, _, text in said if text.strip())
            return "; ".join(words) or getattr(error, "strerror", None) or str(error)
    return None


def main() -> None:
    """Print what is found."""
    print(json.dumps({name: try_encoder(name) for name in sys.argv[1:]}))
