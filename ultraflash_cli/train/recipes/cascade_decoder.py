"""Recipe ``cascade_decoder``: tune the decoder on latents as the cascade makes them.

The generator and the SR transformer make latents that are softer than those of the
encoder, and their tokens are coarser than the decoder's cells. The decoder is the only
stage that computes single pixels, so it learns to draw sharp frames from both kinds of
latents. The encoder and with it the latent space stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, GENERATED_FPS, LATENT_PX
from ultraflash_cli.errors import ConfigError, InputError
from ultraflash_cli.metrics.lpips import Trunk, weights_path
from ultraflash_cli.train.critic import Critic, relativistic_loss, reversed_gradient
from ultraflash_cli.train.data import Material
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.latents import SceneLatents, training_scene
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig, RecipeConfig
from ultraflash_cli.train.losses import PictureTerms, picture_terms
from ultraflash_cli.train.perception import viewed_distance
from ultraflash_cli.train.recipe import seeded
from ultraflash_cli.train.recipes.decoder import is_kernel
from ultraflash_cli.train.rewards import load_reward, reward_of
from ultraflash_cli.train.roles import TOY, CascadeRoles
from ultraflash_cli.train.scene_pairs import holds_scene_pairs
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = [
    "HELPERS",
    "NETWORKS",
    "CascadeDecoderConfig",
    "Windows",
    "clips",
    "configure",
    "learners",
    "loss",
    "make",
    "pictures",
    "start",
]

NETWORKS = ("decoder",)
"""Roles that an export writes."""

HELPERS = ("critic",)
"""Roles needed only for training."""


@dataclass(frozen=True, kw_only=True)
class CascadeDecoderConfig(RecipeConfig):
    """Settings of the windows, the loss and the loop."""

    profile: Profile = LITE
    """Sizes of the networks."""
    sources: tuple[tuple[str, float], ...] = (("high", 0.25), ("high_own", 0.4), ("low", 0.15), ("low_own", 0.2))
    """Subfolders of the data and their sampling weights: encoded scenes, and latents
    made by the cascade (``answer-scenes``)."""
    latents: int = 3
    """Latent frames per window."""
    cells: int = 28
    """Rows and columns of latents per window."""
    terms: PictureTerms = field(default_factory=lambda: PictureTerms(square=8.0, temporal=1.0))
    """Weights of the pixel errors."""
    regression: float = 1.0
    """Weight of all pixel errors."""
    perception: float = 0.5
    """Weight of the learned distance of one frame of every window, on random views."""
    trunks: tuple[Trunk, ...] = ("alex", "vgg")
    """Networks that measure the distance; one is picked at random for each batch."""
    view_px: int = 176
    """Side of the views in pixels."""
    zoom: tuple[float, float] = (-0.25, 0.5)
    """Range of the views' zoom, in octaves."""
    rewards: tuple[tuple[str, float], ...] = (("texture", 0.1),)
    """Rewards by name and weight, on decoded frames."""
    adversarial: float = 0.0
    """Weight of the adversarial term, from a critic of detail and its change."""

    def __post_init__(self) -> None:
        if self.profile.decoder is None:
            raise ConfigError(f"{self.profile.name} has no high-resolution decoder to train")
        if min(self.latents, self.cells, self.view_px) < 1 or not self.sources:
            raise ConfigError("a window needs at least 1 latent and 1 cell, and the data at least one source")
        for name, _ in self.rewards:
            load_reward(name)


class Windows:
    """Windows of the latents in a folder's subfolders, with the renderer's own
    frames."""

    def __init__(self, folder: Path, sources: tuple[tuple[str, float], ...]) -> None:
        """Raises InputError if a subfolder has no encoded scenes."""
        for name, _ in sources:
            if not (folder / name).is_dir():
                raise InputError(f"{folder}: has no folder {name}; write it with `ultraflash train answer-scenes`")
        self.scenes = [SceneLatents(folder / name) for name, _ in sources]
        odds = np.array([weight for _, weight in sources])
        self.odds = odds / odds.sum()

    def draw(self, count: int, latents: int, cells: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return ``count`` windows of one scene: latents ``[N, C, T, cells, cells]`` and
        frames ``[N, 3, 4 * T, 8 * cells, 8 * cells]`` in [0, 1]. Half of them are near
        the scene's moving thing.
        """
        scenes = self.scenes[int(rng.choice(len(self.scenes), p=self.odds))]
        file = int(rng.integers(len(scenes.files)))
        number, _, longest, *size = scenes.shapes[file]
        if longest < latents or min(size) < cells:
            raise InputError(f"{scenes.files[file]}: windows of {latents} x {cells} x {cells} latents do not fit")
        i, first = int(rng.integers(number)), int(rng.integers(longest - latents + 1))
        with safe_open(scenes.files[file], "pt") as opened:
            whole = opened.get_slice("latents")[i, :, first : first + latents].float()
            cover = opened.get_slice("covers")[i, first : first + latents].any(dim=0)

        scene = training_scene(scenes.seed, int(scenes.facts[file]["first"]) + i)
        renderer = Renderer(scene, height_px=LATENT_PX * size[0], width_px=LATENT_PX * size[1])
        times = range(FRAMES_PER_LATENT * first, FRAMES_PER_LATENT * (first + latents))
        frames = [renderer.frame(max(0, t - FRAMES_PER_LATENT + 1) / GENERATED_FPS) for t in times]
        near = cover.nonzero().numpy()
        cut: list[tuple[Tensor, Tensor]] = []
        for _ in range(count):
            at = near[int(rng.integers(len(near)))] if len(near) and rng.random() < 0.5 else rng.integers(size)
            starts = [int(np.clip(middle - cells // 2, 0, side - cells)) for middle, side in zip(at, size, strict=True)]
            top, left = starts
            y, x = (slice(LATENT_PX * start, LATENT_PX * (start + cells)) for start in starts)
            shown = torch.from_numpy(np.stack([frame[y, x] for frame in frames])).permute(3, 0, 1, 2).float() / 255
            cut.append((whole[:, :, top : top + cells, left : left + cells], shown))
        made, truth = zip(*cut, strict=True)
        return torch.stack(made), torch.stack(truth)


@lru_cache(maxsize=1)
def _open_windows(folder: Path, sources: tuple[tuple[str, float], ...]) -> Windows:
    return Windows(folder, sources)


def _batch(config: CascadeDecoderConfig, data: Path, number: int) -> Batch:
    rng = np.random.default_rng((config.loop.seed, 23, number))
    return _open_windows(data, config.sources).draw(config.loop.batch, config.latents, config.cells, rng)


def make(config: CascadeDecoderConfig, data: Path | None) -> Callable[[int], Batch]:
    """Return the function that makes a batch from its number."""
    assert data is not None, "windows come from a folder of scenes"
    if not holds_scene_pairs(data):
        raise InputError(f"{data}: no scenes at two sizes; write them with `ultraflash train encode-scenes`")
    return partial(_batch, config, data.absolute())


def loss(config: CascadeDecoderConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the terms of the decoded windows against the renderer's frames."""
    latents, truth = batch
    frames = roles.decode(latents)
    pixels = picture_terms(frames, truth, config.terms)
    terms = {"regression": config.regression * torch.stack(list(pixels.values())).sum()}
    if config.perception:
        dtype = torch.bfloat16 if config.loop.precision == "bf16" else torch.float32
        trunk, distance = viewed_distance(
            frames, truth, config.trunks, rng, side_px=config.view_px, zoom=config.zoom, dtype=dtype
        )
        terms[f"likeness_{trunk}"] = config.perception * distance
    for name, score in reward_of(frames, truth, config.rewards).items():
        terms[f"reward_{name}"] = -score
    if config.adversarial:
        critic = roles.get_submodule("critic")
        terms["adversarial"] = config.adversarial * relativistic_loss(critic(reversed_gradient(frames)), critic(truth))
    return terms


def learners(config: CascadeDecoderConfig) -> tuple[Learner, ...]:
    """Return the single learner: the decoder, with its critic if there is one."""
    roles = (*NETWORKS, *HELPERS) if config.adversarial else NETWORKS
    return (Learner(name="student", roles=roles, loss=partial(loss, config), is_kernel=is_kernel),)


def configure(*, steps: int, seed: int, toy: bool = False, profile: Profile = LITE) -> CascadeDecoderConfig:
    """Return the settings for the built-in model, or for a toy model."""
    loop = LoopConfig(
        steps=steps,
        seed=seed,
        rate=1e-3 if toy else 1e-4,
        last_rate=2e-6,
        kernel_rate=4e-3 if toy else 3e-3,
        warmup=10 if toy else 20,
        average=0.95 if toy else 0.99,
        batch=2 if toy else 4,
        save_every=50,
        log_every=10 if toy else 25,
    )
    if not toy:
        return CascadeDecoderConfig(loop=loop, profile=profile)
    sources = (("high", 0.5), ("high_own", 0.5))
    config = CascadeDecoderConfig(loop=loop, profile=TOY, sources=sources, latents=2, cells=4, view_px=24)
    return replace(config, trunks=("alex",))


def start(config: CascadeDecoderConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> CascadeRoles:
    """Return the roles before the first step. Raises UsageError without weights or without those of the learned
    distance, WeightsError if they do not fit.
    """
    if config.perception:
        for trunk in config.trunks:
            weights_path(trunk)
    with seeded(config):
        roles = CascadeRoles(config.profile, NETWORKS)
        if config.adversarial:
            roles.critic = Critic()
    roles.load(weights, fresh=HELPERS, hint="average.safetensors of a run of `autoencoder`")
    roles.learn(*(name for name, _ in roles.named_children()))
    return roles


def clips(
    config: CascadeDecoderConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return decoded windows, and the renderer's."""
    latents, truth = batch
    return roles.decode(latents), truth


def pictures(config: CascadeDecoderConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show decoded windows next to the renderer's."""
    return sheet(*clips(config, roles, batch, rng))
