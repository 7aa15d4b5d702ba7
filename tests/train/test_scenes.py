"""Scenes rendered by code: deterministic, described by their captions, and moving as
described."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from tests.train.drawn import render
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.main import main
from ultraflash_cli.train.captions import LONGEST_CAPTION, Usual, caption
from ultraflash_cli.train.drawing import Renderer, contact_sheet
from ultraflash_cli.train.scenes import COLOURS, Colour, Kind, Place, Scene, Thing, Time, Weather, random_scene

SIZE = {"height_px": 96, "width_px": 168}
EMPTY = Scene(time="day", place="field", weather="clear", thing=None, seed=3)


def with_thing(kind: Kind, colour: Colour, motion: str, place: Place = "field") -> Scene:
    thing = Thing(kind=kind, colour=colour, motion=motion, speed=0.15)  # pyright: ignore[reportArgumentType]
    return replace(EMPTY, place=place, thing=thing)


def middle(scene: Scene, second: float) -> tuple[float, float]:
    """Return the mean position (x, y) of the pixels that the thing changes."""
    plain = render(replace(scene, thing=None), second, **SIZE).astype(int)
    changed = np.abs(render(scene, second, **SIZE).astype(int) - plain).sum(axis=2) > 60
    rows, columns = np.nonzero(changed)
    return columns.mean(), rows.mean()


def test_a_scene_is_the_same_every_time_and_another_one_is_not() -> None:
    assert np.array_equal(render(random_scene(6), 1.5, **SIZE), render(random_scene(6), 1.5, **SIZE))
    assert not np.array_equal(render(random_scene(6), 1.5, **SIZE), render(random_scene(7), 1.5, **SIZE))


def test_sky_and_things_may_lie_as_in_other_scenes() -> None:
    scene = replace(with_thing("balloon", "red", "right"), weather="clouds")
    plain = render(scene, 1.0, **SIZE)
    assert np.array_equal(render(replace(scene, sky_seed=3, thing_seed=3), 1.0, **SIZE), plain)
    empty = replace(scene, thing=None)
    land = slice(75, None)
    other_sky = render(replace(empty, sky_seed=8), 1.0, **SIZE)
    assert np.array_equal(other_sky[land], render(empty, 1.0, **SIZE)[land])
    assert not np.array_equal(other_sky, render(empty, 1.0, **SIZE))
    assert np.array_equal(render(replace(empty, thing_seed=8), 1.0, **SIZE), render(empty, 1.0, **SIZE))
    assert middle(replace(scene, thing_seed=8), 1.0) != middle(scene, 1.0)
    assert middle(replace(scene, sky_seed=8), 1.0) == pytest.approx(middle(scene, 1.0), abs=1)


def test_a_caption_may_leave_out_what_is_usual_and_nothing_else() -> None:
    usual = Usual(time="sunset", place="snowy mountains", colour="green", motion="left")
    said = [re.findall(r"\w+", caption(BALLOON, wording, usual=usual)) for wording in range(300)]
    assert 0.5 < share(said, "green") < 0.7 and 0.5 < share(said, "snowy") < 0.8
    upwards = {"up", "upward", "upwards", "higher", "rising", "rises", "ascending", "ascends", "climbing", "climbs"}
    assert share(said, *upwards) == 1, "rising is not usual here"
    other = replace(usual, colour="red", place="sea", time="night")
    said = [re.findall(r"\w+", caption(BALLOON, wording, usual=other)) for wording in range(300)]
    assert share(said, "green") == share(said, "snowy") == 1
    assert share(said, "sunset", "evening", "sundown") == 1


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


def words_of(scene: Scene, wording: int = 0) -> list[str]:
    return re.findall(r"\w+", caption(scene, wording))


def share(said: list[list[str]], *words: str) -> float:
    """Return the fraction of these captions that contain one of these words."""
    return sum(bool(set(words) & set(each)) for each in said) / len(said)


BALLOON = replace(
    EMPTY, time="sunset", place="snowy mountains", thing=Thing(kind="balloon", colour="green", motion="up")
)


def test_a_caption_names_what_is_there_in_varied_words() -> None:
    said = [words_of(BALLOON, wording) for wording in range(300)]
    assert len({" ".join(each) for each in said}) > 200
    assert len({each[0] for each in said}) > 10
    assert share(said, "green") == share(said, "balloon") == 1
    assert share(said, "snowy") > 0.8
    assert 0.8 < share(said, "sunset", "evening", "sundown") < 1
    upwards = {"up", "upward", "upwards", "higher", "rising", "rises", "ascending", "ascends", "climbing", "climbs"}
    assert share(said, *upwards) > 0.85
    assert caption(BALLOON, 3) == caption(BALLOON, 3)


@pytest.mark.parametrize(("motion", "other"), [("left", "right"), ("right", "left")])
def test_two_captions_of_three_say_the_direction_of_motion(motion: str, other: str) -> None:
    said = [words_of(with_thing("car", "red", motion), wording) for wording in range(300)]
    assert 0.67 < share(said, *(motion + ending for ending in ("", "ward", "wards"))) < 0.95
    wrong = [" ".join(each) for each in said if share([each], other, other + "ward", other + "wards")]
    assert all(f"from {other} to {motion}" in each for each in wrong)


def test_captions_fit_the_prompt_encoder() -> None:
    for seed in range(1500):
        assert len(words_of(random_scene(seed), seed)) <= LONGEST_CAPTION < PromptEncoderConfig().text_len


def test_no_word_of_one_time_place_kind_or_colour_is_used_for_another() -> None:
    """Words in every caption, such as "the", have no meaning; words in only one group
    mean that group."""
    scenes = [random_scene(seed) for seed in range(4000)]
    said = [set(words_of(scene, 1)) for scene in scenes]

    def groups(word: str, of: Callable[[Scene], object]) -> set[object]:
        return {of(scene) for scene, words in zip(scenes, said, strict=True) if word in words}

    def kind(scene: Scene) -> object:
        return scene.thing and scene.thing.kind

    def colour(scene: Scene) -> object:
        return scene.thing and scene.thing.colour

    def motion(scene: Scene) -> object:
        return scene.thing and scene.thing.motion

    for word in (
        "morning",
        "dawn",
        "sunrise",
        "noon",
        "midday",
        "day",
        "evening",
        "sunset",
        "dusk",
        "twilight",
        "night",
    ):
        assert len(groups(word, lambda scene: scene.time)) == 1, word
    for word in ("snow", "winter", "snowfall", "rain", "rainy", "clear", "cloudy", "clouds"):
        assert len(groups(word, lambda scene: scene.weather)) == 1, word
    for word in ("snowy", "rocky", "hills", "sea", "ocean", "waves", "city", "town", "meadow", "field", "fields"):
        assert len(groups(word, lambda scene: scene.place)) == 1, word
    for word in ("balloon", "bird", "boats", "ball", "car", "lanterns", "sailing", "driving", "bouncing"):
        assert len(groups(word, kind)) == 1, word
    for word in (*get_args(Colour), "crimson", "violet"):
        assert len(groups(word, colour)) == 1, word
    for word in ("leftwards", "rightward", "upwards", "rising", "climbing"):
        assert len(groups(word, motion)) == 1, word


def test_one_and_many_are_distinguished() -> None:
    birds = Thing(kind="bird", colour="orange", motion="left", count=3)
    three = replace(EMPTY, thing=birds)
    said = [words_of(three, wording) for wording in range(100)]
    assert share(said, "three") == share(said, "birds", "seagulls") == 1
    assert share(said, "bird", "seagull", "flies") == 0
    said = [words_of(replace(three, thing=replace(birds, count=1)), wording) for wording in range(100)]
    assert share(said, "birds", "seagulls", "fly", "two", "three") == 0
    assert any("an orange" in " ".join(each) for each in said)
    assert not any("a orange" in " ".join(each) for each in said)


def test_a_scene_without_a_thing_has_captions_too() -> None:
    said = [words_of(EMPTY, wording) for wording in range(60)]
    assert share(said, "field", "fields", "meadow", "grassland") == 1
    assert len({" ".join(each) for each in said}) > 20


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind != "boat"])
@pytest.mark.parametrize(("motion", "sign"), [("left", -1), ("right", 1)])
def test_things_move_where_they_say(kind: Kind, motion: str, sign: int) -> None:
    scene = with_thing(kind, "purple", motion)
    before, after = middle(scene, 0.0)[0], middle(scene, 0.5)[0]
    assert sign * (after - before) > 2


@pytest.mark.parametrize("kind", ["balloon", "lantern"])
def test_rising_things_move_up(kind: Kind) -> None:
    scene = with_thing(kind, "blue", "up")
    assert middle(scene, 0.9)[1] < middle(scene, 0.1)[1] - 5


@pytest.mark.parametrize(("colour", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_a_thing_has_its_colour(colour: Colour, channel: int) -> None:
    scene = with_thing("ball", colour, "right")
    plain, drawn = (render(each, 0.2, **SIZE).astype(int) for each in (replace(scene, thing=None), scene))
    changed = np.abs(drawn - plain).sum(axis=2) > 120
    assert drawn[changed].mean(axis=0).argmax() == channel


@pytest.mark.parametrize("time", get_args(Time))
@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_thing_keeps_its_colour_in_any_light_and_stands_out(kind: Kind, time: Time) -> None:
    """Checked around the middle of the pixels that a thing changes."""
    scene = replace(with_thing(kind, "red", "right", "sea" if kind == "boat" else "hills"), time=time)
    assert scene.thing is not None
    plain, seen = render(replace(scene, thing=None), 2.5, **SIZE).astype(float), dict[Colour, npt.NDArray[Any]]()
    for colour in get_args(Colour):
        drawn = render(replace(scene, thing=replace(scene.thing, colour=colour)), 2.5, **SIZE).astype(float)
        rows, columns = np.nonzero(np.abs(drawn - plain).sum(axis=2) > 40)
        assert len(rows) > 0.006 * plain[..., 0].size, f"a {colour} {kind} can be seen"
        near = np.hypot(rows - np.median(rows), columns - np.median(columns)) < 0.06 * SIZE["height_px"]
        seen[colour] = np.median(drawn[rows[near], columns[near]], axis=0)
    channels: list[Colour] = ["red", "green", "blue"]
    for channel, colour in enumerate(channels):
        assert seen[colour].argmax() == channel
        assert seen[colour].max() > 0.6 * 255 * max(COLOURS[colour])
    assert seen["white"].min() > 150 and seen["black"].max() < 90
    assert min(np.abs(one - other).sum() for one, other in combinations(seen.values(), 2)) > 40


@pytest.mark.parametrize("seed", range(40))
def test_things_are_in_the_picture_for_most_of_five_seconds(seed: int) -> None:
    scene = random_scene(seed)
    if scene.thing is None:
        return
    plain, shown = Renderer(replace(scene, thing=None), **SIZE), Renderer(scene, **SIZE)
    seen = [
        (np.abs(shown.frame(second).astype(int) - plain.frame(second)).sum(axis=2) > 30).sum()
        for second in (0.5, 1.5, 2.5, 3.5, 4.5)
    ]
    assert min(seen[1:4]) > 0.6 * max(seen) and min(seen) > 0.15 * max(seen)


def test_a_renderer_draws_frames_in_any_order() -> None:
    for seed in range(8):
        renderer = Renderer(random_scene(seed), **SIZE)
        later, first = renderer.frame(3.0), renderer.frame(0.0)
        assert np.array_equal(first, render(random_scene(seed), 0.0, **SIZE))
        assert np.array_equal(later, renderer.frame(3.0))


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
