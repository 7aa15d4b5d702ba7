"""Clips and tiny networks generated for tests."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ultraflash_cli.engine.stages.pixel_path import PixelPathConfig
from ultraflash_cli.metrics.lpips import PACKAGE, WEIGHTS, LikenessNet, Trunk
from ultraflash_cli.train.data import Material
from ultraflash_cli.train.degradation import DegradationConfig
from ultraflash_cli.train.roles import TOY, TOY_WORDS, CascadeRoles

CLEAN = DegradationConfig(shares=(("clean", 1.0),))
"""Only scaling."""

SOFT = DegradationConfig(
    shares=(("compressed", 1.0),),
    blur_share=1.0,
    blur_sigma=(2.0, 2.0),
    kernels=(("bicubic", 1.0),),
    crf=(10, 10),
)
"""A constant strong blur, which even a tiny network soon learns to undo."""

SMALL = PixelPathConfig(width=32, blocks=1, residual_gain=0.3)
"""The built-in model's pixel path, much narrower."""


DARK, LIGHT = (40, 30, 60), (220, 230, 200)


def moving_shapes(seed: int, *, frames: int = 8, side: int = 128) -> npt.NDArray[np.uint8]:
    """Return a clip [T, H, W, 3] of dark and light discs and rings that move across
    each other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    clip = np.full((frames, side, side, 3), LIGHT, dtype=np.float64)
    for i in range(30):
        colour = np.array(LIGHT if i % 2 else DARK)
        cx, cy, vx, vy = *rng.uniform(0, side, 2), *rng.normal(0, 1.5, 2)
        radius, ring = rng.uniform(4, side / 5), rng.random() < 0.5
        for t in range(frames):
            away = np.hypot(x - cx - vx * t, y - cy - vy * t)
            cover = np.clip(radius - away + 0.5, 0, 1)
            if ring:
                cover *= np.clip(away - radius + 4.5, 0, 1)
            clip[t] += cover[..., None] * (colour - clip[t])
    return clip.round().astype(np.uint8)


def soft_shapes(seed: int, *, frames: int = 16, side: int = 64) -> npt.NDArray[np.uint8]:
    """Return a clip [T, H, W, 3] of large moving coloured blobs with soft edges, which
    a toy learns in seconds."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side].astype(np.float64) / side
    clip = np.full((frames, side, side, 3), 128.0)
    for _ in range(6):
        (cx, cy), (vx, vy) = rng.uniform(0, 1, 2), rng.normal(0, 0.02, 2)
        colour, radius = rng.uniform(0, 255, 3), rng.uniform(0.1, 0.25)
        for t in range(frames):
            cover = np.exp(-(((x - cx - vx * t) ** 2 + (y - cy - vy * t) ** 2) / radius**2))
            clip[t] += cover[..., None] * (colour - clip[t])
    return clip.round().astype(np.uint8)


def soft_materials(count: int, *, first_seed: int = 0) -> list[Material]:
    """Return clips of soft shapes, with captions."""
    licence = "made for this project (test)"
    return [
        Material(f"soft_{seed}", "clip", licence, soft_shapes(seed), f"soft shapes number {seed}")
        for seed in range(first_seed, first_seed + count)
    ]


def made_materials(count: int, *, first_seed: int = 0, side: int = 128) -> list[Material]:
    """Return clips of moving shapes."""
    licence = "made for this project (test)"
    return [
        Material(f"clip_{seed}", "clip", licence, moving_shapes(seed, side=side))
        for seed in range(first_seed, first_seed + count)
    ]


def random_cascade() -> dict[str, torch.Tensor]:
    """Return random weights of the whole cascade at toy size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        parts = ("encoder", "upsamplers", "decoder", "sr_dit", "generator", "text_encoder")
        return dict(CascadeRoles(TOY, parts, words=TOY_WORDS).state_dict())


def write_likeness_package(folder: Path) -> None:
    """Create a package with the name of the learned distance and random weights."""
    weights = folder / PACKAGE / WEIGHTS
    weights.mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").write_text("raise ImportError('only its files are wanted')")
    rng = torch.Generator().manual_seed(2)
    trunks: tuple[Trunk, ...] = ("alex", "vgg")
    for trunk in trunks:
        own = LikenessNet(trunk).state_dict()
        drawn = {name: torch.rand(value.shape, generator=rng) / value[0].numel() for name, value in own.items()}
        scaling = {name: value for name, value in own.items() if "scaling" in name}
        torch.save(drawn | scaling, weights / f"{trunk}_shift_tolerant.pth")


def write_materials(folder: Path, materials: list[Material]) -> Path:
    """Write material as `prepare` does; return the folder."""
    rows = [
        {"name": m.name, "kind": m.kind, "licence": m.licence, "source": "test", "caption": m.caption}
        for m in materials
    ]
    for material in materials:
        np.save(folder / f"{material.name}.npy", material.frames_thwc)
    (folder / "materials.json").write_text(json.dumps(rows))
    return folder
