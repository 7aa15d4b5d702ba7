"""Training material: which licences are allowed, how it is stored, and how samples are picked from it."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ultraflash_cli.errors import InputError
from ultraflash_cli.train.degradation import DegradationConfig, degrade

__all__ = [
    "ALLOWED",
    "Material",
    "PairConfig",
    "PairDataset",
    "captioned_batch",
    "clip_tensor",
    "data_hash",
    "is_allowed",
    "load_materials",
    "pair_batch",
]

ALLOWED = ("Apache-2.0", "MIT", "CC0", "CC-BY-SA", "CC-BY", "GPL", "made for this project")
"""Licences under which material may be used for shipped weights, as prefixes of their
names."""

REFUSED = ("unstated", "non-commercial", "noncommercial", "noderiv", "no redistribution", "not redistribute")
"""Words that rule out a licence, upper or lower case; the abbreviations NC and ND do so
as well."""


def is_allowed(licence: str) -> bool:
    """Return whether material under ``licence`` (as its source words it) may train shipped weights."""
    words = licence.replace("(", " ").replace(")", " ").replace(",", " ").replace("-", " ").replace("/", " ").split()
    if any(word in licence.lower() for word in REFUSED) or "NC" in words or "ND" in words:
        return False
    return licence.startswith(ALLOWED)


@dataclass(frozen=True)
class Material:
    """One clip or still: frames [T, H, W, 3] uint8, T = 1 for a still."""

    name: str
    kind: str
    licence: str
    frames_thwc: npt.NDArray[np.uint8]
    caption: str = ""


def load_materials(folder: Path) -> list[Material]:
    """Map the prepared material of ``folder`` (``materials.json`` and one .npy each) into memory.

    Raises InputError if the folder contains no material, or any whose licence is not
    allowed.
    """
    listing = folder / "materials.json"
    if not listing.exists():
        raise InputError(f"{folder}: no materials.json; prepare the data first (docs/training.md)")
    materials: list[Material] = []
    for entry in json.loads(listing.read_text()):
        if not is_allowed(entry["licence"]):
            raise InputError(f"{entry['name']}: licence {entry['licence']!r} is not allowed for shipped weights")
        frames = np.load(folder / f"{entry['name']}.npy", mmap_mode="r")
        materials.append(Material(entry["name"], entry["kind"], entry["licence"], frames, entry.get("caption", "")))
    return materials


def data_hash(materials: list[Material]) -> str:
    """Return a short hash of the names, the shapes and a sparse sample of the
    pixels."""
    digest = hashlib.sha256()
    for material in sorted(materials, key=lambda m: m.name):
        digest.update(f"{material.name} {material.frames_thwc.shape}".encode())
        digest.update(np.ascontiguousarray(material.frames_thwc[:1, ::97, ::89]).tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Sampling of training pairs."""

    frames: int = 4
    """Number of frames of a clip."""
    crop_px: int = 96
    """Side of the low-resolution crop."""
    shares: tuple[tuple[str, float], ...] = (
        ("clip", 0.4),
        ("photo", 0.35),
        ("graphic", 0.1),
        ("screen", 0.15),
        ("scene", 0.2),
    )
    """Kinds of material and the share of samples from each; missing kinds are
    skipped."""
    first_frame_share: float = 0.2
    """Probability that a clip starts like a stream: with its first frame repeated three times."""
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    """Degradation for the low-resolution clip."""


class PairDataset(Dataset[tuple[Tensor, Tensor]]):
    """Picks (low-resolution, high-resolution) clips; sample i is a pure function of
    (seed, i) and the scale."""

    def __init__(self, materials: list[Material], config: PairConfig, *, seed: int, scale_of: dict[int, float]) -> None:
        self.config = config
        self.seed = seed
        self.scales = tuple(scale_of)
        self.scale_odds = np.array(list(scale_of.values())) / sum(scale_of.values())
        short = [m.name for m in materials if 1 < len(m.frames_thwc) < config.frames]
        if short:
            raise InputError(f"{short[0]}: shorter than the {config.frames} frames that this recipe needs")
        self.by_kind = {kind: [m for m in materials if m.kind == kind] for kind, _ in config.shares}
        kinds = [(k, share) for k, share in config.shares if self.by_kind[k]]
        self.kinds = tuple(k for k, _ in kinds)
        self.kind_odds = np.array([share for _, share in kinds]) / sum(share for _, share in kinds)

    def scale(self, batch: int) -> int:
        """Return the scale that all samples of batch number ``batch`` share."""
        rng = np.random.default_rng((self.seed, 1, batch))
        return int(self.scales[rng.choice(len(self.scales), p=self.scale_odds)])

    def sample(self, index: int, scale: int) -> tuple[Tensor, Tensor]:
        """Return sample ``index`` as (low [3, T, h, w], high [3, T, H, W]), with values in [0, 1]."""
        high, rng = self.high(index, scale)
        low = degrade(high, scale, self.config.degradation, rng)
        return clip_tensor(low), clip_tensor(high)

    def high(self, index: int, scale: int) -> tuple[npt.NDArray[np.uint8], np.random.Generator]:
        """Return the high-resolution clip [T, H, W, 3] of sample ``index``, and the generator for its degradation."""
        rng = np.random.default_rng((self.seed, 2, index))
        config = self.config
        side = config.crop_px * scale
        material = self._draw_material(rng)
        high = (
            _moving_still(material, side, config.frames, rng)
            if len(material.frames_thwc) == 1
            else _cut_clip(material, side, config.frames, rng)
        )
        if rng.random() < config.first_frame_share:
            high = high[[0, 0, 0, *range(config.frames - 3)]]
        return _flip(high, rng), rng

    def caption(self, index: int) -> str:
        """Return the caption of sample ``index``; empty if its material has none."""
        return self._draw_material(np.random.default_rng((self.seed, 2, index))).caption

    def _draw_material(self, rng: np.random.Generator) -> Material:
        choice = self.by_kind[self.kinds[rng.choice(len(self.kinds), p=self.kind_odds)]]
        return choice[rng.integers(len(choice))]

    def batch(self, number: int, size: int) -> tuple[Tensor, Tensor, int]:
        """Return batch ``number``: (low [B, 3, T, h, w], high [B, 3, T, H, W], scale)."""
        scale = self.scale(number)
        pairs = [self.sample(number * size + i, scale) for i in range(size)]
        return torch.stack([low for low, _ in pairs]), torch.stack([high for _, high in pairs]), scale


def pair_batch(
    data: Path, pairs: PairConfig, seed: int, scale_odds: tuple[tuple[int, float], ...], size: int, number: int
) -> tuple[Tensor, Tensor, int]:
    """Return batch ``number`` of the material in ``data``, identical in every
    process."""
    return _dataset(data, pairs, seed, scale_odds).batch(number, size)


def captioned_batch(
    data: Path, pairs: PairConfig, seed: int, scale_odds: tuple[tuple[int, float], ...], size: int, number: int
) -> tuple[Tensor, Tensor, int, tuple[str, ...]]:
    """Return ``pair_batch`` and the captions of its clips."""
    dataset = _dataset(data, pairs, seed, scale_odds)
    captions = tuple(dataset.caption(number * size + i) for i in range(size))
    return *dataset.batch(number, size), captions


@lru_cache(maxsize=1)
def _dataset(data: Path, pairs: PairConfig, seed: int, scale_odds: tuple[tuple[int, float], ...]) -> PairDataset:
    return PairDataset(load_materials(data), pairs, seed=seed, scale_of=dict(scale_odds))


def clip_tensor(frames_thwc: npt.NDArray[np.uint8]) -> Tensor:
    """Return 8-bit frames [T, H, W, 3] as a clip [3, T, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames_thwc.transpose(3, 0, 1, 2))).float().div_(255)


def _flip(frames: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    if rng.random() < 0.5:
        frames = frames[:, :, ::-1]
    if rng.random() < 0.25:
        frames = frames[:, ::-1]
    if rng.random() < 0.25:
        frames = frames.transpose(0, 2, 1, 3)
    if rng.random() < 0.3:
        frames = frames[::-1]
    return np.ascontiguousarray(frames)


def _busiest(candidates: list[tuple[int, int]], picture: npt.NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Return the candidate corner whose crop has the most detail: flat sky teaches
    little."""

    def detail(corner: tuple[int, int]) -> float:
        y, x = corner
        grey = picture[y : y + side : 2, x : x + side : 2, 1].astype(np.int16)
        return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())

    return max(candidates, key=detail)


def _corner(picture: npt.NDArray[np.uint8], side: int, rng: np.random.Generator) -> tuple[int, int]:
    height, width = picture.shape[:2]
    tries = 1 if rng.random() < 0.4 else 3
    corners = [
        (int(rng.integers(height - side + 1)) & ~1, int(rng.integers(width - side + 1)) & ~1) for _ in range(tries)
    ]
    return _busiest(corners, picture, side) if tries > 1 else corners[0]


def _cut_clip(material: Material, side: int, frames: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Cut a window of ``side`` pixels out of a clip, sometimes downscaled from a larger
    window, which is sharper."""
    total, height, width = material.frames_thwc.shape[:3]
    shrink = 1.0
    if material.kind == "clip" and rng.random() < 0.5:
        shrink = min(float(rng.uniform(1.0, 2.0)), min(height, width) / side)
    window = int(side * shrink)
    step = 1 if rng.random() < 0.8 or total < 2 * frames else 2
    start = int(rng.integers(total - (frames - 1) * step))
    y, x = _corner(material.frames_thwc[start], window, rng)
    index = [start + i * step for i in range(frames)]
    piece = np.stack([material.frames_thwc[i, y : y + window, x : x + window] for i in index])
    return piece if window == side else _resize(piece, side)


def _moving_still(material: Material, side: int, frames: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Move a window over a still: pan, zoom and turn, sub-pixel and smooth."""
    picture = material.frames_thwc[0]
    most = min(picture.shape[:2]) / (side * 1.25)
    zoom = min(float(rng.choice([1.0, 1.0, 1.5, 2.0]) * rng.uniform(1.0, 1.2)), max(1.0, most))
    window = min(int(side * zoom * 1.2), min(picture.shape[:2]))
    y, x = _corner(picture, window, rng)
    patch = torch.from_numpy(np.ascontiguousarray(picture[y : y + window, x : x + window])).permute(2, 0, 1).float()
    if zoom > 1.05:
        smaller = max(side, int(window / zoom))
        patch = F.interpolate(patch[None], (smaller, smaller), mode="bicubic", antialias=True)[0]

    still = rng.random() < 0.25
    speed = 0.0 if still else float(rng.exponential(2.0))
    angle = float(rng.uniform(0, 2 * np.pi))
    turn = 0.0 if still else float(rng.normal(0, 0.004))
    grow = 0.0 if still else float(rng.normal(0, 0.004))
    size = patch.shape[1]
    middle = np.arange(frames) - (frames - 1) / 2
    shown: list[Tensor] = []
    axis = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")

    slack = max(0.0, (size - side) / 2 - 2)
    for t in middle:
        dx = float(np.clip(speed * t * np.cos(angle), -slack, slack))
        dy = float(np.clip(speed * t * np.sin(angle), -slack, slack))
        a, s = turn * t, 1 + grow * t
        u = (columns * np.cos(a) - rows * np.sin(a)) * s + dx
        v = (columns * np.sin(a) + rows * np.cos(a)) * s + dy
        if speed == 0 and turn == 0 and grow == 0:
            u, v = columns + 0.5 * ((size - side) % 2), rows + 0.5 * ((size - side) % 2)
        grid = torch.stack([u, v], dim=-1) / (size / 2)
        shown.append(
            F.grid_sample(patch[None], grid[None], mode="bicubic", padding_mode="reflection", align_corners=False)[0]
        )

    return torch.stack(shown).permute(0, 2, 3, 1).clamp(0, 255).round().to(torch.uint8).numpy()


def _resize(frames_thwc: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    x = torch.from_numpy(frames_thwc).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (side, side), mode="bicubic", antialias=True)
    return x.permute(0, 2, 3, 1).clamp(0, 255).round().to(torch.uint8).numpy()
