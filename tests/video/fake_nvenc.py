"""The GPU's encoders, played by encoders in software."""

from dataclasses import replace

import pytest

from ultraflash_cli.video import encoders, nvenc
from ultraflash_cli.video.nvenc import NVENC, Opening, nvenc_options

__all__ = ["play_nvenc"]

_PLAYED_BY = {
    "h264_nvenc": ("libx264", {"preset": "veryfast"}),
    "hevc_nvenc": ("libx265", {"preset": "veryfast", "x265-params": "log-level=none"}),
    "av1_nvenc": ("libsvtav1", {"preset": "12"}),
}


def play_nvenc(
    monkeypatch: pytest.MonkeyPatch, *, refusal: str | None = None, b_frames: int = 3
) -> list[dict[str, str]]:
    """Let encoders in software stand in for the GPU's, on a machine where these open
    unless there is a ``refusal``; returns the options of NVENC as they are asked for."""
    opening = Opening(refusal=refusal, b_frames=b_frames)
    monkeypatch.setattr(nvenc, "opening_of", lambda name: opening)
    monkeypatch.setattr(nvenc, "openings", lambda: dict.fromkeys(NVENC, opening))
    asked: list[dict[str, str]] = []

    def options(name: str, *, quality: int | None, preset: str) -> dict[str, str]:
        asked.append(nvenc_options(name, quality=quality, preset=preset))
        shared = {"crf": asked[-1]["cq"], "g": asked[-1]["g"]}
        shared |= {"bf": asked[-1]["bf"]} if name != "av1_nvenc" else {}
        return _PLAYED_BY[name][1] | shared

    monkeypatch.setattr(encoders, "nvenc_options", options)
    for name, (encoder, _) in _PLAYED_BY.items():
        monkeypatch.setitem(NVENC, name, replace(NVENC[name], encoder=encoder, fed_fmts=()))
    return asked
