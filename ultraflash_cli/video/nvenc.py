"""NVENC, the video encoder of NVIDIA's GPUs: its codecs, its options, and whether it
opens on this machine. Never tried on such a GPU: its options are compared with FFmpeg's
own tables."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av

from ultraflash_cli.errors import DeviceError
from ultraflash_cli.video.codecs import Codec

__all__ = ["B_FRAMES", "NVENC", "Opening", "check_nvenc", "nvenc_options", "opening_of", "openings"]

_PROBE = """\
import sys
sys.path.append(sys.argv.pop(1))
from ultraflash_cli.video.nvenc_probe import main
main()
"""
_PROBE_S = 60
_GOP_FRAMES = 250
B_FRAMES = 3
"""Number of successive B-frames, on GPUs that have them."""
_ONE_PRESET = ((1 << 62, ((0, "p5"),)),)
_OPTIONS = {"tune": "hq", "rc": "vbr", "b": "0", "g": str(_GOP_FRAMES), "spatial-aq": "1"}

NVENC = {
    "h264_nvenc": Codec(
        encoder="h264_nvenc",
        stream="h264",
        segment_format="mp4",
        crf=18,
        least_crf=1,
        max_crf=51,
        pix_fmts=("yuv420p", "yuv444p"),
        reorders=True,
        hdr=True,
        lacks_hdr_messages=True,
        presets=_ONE_PRESET,
        options=_OPTIONS,
    ),
    "hevc_nvenc": Codec(
        encoder="hevc_nvenc",
        stream="hevc",
        segment_format="mp4",
        crf=20,
        least_crf=1,
        max_crf=51,
        pix_fmts=("yuv420p", "yuv444p", "yuv420p10le", "yuv444p10le"),
        fed_fmts=(("yuv420p10le", "p010le"), ("yuv444p10le", "yuv444p16le")),
        reorders=True,
        hdr=True,
        lacks_hdr_messages=True,
        presets=_ONE_PRESET,
        options=_OPTIONS,
    ),
    "av1_nvenc": Codec(
        encoder="av1_nvenc",
        stream="av1",
        segment_format="mp4",
        crf=26,
        least_crf=1,
        max_crf=63,
        pix_fmts=("yuv420p", "yuv420p10le"),
        fed_fmts=(("yuv420p10le", "p010le"),),
        reorders=True,
        presets=_ONE_PRESET,
        options=_OPTIONS,
    ),
}
"""Codecs encoded by the GPU, keyed by ``--codec`` name, which is FFmpeg's. H.264 is
limited to 8 bits, as most GPUs are. ``crf`` is the constant quality of rate control; 0
would mean automatic."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Whether an encoder opens on this machine."""

    refusal: str | None
    """Why it does not; None if it does."""
    b_frames: int = 0
    """Number of successive B-frames that it can encode."""


def check_nvenc(name: str) -> None:
    """Raise ``DeviceError`` if an encoder does not open on this machine."""
    refusal = opening_of(name).refusal
    if refusal is not None:
        raise DeviceError(
            f"--codec {name}: the encoder does not open here ({refusal}), expected an NVIDIA GPU with NVENC "
            f"and its driver; use --codec {NVENC[name].stream}"
        )


def nvenc_options(name: str, *, quality: int | None, preset: str) -> dict[str, str]:
    """Return the options of an encoder by FFmpeg's names."""
    options = dict(NVENC[name].options)
    if quality is not None:
        options["cq"] = str(quality)
    return options | {"preset": preset, "bf": str(opening_of(name).b_frames)}


def opening_of(name: str) -> Opening:
    """Return whether an encoder opens on this machine; tried once per process."""
    return _opened((name,))[name]


def openings() -> dict[str, Opening]:
    """Return for each encoder whether it opens on this machine."""
    return _opened(tuple(NVENC))


@cache
def _opened(names: tuple[str, ...]) -> dict[str, Opening]:
    missing = [name for name in names if name not in av.codecs_available]
    found = {name: Opening(refusal=f"the built-in FFmpeg has no {name}") for name in missing}
    there = [name for name in names if name not in missing]
    return found | (_tried(there) if there else {})


def _tried(names: Sequence[str]) -> dict[str, Opening]:
    """Open the encoders in a process of their own, which a faulty driver may crash."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE, str(Path(__file__).parents[2]), *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(names, Opening(refusal=f"the driver did not answer within {_PROBE_S} s"))
    except OSError as error:
        return dict.fromkeys(names, Opening(refusal=f"it cannot be tried: {error.strerror}"))

    try:
        # The driver may have printed before.
        told = json.loads(done.stdout.splitlines()[-1])
        return {name: Opening(refusal=told[name]["refusal"], b_frames=told[name]["b_frames"]) for name in names}
    except (IndexError, KeyError, TypeError, ValueError):
        ended = f"by signal {-done.returncode}" if done.returncode < 0 else f"with exit code {done.returncode}"
        return dict.fromkeys(names, Opening(refusal=f"trying it ended {ended}"))
