"""Stored pairs match their description, and the recipe that tunes the pixel path
starts, preserves and learns correctly."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.train.logs import from_log
from tests.train.made import made_materials, write_likeness_package, write_materials
from ultraflash_cli.errors import InputError
from ultraflash_cli.main import main
from ultraflash_cli.train.data import PairConfig
from ultraflash_cli.train.degradation import DegradationConfig
from ultraflash_cli.train.export import ExportJob, export, networks_of
from ultraflash_cli.train.losses import shuffle_loss, weave_loss
from ultraflash_cli.train.pairs import CutConfig, KeptPairs, MakePairsJob, make_pairs, pairs_hash
from ultraflash_cli.train.recipes import perceptual
from ultraflash_cli.train.recipes.perceptual import PerceptualConfig, PerceptualRoles
from ultraflash_cli.train.record import RECORD, RunRecord, read_record
from ultraflash_cli.train.run import AVERAGE
from ultraflash_cli.weights.load import read_tensors

CUTS = CutConfig(frames=3, side_px=32)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs at x2, at least one of each kind, and one at x3."""
    material, folder = tmp_path_factory.mktemp("material"), tmp_path_factory.mktemp("pairs")
    write_materials(material, made_materials(2, side=96))
    config = PairConfig(
        frames=4,
        crop_px=24,
        shares=(("clip", 1.0),),
        degradation=DegradationConfig(shares=(("clean", 0.5), ("compressed", 0.5))),
    )
    for scale, count in ((2, 4), (3, 1)):
        make_pairs(MakePairsJob(data=material, out=folder, count=count, scale=scale, pairs=config, seed=4))
    return folder


@pytest.fixture
def lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learned distance with random weights."""
    write_likeness_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def config_of(**changes: Any) -> PerceptualConfig:
    config = replace(perceptual.configure(steps=4, seed=1, toy=True), cuts=CUTS)
    return replace(config, **changes)


def roles_of(config: PerceptualConfig) -> PerceptualRoles:
    torch.manual_seed(3)
    start = {f"pixels.{name}": value for name, value in PerceptualRoles(config).faithful.state_dict().items()}
    return perceptual.start(config, [], start)


def test_a_kept_pair_holds_what_was_drawn_and_making_it_again_changes_nothing(pairs: Path) -> None:
    told = json.loads((pairs / "000000_x2.json").read_text())
    assert told["scale"] == 2 and told["kind"] in ("clean", "compressed") and from_log(told["operators"])
    low, high = (np.load(pairs / f"000000_x2_{end}.npy") for end in ("low", "high"))
    assert low.shape == (4, 24, 24, 3) and high.shape == (4, 48, 48, 3)
    assert {json.loads(path.read_text())["kind"] for path in pairs.glob("*_x2.json")} == {"clean", "compressed"}


def test_batches_of_kept_pairs_follow_from_their_number_and_lie_on_one_another(pairs: Path) -> None:
    kept = KeptPairs(pairs, CUTS, seed=1, scale_of={2: 1.0})
    seen: set[bool] = set()
    for number in range(4):
        low, high, scale, clean = kept.batch(number, 2)
        again = KeptPairs(pairs, CUTS, seed=1, scale_of={2: 1.0}).batch(number, 2)
        assert scale == 2 and torch.equal(low, again[0]) and torch.equal(high, again[1])
        assert low.shape == (2, 3, 3, 16, 16) and high.shape == (2, 3, 3, 32, 32)
        small = F.avg_pool3d(high, (1, 2, 2))
        assert (small - low).abs().mean() < 0.05 < (small.flip(4) - low).abs().mean() + 0.04
        seen |= set(clean.tolist())
    assert seen == {True, False}


def test_a_folder_without_pairs_is_refused(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(InputError, match="make-pairs"):
        pairs_hash(tmp_path)
    with pytest.raises(InputError, match="x4"):
        KeptPairs(pairs, CUTS, seed=1, scale_of={4: 1.0})
    assert pairs_hash(pairs) == pairs_hash(pairs)


def test_a_weave_counts_and_noise_of_its_strength_hardly_does() -> None:
    flat = torch.full((1, 3, 2, 64, 64), 0.5)
    grid = torch.zeros(64, 64)
    grid[::4, ::4] = 0.1
    noise = torch.randn(1, 1, 2, 64, 64, generator=torch.Generator().manual_seed(1)) * grid.std()
    woven, noisy = weave_loss(flat + grid, flat, 4), weave_loss(flat + noise, flat, 4)
    assert woven > 3 * noisy and weave_loss(flat + 0.1, flat, 4) < 1e-6


def test_detail_in_some_positions_of_the_shuffle_only_counts_whatever_its_sign() -> None:
    flat = torch.full((1, 3, 2, 96, 96), 0.5)
    grid = torch.zeros(96, 96)
    grid[::4, ::4] = 0.2
    signs, spread = (torch.randn(1, 1, 2, 96, 96, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    texture = flat + 0.05 * spread
    uneven, even = flat + grid * signs.sign(), flat - 0.05 * spread
    assert shuffle_loss(uneven, texture, 4) > 5 * shuffle_loss(even, texture, 4)
    assert shuffle_loss(texture, texture, 4) == 0 and shuffle_loss(flat, flat + 0.1, 4) < 1e-4


def test_it_starts_as_the_faithful_path_and_on_clean_clips_has_nothing_to_learn(lpips: None) -> None:
    config = config_of()
    roles = roles_of(config)
    low, high = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 3, 3, 32, 32)
    starts = [role.upscale(low, None, scale=2)[0] for role in (roles.pixels_detail, roles.faithful)]
    assert torch.equal(*starts)
    terms = perceptual.loss(config, roles, (low, high, 2, torch.tensor([True, True])), torch.Generator())
    assert terms.keys() == {"luma", "chroma", "temporal"}
    sum(terms.values(), start=torch.zeros(())).backward()
    moved = [p.grad.abs().max() for p in roles.pixels_detail.parameters() if p.grad is not None]
    assert moved and max(moved) < 1e-5
    mixed = perceptual.loss(config, roles, (low, high, 2, torch.tensor([True, False])), torch.Generator())
    assert mixed.keys() == {"luma", "chroma", "temporal", "likeness_alex", "weave", "shuffle", "adversarial"}
    assert float(mixed["luma"].detach()) > 0.05


def test_the_mean_of_runs_lies_between_them_and_can_be_exported(tmp_path: Path) -> None:
    record = RunRecord(
        recipe="perceptual", recipe_hash="a", config="c", data_hash="d", start_hash="e", seed=1, steps=10
    )
    for name, value in (("one", 1.0), ("two", 3.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / RECORD).write_text(json.dumps(asdict(record)))
        save_file({"pixels_detail.embed.weight": torch.full((2, 3), value)}, tmp_path / name / AVERAGE)
    command = ["train", "blend", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "mean")]
    assert main(command) == 0
    mean = read_tensors(tmp_path / "mean" / AVERAGE)
    assert torch.equal(mean["pixels_detail.embed.weight"], torch.full((2, 3), 2.0))
    made = read_record(tmp_path / "mean")
    assert (made.recipe, made.steps) == ("perceptual", 20) and made.start_hash != "e"
    assert export(ExportJob(run=tmp_path / "mean", folder=tmp_path / "lite", listing=tmp_path / "weights.toml"))
    projection = {"pixels_detail.project.2.bias": torch.arange(12.0)}
    for name in ("one", "two"):
        save_file(projection, tmp_path / name / AVERAGE)
    assert main([*command, "--grey"]) == 0
    grey = read_tensors(tmp_path / "mean" / AVERAGE)["pixels_detail.project.2.bias"].view(3, 4)
    torch.testing.assert_close(grey, (0.587 * 4 + 0.114 * 8 + torch.arange(4.0)).expand(3, 4))
    assert main([*command[:3], "--out", str(tmp_path / "mean")]) == 2
    save_file({"pixels_detail.embed.weight": torch.zeros(2, 4)}, tmp_path / "two" / AVERAGE)
    assert main(command) == 2


def test_it_continues_from_the_files_of_a_model(lpips: None) -> None:
    config = config_of()
    faithful, detailed = (PerceptualRoles(config).faithful.state_dict() for _ in range(2))
    roles = perceptual.start(config, [], perceptual.merge([faithful, detailed]))
    for role, given in ((roles.faithful, faithful), (roles.pixels_detail, detailed)):
        assert all(torch.equal(value, given[name]) for name, value in role.state_dict().items())
    own = {f"pixels_detail.{name}": value for name, value in detailed.items()}
    assert perceptual.merge([faithful, own]).keys() == perceptual.merge([faithful, detailed]).keys()


def test_each_learner_moves_its_own_role_alone(lpips: None) -> None:
    config = config_of()
    roles = roles_of(config)
    low, high = torch.rand(1, 3, 3, 16, 16), torch.rand(1, 3, 3, 32, 32)
    critic, network = perceptual.learners(config)
    assert (critic.roles, network.roles) == (("critic",), ("pixels_detail",))
    terms = critic.loss(roles, (low, high, 2, torch.tensor([False])), torch.Generator())
    sum(terms.values(), start=torch.zeros(())).backward()
    moved = {name.split(".")[0] for name, p in roles.named_parameters() if p.grad is not None}
    assert moved == {"critic"}
    assert len(perceptual.learners(config_of(adversarial=0.0))) == 1


def test_it_runs_from_its_command_and_its_export_is_the_detail_of_the_pixel_path(
    lpips: None, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = perceptual.configure(steps=2, seed=1, toy=True)
    start = {f"pixels.{name}": value for name, value in PerceptualRoles(config).faithful.state_dict().items()}
    save_file({name: value.contiguous() for name, value in start.items()}, tmp_path / "pixels.safetensors")
    arguments = ["--toy", "--steps", "2", "--batch", "1", "--workers", "0", "--threads", "1", "--device", "cpu"]
    command = ["train", "run", "perceptual", "--data", str(pairs), "--out", str(tmp_path / "run"), *arguments]
    assert main(command) == 2 and "pixels" in capsys.readouterr().err
    assert main([*command, "--start-from", str(tmp_path / "pixels.safetensors")]) == 0
    tensors: dict[str, Tensor] = read_tensors(tmp_path / "run" / "average.safetensors")
    assert networks_of(tensors, perceptual.NETWORKS).keys() == {"pixels_detail"}
    assert not any(name.startswith(perceptual.HELPERS) for name in tensors)
