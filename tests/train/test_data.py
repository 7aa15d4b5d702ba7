"""Licences allowed for shipped weights, and sampling."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train.made import CLEAN, made_materials, moving_shapes, write_materials
from ultraflash_cli.errors import InputError
from ultraflash_cli.train.data import Material, PairConfig, PairDataset, data_hash, is_allowed, load_materials

ALLOWED = [
    "Apache-2.0 (repo LICENSE)",
    "Apache-2.0 (repo LICENSE), AI-generated",
    "MIT",
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0 (package copyright file)",
    "CC-BY-SA-4.0 / CC-BY-4.0 / CC0-1.0 (package copyright file)",
    "GPL-2+ (package copyright file)",
    "GPL-2+ / CC-BY-SA-4.0 (package copyright file)",
    "made for this project (Liberation/DejaVu/Noto fonts); no restriction",
]
REFUSED = [
    "unstated, evaluation/training use only, do not redistribute in the product",
    "repo MIT; example media licence unstated, training use only, do not redistribute in the product",
    "Apache-2.0 (repo LICENSE); clip origin unstated",
    "Apache-2.0 repo; photo from Flickr, photo licence unstated",
    "CC-BY-NC-4.0 (repo LICENSE.md)",
    "CC-BY-NC-SA-4.0",
    "CC-BY-ND",
    "CC-BY-ND-4.0",
    "CC BY NC 4.0",
    "GPL-2+ / CC-BY-NC-4.0",
    "CC-BY-4.0, Non-Commercial use only",
    "Apache-2.0, Unstated for the media",
    "MPL-2.0",
    "MPL-2.0 repo; Big Buck Bunny CC-BY-3.0",
    "S-Lab licence, non-commercial",
    "repo LICENSE.md refers to a copyright file not in the snapshot",
    "origin unstated",
    "",
]

PAIRS = PairConfig(crop_px=16, shares=(("clip", 0.5), ("photo", 0.5)), degradation=CLEAN)


@pytest.mark.parametrize("licence", ALLOWED)
def test_an_open_licence_is_allowed(licence: str) -> None:
    assert is_allowed(licence)


@pytest.mark.parametrize("licence", REFUSED)
def test_a_licence_that_is_not_open_or_not_stated_is_refused(licence: str) -> None:
    assert not is_allowed(licence)


def test_of_the_shared_training_files_14_clips_and_34_photos_are_allowed(shared_data: Path) -> None:
    rows = json.loads((shared_data / "manifest.json").read_text())["files"]
    allowed = [row["kind"] for row in rows if row["split"] == "train" and is_allowed(row["licence"])]
    assert (allowed.count("video"), allowed.count("photo"), len(allowed)) == (14, 34, 48)


def test_prepared_material_of_another_licence_is_refused(tmp_path: Path) -> None:
    folder = write_materials(tmp_path, [replace(made_materials(1)[0], licence="CC-BY-NC-4.0")])
    with pytest.raises(InputError, match="CC-BY-NC"):
        load_materials(folder)


def test_a_folder_without_material_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prepare the data first"):
        load_materials(tmp_path)


def test_material_comes_back_as_it_was_written_with_the_same_hash(tmp_path: Path) -> None:
    made = made_materials(2, side=64)
    read = load_materials(write_materials(tmp_path, made))
    assert [m.name for m in read] == [m.name for m in made]
    assert (read[1].frames_thwc == made[1].frames_thwc).all()
    assert data_hash(read) == data_hash(made) == data_hash(list(reversed(made)))
    assert data_hash(made_materials(2, first_seed=5, side=64)) != data_hash(made)


def dataset(seed: int = 1, config: PairConfig = PAIRS) -> PairDataset:
    still = Material("still", "photo", "CC0-1.0", moving_shapes(9, frames=1, side=96))
    return PairDataset([*made_materials(2, side=64), still], config, seed=seed, scale_of={2: 0.5, 3: 0.5})


def test_a_clip_that_is_too_short_is_named() -> None:
    with pytest.raises(InputError, match="clip_0: shorter than the 9 frames"):
        dataset(config=replace(PAIRS, frames=9))


def test_words_go_with_the_sample_of_their_clip() -> None:
    materials = [replace(m, caption=f"words of {m.name}") for m in made_materials(3, side=64)]
    pairs = PairDataset(materials, replace(PAIRS, first_frame_share=0.0), seed=1, scale_of={2: 1.0})
    captions = {pairs.caption(index) for index in range(20)}
    assert captions == {f"words of clip_{number}" for number in range(3)}
    assert pairs.caption(4) == pairs.caption(4)


@pytest.mark.parametrize("scale", [2, 3])
def test_a_sample_is_a_pure_function_of_seed_and_index(scale: int) -> None:
    first, second = dataset(), dataset()
    second.sample(0, scale)  # earlier draws do not matter
    for index in (7, 8, 9):
        low, high = first.sample(index, scale)
        again_low, again_high = second.sample(index, scale)
        assert torch.equal(low, again_low) and torch.equal(high, again_high)
        assert low.shape == (3, 4, 16, 16) and high.shape == (3, 4, 16 * scale, 16 * scale)
        assert low.min() >= 0 and low.max() <= 1
        assert not torch.equal(high, first.sample(index + 50, scale)[1])
        assert not torch.equal(high, dataset(seed=2).sample(index, scale)[1])


def test_a_batch_is_a_pure_function_of_its_number_and_shares_one_scale() -> None:
    first, second = dataset(), dataset()
    scales: set[int] = set()
    for number in (5, 2, 0, 1, 3):
        low, high, scale = first.batch(number, 2)
        assert high.shape[-1] == scale * low.shape[-1]
        assert torch.equal(low, second.batch(number, 2)[0])
        assert torch.equal(low[1], first.sample(number * 2 + 1, scale)[0])
        scales.add(scale)
    assert scales == {2, 3}


def test_a_clip_sometimes_starts_as_a_stream_does() -> None:
    _, high = dataset(config=replace(PAIRS, first_frame_share=1.0, shares=(("clip", 1.0),))).sample(3, 2)
    steps = high.diff(dim=1).abs().amax((0, 2, 3))
    # The first frame is repeated three times; at the end instead if the clip was
    # reversed.
    assert steps.tolist()[:2] == [0, 0] or steps.tolist()[1:] == [0, 0]
