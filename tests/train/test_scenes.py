"""Scenes drawn by code: the same every time, saying what they show, moving where they say."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from ultraflash_cli.main import main
from ultraflash_cli.train.scenes import (
    Colour,
    Kind,
    Place,
    Scene,
    Thing,
    Time,
    Weather,
    caption,
    contact_sheet,
    random_scene,
    render,
)

SIZE = {"height_px": 96, "width_px": 168}
EMPTY = Scene(time="day", place="field", weather="clear", thing=None, seed=3)


def with_thing(kind: Kind, colour: Colour, motion: str, place: Place = "field") -> Scene:
    thing = Thing(kind=kind, colour=colour, motion=motion, speed=0.15)  # pyright: ignore[reportArgumentType]
    return replace(EMPTY, place=place, thing=thing)


def middle(scene: Scene, second: float) -> tuple[float, float]:
    """The mean place (x, y) of what the thing changes in the picture."""
    plain = render(replace(scene, thing=None), second, **SIZE).astype(int)
    changed = np.abs(render(scene, second, **SIZE).astype(int) - plain).sum(axis=2) > 60
    rows, columns = np.nonzero(changed)
    return columns.mean(), rows.mean()


def test_a_scene_is_the_same_every_time_and_another_one_is_not() -> None:
    assert np.array_equal(render(random_scene(6), 1.5, **SIZE), render(random_scene(6), 1.5, **SIZE))
    assert not np.array_equal(render(random_scene(6), 1.5, **SIZE), render(random_scene(7), 1.5, **SIZE))


@pytest.mark.parametrize(("height_px", "width_px"), [(48, 64), (97, 171), (120, 90)])
def test_any_size_is_drawn(height_px: int, width_px: int) -> None:
    for seed in range(6):
        picture = render(random_scene(seed), 0.7, height_px=height_px, width_px=width_px)
        assert picture.shape == (height_px, width_px, 3) and picture.dtype == np.uint8
        assert picture.std() > 5


def test_every_word_of_the_vocabulary_turns_up() -> None:
    scenes = [random_scene(seed) for seed in range(400)]
    things = [scene.thing for scene in scenes if scene.thing is not None]
    assert {scene.time for scene in scenes} == set(get_args(Time))
    assert {scene.place for scene in scenes} == set(get_args(Place))
    assert {scene.weather for scene in scenes} == set(get_args(Weather))
    assert {thing.kind for thing in things} == set(get_args(Kind))
    assert {thing.colour for thing in things} == set(get_args(Colour))
    assert {thing.motion for thing in things} == {"left", "right", "up"}
    assert all(scene.place == "sea" for scene in scenes if scene.thing and scene.thing.kind == "boat")


def test_a_caption_names_what_is_there_in_varied_words() -> None:
    scene = replace(
        EMPTY, time="sunset", place="snowy mountains", thing=Thing(kind="balloon", colour="red", motion="up")
    )
    said = {caption(scene, wording) for wording in range(40)}
    assert len(said) > 10
    for words in said:
        assert words.startswith("a red ") and "balloon" in words
        assert "mountains" in words or "peaks" in words
        assert "sunset" in words or "evening" in words or "orange" in words
    assert caption(scene, 3) == caption(scene, 3)


def test_one_and_many_are_told_apart() -> None:
    three = replace(EMPTY, thing=Thing(kind="bird", colour="orange", motion="left", count=3))
    assert caption(three).startswith("three orange birds ")
    one = replace(EMPTY, thing=Thing(kind="bird", colour="orange", motion="left"))
    assert caption(one).startswith("an orange bird ")


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind != "boat"])
@pytest.mark.parametrize(("motion", "sign"), [("left", -1), ("right", 1)])
def test_things_move_where_they_say(kind: Kind, motion: str, sign: int) -> None:
    scene = with_thing(kind, "purple", motion)
    before, after = middle(scene, 0.0)[0], middle(scene, 0.5)[0]
    assert sign * (after - before) > 2


@pytest.mark.parametrize("kind", ["balloon", "lantern"])
def test_what_rises_goes_up(kind: Kind) -> None:
    scene = with_thing(kind, "blue", "up")
    assert middle(scene, 0.9)[1] < middle(scene, 0.1)[1] - 5


@pytest.mark.parametrize(("colour", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_a_thing_has_its_colour(colour: Colour, channel: int) -> None:
    scene = with_thing("ball", colour, "right")
    plain, drawn = (render(each, 0.2, **SIZE).astype(int) for each in (replace(scene, thing=None), scene))
    changed = np.abs(drawn - plain).sum(axis=2) > 120
    assert drawn[changed].mean(axis=0).argmax() == channel


def test_night_is_darker_than_day_and_weather_shows() -> None:
    day, night, rain = (
        render(replace(EMPTY, **change), 0.4, **SIZE).astype(float)
        for change in ({}, {"time": "night"}, {"weather": "rain"})
    )
    assert night.mean() < 0.5 * day.mean()
    assert np.abs(rain - day).mean() > 3


def test_a_sheet_shows_each_scene_twice_and_the_command_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = contact_sheet([random_scene(seed) for seed in range(4)], height_px=32, width_px=48)
    assert sheet.shape == (2 * 32, 6 * 48, 3)
    assert not sheet[32:, 2 * 48 :].any() and sheet[32:, : 2 * 48].any()
    picture = tmp_path / "sheet.png"
    assert main(["train", "preview-scenes", "-o", str(picture), "--count", "2", "--seed", "5"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["5", "6"]
    assert main(["train", "preview-scenes", "-o", str(picture), "--count", "0"]) == 2
