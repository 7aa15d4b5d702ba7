"""How a low-resolution partner is made of a high-resolution clip: blur, scaling, chroma, codec."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ultraflash_cli.video.round_trip import shrink_and_compress

__all__ = ["DegradationConfig", "degrade"]


@dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """Odds and strengths of each operator."""

    clean_share: float = 0.4
    """How often the clip is only scaled down, bicubic, without a codec."""
    blur_share: float = 0.8
    """How often a compressed clip is blurred first."""
    blur_sigma: tuple[float, float] = (0.3, 1.1)
    """Range of the blur's sigma, in high-resolution pixels at x2."""
    kernels: tuple[tuple[str, float], ...] = (("bicubic", 0.7), ("area", 0.1), ("bilinear", 0.1), ("lanczos", 0.1))
    """Scaling kernels of compressed clips and their odds."""
    crf: tuple[int, int] = (20, 32)
    """Range of the H.264 quality."""


def degrade(
    frames_thwc: npt.NDArray[np.uint8], scale: int, config: DegradationConfig, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Return the partner of a clip [T, H, W, 3] at H / scale, W / scale; a pure function of its arguments."""
    height, width = frames_thwc.shape[1] // scale, frames_thwc.shape[2] // scale
    if rng.random() < config.clean_share:
        return shrink_and_compress(frames_thwc, height=height, width=width, kernel="bicubic")
    if rng.random() < config.blur_share:
        frames_thwc = _gaussian(frames_thwc, float(rng.uniform(*config.blur_sigma)) * scale / 2)
    names = [name for name, _ in config.kernels]
    kernel = names[rng.choice(len(names), p=np.array([odds for _, odds in config.kernels]))]
    options = {
        "crf": str(int(rng.integers(config.crf[0], config.crf[1] + 1))),
        "preset": "medium" if rng.random() < 0.6 else "veryfast",
    }
    return shrink_and_compress(frames_thwc, height=height, width=width, kernel=kernel, codec="libx264", options=options)


def _gaussian(frames_thwc: npt.NDArray[np.uint8], sigma: float) -> npt.NDArray[np.uint8]:
    reach = max(1, int(np.ceil(3 * sigma)))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32) / sigma) ** 2)
    taps = taps / taps.sum()
    x = torch.from_numpy(frames_thwc).permute(0, 3, 1, 2).float().flatten(0, 1).unsqueeze(1)
    x = F.pad(x, (reach,) * 4, mode="reflect")
    x = F.conv2d(F.conv2d(x, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
    x = x.unflatten(0, (-1, 3)).squeeze(2).permute(0, 2, 3, 1)
    return x.clamp(0, 255).round().to(torch.uint8).numpy()
