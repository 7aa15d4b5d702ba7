"""Preparing material: selection, downscaling, and reproducible pages."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageFont

from tests.train.drawn import render
from tests.train.made import moving_shapes
from ultraflash_cli.errors import InputError, UsageError
from ultraflash_cli.train import prepare as preparing
from ultraflash_cli.train.captions import caption
from ultraflash_cli.train.data import load_materials
from ultraflash_cli.train.pages import PagesConfig, page_words, render_pages
from ultraflash_cli.train.prepare import PhotoSource, PrepareJob, prepare
from ultraflash_cli.train.scenes import random_scene

SMALL_PAGES = PagesConfig(count=3, width_px=320, height_px=200, latin_fonts=("Test.ttf",), cjk_fonts=())


def write_clip(path: Path, *, frames: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in moving_shapes(1, frames=frames, side=64):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


def write_photo(path: Path, *, width: int, height: int, detail: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tile = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8) if detail else np.zeros((64, 64, 3))
    pixels = np.tile(tile.astype(np.uint8), (height // 64 + 1, width // 64 + 1, 1))[:height, :width]
    Image.fromarray(pixels).save(path, compress_level=1, quality=90)
    if path.stat().st_size < preparing.LEAST_FILE_BYTES:
        path.write_bytes(path.read_bytes() + bytes(preparing.LEAST_FILE_BYTES))


def write_manifest(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"files": rows}))
    return path


def row(file: str, *, licence: str = "Apache-2.0 (repo LICENSE)", split: str = "train") -> dict[str, Any]:
    return {"file": file, "licence": licence, "split": split, "source": "test"}


@pytest.fixture
def fonts(tmp_path: Path) -> Path:
    """A folder with the one font that Pillow includes."""
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert isinstance(font.path, io.BytesIO)
    folder = tmp_path / "fonts" / "deep"
    folder.mkdir(parents=True)
    (folder / "Test.ttf").write_bytes(font.path.getvalue())
    return folder.parent


def test_only_training_clips_of_allowed_licences_are_taken(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "screen_d"):
        write_clip(tmp_path / f"{name}.mp4")
    rows = [
        row("b.mp4"),
        row("a.mp4", licence="CC-BY-NC-4.0"),
        row("c.mp4", split="eval"),
        row("screen_d.mp4", licence="made for this project (fonts)"),
        row("missing_photo.jpg"),
    ]
    entries = prepare(PrepareJob(manifests=(write_manifest(tmp_path, rows),)), tmp_path / "out")
    assert [(entry.name, entry.kind) for entry in entries] == [("b", "clip"), ("screen_d", "screen")]
    materials = load_materials(tmp_path / "out")
    assert [m.name for m in materials] == ["b", "screen_d"]
    difference = materials[0].frames_thwc.astype(int) - moving_shapes(1, frames=4, side=64)
    assert materials[0].frames_thwc.shape == (4, 64, 64, 3)
    assert np.abs(difference).mean() < 4


def test_photos_are_shrunk_by_their_size_and_poor_ones_left_out(tmp_path: Path) -> None:
    package = tmp_path / "some-wallpapers"
    write_photo(package / "usr/share/backgrounds/b_large.jpg", width=3200, height=1000)
    write_photo(package / "usr/share/backgrounds/a_middle.png", width=2432, height=960)
    write_photo(package / "usr/share/backgrounds/c_small.jpg", width=1280, height=960)
    write_photo(package / "usr/share/backgrounds/upright.jpg", width=960, height=1280)
    write_photo(package / "usr/share/backgrounds/low.jpg", width=1600, height=896)
    write_photo(package / "usr/share/backgrounds/flat.jpg", width=1600, height=960, detail=False)
    write_photo(package / "usr/share/wallpapers/K/contents/images/1280x960.jpg", width=1280, height=960)
    write_photo(package / "usr/share/wallpapers/K/contents/images/960x1280.jpg", width=960, height=1280)
    write_photo(package / "usr/share/wallpapers/K/contents/screenshot.jpg", width=1280, height=960)
    (package / "usr/share/backgrounds/link.jpg").symlink_to("c_small.jpg")
    (package / "usr/share/backgrounds/tiny.jpg").write_bytes(b"small files are not even opened")
    source = PhotoSource(folder=package, licence="CC-BY-SA-4.0")
    entries = prepare(PrepareJob(photos=(source,)), tmp_path / "out")
    assert [(entry.name, entry.shape) for entry in entries] == [
        ("some-_a_middle", [1, 711, 1800, 3]),
        ("some-_b_large", [1, 812, 2600, 3]),
        ("some-_c_small", [1, 960, 1280, 3]),
        ("some-_upright", [1, 1280, 960, 3]),
        ("some-_K_1280x960", [1, 960, 1280, 3]),
    ]
    assert {(entry.kind, entry.licence, entry.source) for entry in entries} == {
        ("photo", "CC-BY-SA-4.0", "some-wallpapers")
    }


def test_photos_of_the_manifest_come_when_asked_for(tmp_path: Path) -> None:
    write_photo(tmp_path / "photos/p.jpg", width=1280, height=960)
    manifest = write_manifest(tmp_path, [row("photos/p.jpg")])
    assert prepare(PrepareJob(manifests=(manifest,)), tmp_path / "without") == []
    entries = prepare(PrepareJob(manifests=(manifest,), with_photos=True), tmp_path / "with")
    assert [entry.name for entry in entries] == ["p"]


def test_photos_under_a_licence_that_is_not_allowed_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CC-BY-NC"):
        PrepareJob(photos=(PhotoSource(folder=tmp_path, licence="CC-BY-NC-4.0"),))


def test_drawn_scenes_come_with_their_captions(tmp_path: Path) -> None:
    entries = prepare(PrepareJob(scenes=2, scene_sizes=((24, 40),), scene_frames=3), tmp_path)
    materials = load_materials(tmp_path)
    assert [material.caption for material in materials] == [caption(random_scene(number)) for number in range(2)]
    assert [entry.shape for entry in entries] == [[3, 24, 40, 3]] * 2
    assert (materials[1].frames_thwc[2] == render(random_scene(1), 2 / 16, height_px=24, width_px=40)).all()
    with pytest.raises(UsageError, match="scenes"):
        PrepareJob(scenes=-1)


def test_scenes_of_two_sizes_take_turns_and_leave_a_window_of_each(tmp_path: Path) -> None:
    job = PrepareJob(scenes=4, scene_sizes=((48, 80), (96, 160)), scene_frames=3, scene_window=32)
    entries = prepare(job, tmp_path / "windows")
    assert [entry.shape for entry in entries] == [[3, 32, 32, 3]] * 4
    whole = prepare(replace(job, scene_window=None), tmp_path / "whole")
    assert [entry.shape[1:3] for entry in whole] == [[48, 80], [96, 160]] * 2
    with pytest.raises(UsageError, match="must fit into every scene"):
        replace(job, scene_window=64)


def test_nothing_to_prepare_is_reported() -> None:
    with pytest.raises(UsageError, match="nothing to prepare"):
        PrepareJob()


def test_a_missing_clip_a_broken_photo_and_a_broken_manifest_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.mp4"):
        prepare(PrepareJob(manifests=(write_manifest(tmp_path, [row("gone.mp4")]),)), tmp_path / "out")
    broken = tmp_path / "package" / "broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(bytes(preparing.LEAST_FILE_BYTES))
    with pytest.raises(InputError, match=r"broken\.jpg"):
        prepare(PrepareJob(photos=(PhotoSource(folder=broken.parent, licence="MIT"),)), tmp_path / "out")
    (tmp_path / "manifest.json").write_text('{"other": []}')
    with pytest.raises(InputError, match=r"manifest\.json"):
        prepare(PrepareJob(manifests=(tmp_path / "manifest.json",)), tmp_path / "out")
    assert not (tmp_path / "out" / "materials.json").exists()


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"\[train\]"):
        prepare(PrepareJob(fonts=tmp_path), tmp_path / "out")


def test_pages_are_the_same_every_time_and_another_seed_gives_others(fonts: Path) -> None:
    words = ["word", "other", "third"]
    first, second = (list(render_pages(SMALL_PAGES, fonts=fonts, words=words)) for _ in range(2))
    assert [page.shape for page in first] == [(200, 320, 3), (200, 320, 3), (150, 240, 3)]
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert all(page.std() > 5 for page in first)
    config = PagesConfig(count=1, width_px=320, height_px=200, latin_fonts=("Test.ttf",), cjk_fonts=(), seed=6)
    (other,) = render_pages(config, fonts=fonts, words=words)
    assert (other != first[0]).any()


def test_a_missing_font_is_named_with_the_packages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"LiberationSans-BoldItalic\.ttf.*fonts-dejavu"):
        next(render_pages(PagesConfig(), fonts=tmp_path, words=["word"]))


def test_words_come_from_texts_the_first_in_letters_only(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("Licence 2.0, applies")
    (tmp_path / "b").write_text("version 3, 29")
    assert page_words([tmp_path / "a", tmp_path / "b"]) == ["Licence", "applies", "version", "3,", "29"]
    with pytest.raises(UsageError, match="need words"):
        page_words([])
    with pytest.raises(InputError, match="gone"):
        page_words([tmp_path / "gone"])
