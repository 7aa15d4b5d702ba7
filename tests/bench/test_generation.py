"""Generated clips are judged on prompts whose words were used in training and whose
sentences were not."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from benchmarks import generation
from benchmarks.generation import JUDGED, Prompt, read_prompts, scene_of, unsteadiness
from ultraflash_cli.train.captions import LONGEST_CAPTION, caption
from ultraflash_cli.train.scenes import Colour, Kind, Motion, Place, Scene, Time, Weather, random_scene

TRIAL = "--model tiny-random --res 480p --seconds 1 --device cpu --threads 1"


def words_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def test_sixty_prompts_ask_for_everything_about_equally_often() -> None:
    prompts = read_prompts()
    assert len({words_of(prompt.prompt) for prompt in prompts}) == len(prompts) == 60
    assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(get_args(Kind), 10)
    for name, options, least in (("colour", Colour, 6), ("time", Time, 10), ("motion", Motion, 10)):
        asked = Counter(getattr(prompt, name) for prompt in prompts)
        assert min(asked[word] for word in get_args(options)) >= least
        assert asked[None] <= 6
    for name, options in (("place", Place), ("weather", Weather)):
        assert {getattr(prompt, name) for prompt in prompts} <= {*get_args(options), None}


def test_prompts_use_known_words_only_and_say_what_they_are_said_to_say() -> None:
    said: dict[str, set[object]] = {}
    for seed in range(6000):
        scene = random_scene(seed)
        for word in words_of(caption(scene, seed)):
            said.setdefault(word, set()).add(scene.time)
    for prompt in read_prompts():
        words = words_of(prompt.prompt)
        assert set(words) <= said.keys(), set(words) - said.keys()
        assert len(words) <= LONGEST_CAPTION
        assert prompt.colour in words
        times = [said[word] for word in words if len(said[word]) == 1]
        assert all(each == {prompt.time} for each in times)
        assert (prompt.time is None) == (not times)
        aside = {way for way in ("left", "right") for word in words if word.startswith(way)}
        if prompt.motion == "up" or prompt.motion is None:
            assert not aside
        elif f"from {'right' if prompt.motion == 'left' else 'left'} to {prompt.motion}" not in prompt.prompt.lower():
            assert aside == {prompt.motion}


def test_no_caption_is_one_of_the_prompts() -> None:
    for number, prompt in enumerate(read_prompts()):
        words = words_of(prompt.prompt)
        said = {words_of(caption(scene_of(prompt, number), wording)) for wording in range(300)}
        assert len(said) > 200
        assert words not in said


def test_what_a_prompt_leaves_open_is_plain_in_its_scene() -> None:
    prompt = Prompt(prompt="", kind="ball", colour="red", time=None, motion=None, place=None, weather=None, count=2)
    scene = scene_of(prompt, 5)
    assert isinstance(scene, Scene) and scene.thing is not None
    assert (scene.time, scene.weather, scene.seed) == ("day", "clear", 5)
    assert (scene.thing.kind, scene.thing.colour, scene.thing.count) == ("ball", "red", 2)
    assert scene_of(replace(prompt, time="dusk", place="city"), 5).place == "city"


def test_motion_is_steady_and_flicker_is_not() -> None:
    rng = torch.Generator().manual_seed(0)
    wide = torch.nn.functional.avg_pool2d(torch.rand((1, 3, 40, 80), generator=rng) * 255, 3, 1)[0]
    still = wide[:, :32, :48].expand(5, 3, 32, 48)
    moving = torch.stack([wide[:, :32, 2 * step : 2 * step + 48] for step in range(5)])
    flicker = still + torch.tensor([0.0, 6, 0, 6, 0])[:, None, None, None]
    assert unsteadiness(still) == 0
    assert unsteadiness(moving) < 0.5 * float((moving[1:] - moving[:-1]).square().mean().sqrt())
    assert 2 < unsteadiness(flicker) < 6.01


def test_clips_are_generated_judged_kept_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--first", "2", "--options", TRIAL, "--work", str(tmp_path / "work")]
    arguments += ["--out", str(tmp_path / "results" / "g.json"), "--sheet", str(tmp_path / "sheet.png")]
    generation.main(arguments)
    printed = capsys.readouterr()
    assert "time of day" in printed.out.splitlines()[0]
    assert [line[:3] for line in printed.err.splitlines() if line[:1].isdigit()] == ["1/2", "2/2"]
    found = json.loads((tmp_path / "results" / "g.json").read_text())
    assert found["settings"]["options"][:2] == ["--model", "tiny-random"]
    assert found["judge"]["accuracy"]["unseen"]
    assert {*JUDGED, "unsteady_ratio"} <= found["summary"].keys()
    assert [row["prompt"] for row in found["prompts"]] == [prompt.prompt for prompt in read_prompts()[:2]]
    assert all(row["unsteady"] > 0 and row["right"].keys() == set(JUDGED) for row in found["prompts"])
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "work").iterdir())) == 2

    def refuse(command: Sequence[str]) -> int:
        raise AssertionError("a clip that is there is made again")

    monkeypatch.setattr(generation, "ultraflash", refuse)
    generation.main(arguments)
    again = json.loads((tmp_path / "results" / "g.json").read_text())
    assert again["prompts"] == found["prompts"]
    with pytest.raises(AssertionError, match="made again"):
        generation.main([*arguments, "--seed", "7"])


def test_a_sheet_has_a_place_for_every_clip() -> None:
    frames = np.full((3, 24, 40, 3), 9, np.uint8)
    sheet = generation.contact_sheet([("a", frames), ("b", frames), ("c", frames)])
    row = 24 + generation.LINE_PX + 6
    assert sheet.shape == (2 * row, 2 * (80 + generation.LINE_PX), 3)
    assert (sheet[row : row + 24, :80] == 9).all()
