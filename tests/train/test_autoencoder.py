"""The autoencoder: its starting point, the noise it must tolerate, and its gain over
the linear code it starts from."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.autoencoder import held_out, linear_code, trained
from tests.train.made import moving_shapes
from ultraflash_cli.engine.layers.memory_block import MemoryBlock
from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.components import start_from_components
from ultraflash_cli.train.data import Material, load_materials
from ultraflash_cli.train.loop import Prefetcher, generator_of, run_loop
from ultraflash_cli.train.recipes import autoencoder, bottleneck
from ultraflash_cli.train.recipes.autoencoder import TOY_SPACE
from ultraflash_cli.train.roles import TOY, CascadeRoles


def clips_of(first: int, count: int, *, side: int = 64) -> Tensor:
    shapes = np.stack([moving_shapes(seed, side=side) for seed in range(first, first + count)])
    return torch.from_numpy(shapes).permute(0, 4, 1, 2, 3).float() / 255


def fresh_roles(seed: int = 4) -> CascadeRoles:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CascadeRoles(TOY_SPACE, autoencoder.NETWORKS)


@torch.no_grad()
def error(roles: CascadeRoles, clips: Tensor) -> float:
    return (roles.decode_base(roles.encode(clips)) - clips).square().mean().item()


def test_a_fresh_autoencoder_is_nearly_as_good_as_the_linear_code_of_its_rate() -> None:
    taught, held_out = clips_of(0, 6), clips_of(6, 2)
    roles, plain = fresh_roles(), fresh_roles()
    start_from_components(roles, taught)
    best = (linear_code(taught, channels=16)(held_out) - held_out).square().mean().item()
    assert error(roles, held_out) < 1.15 * best < error(plain, held_out)
    with torch.no_grad():
        latents = roles.encode(taught)
    assert latents.mean().abs() < 0.2 and 0.2 < latents.std() < 1.5


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        pytest.param(replace(TOY_SPACE, encoder=TOY.encoder), "mirrors the encoder", id="other order"),
        pytest.param(replace(LITE, encoder=replace(LITE.encoder, linear_trunk=False)), "activations", id="trunk"),
    ],
)
def test_networks_that_no_linear_map_goes_through_are_refused(profile: object, reason: str) -> None:
    roles = CascadeRoles(profile, autoencoder.NETWORKS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=reason):
        start_from_components(roles, clips_of(0, 1))


def test_the_autoencoder_has_to_put_up_with_noise_and_keeps_its_latents_in_bounds() -> None:
    config = autoencoder.configure(steps=1, seed=1, toy=True)
    roles = fresh_roles()
    roles.learn(*autoencoder.NETWORKS)
    clip = clips_of(0, 2)

    def terms(noise: float) -> dict[str, Tensor]:
        return autoencoder.loss(replace(config, latent_noise=noise), roles, (clip, 0.0), generator_of("noise"))

    quiet, loud = terms(0.0), terms(2.0)
    assert "spread" in quiet and quiet["luma"] != loud["luma"]
    roles.encoder.requires_grad_(False)
    assert "spread" not in terms(0.0)


def test_training_beats_the_linear_code_on_clips_it_was_not_taught(tmp_path: Path) -> None:
    config = autoencoder.configure(steps=STEPS, seed=3, toy=True)
    licence = "made for this project (test)"
    materials = [Material(f"shapes {seed}", "clip", licence, moving_shapes(seed)) for seed in range(12)]
    roles = autoencoder.start(config, materials, None)
    held_out = clips_of(50, 4, side=96)
    before = error(roles, held_out)
    taught = clips_of(0, 12)
    run_loop(roles, autoencoder.learners(config), Prefetcher(partial(_batch, taught), workers=0), config.loop, tmp_path)
    best = (linear_code(taught, channels=16)(held_out) - held_out).square().mean().item()
    assert error(roles, held_out) < 0.96 * min(before, best)


def test_the_middle_learns_on_components_and_all_else_stays(tmp_path: Path) -> None:
    licence = "made for this project (test)"
    (tmp_path / "data").mkdir()
    rows: list[dict[str, str]] = []
    for seed in range(12):
        np.save(tmp_path / "data" / f"shapes_{seed}.npy", moving_shapes(seed, side=64))
        rows.append({"name": f"shapes_{seed}", "kind": "clip", "licence": licence})
    (tmp_path / "data" / "materials.json").write_text(json.dumps(rows))
    config = bottleneck.configure(steps=60, seed=3, toy=True)
    roles = bottleneck.start(config, load_materials(tmp_path / "data"), None)
    held_out, kept = clips_of(50, 4), dict(roles.encoder.state_dict())
    fixed = kept["encoder.0.weight"].clone()
    before = error(roles, held_out)
    batches = Prefetcher(bottleneck.make(config, tmp_path / "data"), workers=0)
    run_loop(roles, bottleneck.learners(config), batches, config.loop, tmp_path / "run")
    assert error(roles, held_out) < 0.99 * before
    assert torch.equal(roles.encoder.state_dict()["encoder.0.weight"], fixed)


def test_the_error_of_components_is_that_of_pixels() -> None:
    clips = clips_of(0, 4)
    roles = fresh_roles()
    start_from_components(roles, clips)
    layers = [each for each in list(roles.encoder.encoder)[:-2] if not isinstance(each, MemoryBlock)]
    values = [F.pixel_unshuffle(clip.transpose(0, 1), roles.encoder.config.patch) for clip in clips[:2]]
    for layer in layers:
        values = [layer(each) for each in values]
    inner = values[0].detach() - values[1].detach()
    energy = (inner / bottleneck.component_gains(roles).view(1, -1, 1, 1)).square().sum()
    assert 0.85 < float(energy / (clips[0] - clips[1]).square().sum()) <= 1.001


def test_the_weights_of_the_next_space_keep_a_scene_that_no_recipe_saw() -> None:
    space = trained(Path(__file__).parents[2] / "benchmarks" / "training" / "lite2" / "autoencoder.safetensors")
    scenes = (clip.frames_cthw[None, :, :4] for clip in held_out(2, (480, 832), falling=False))
    with torch.no_grad():
        errors = [float((space(scene) - scene).square().mean()) for scene in scenes]
    assert max(errors) < 10**-3.0, "30 dB"


STEPS = 100


def _batch(clips: Tensor, number: int) -> tuple[Tensor, float]:
    rng = np.random.default_rng(number)
    y, x = rng.integers(clips.shape[3] - 47, size=2)
    return clips[rng.integers(len(clips), size=4), :, :, y : y + 48, x : x + 48], number / STEPS
