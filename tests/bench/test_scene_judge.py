"""The judge learns only from rendered scenes, is reproducible, can be saved, and is as
accurate as its file states."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import scene_judge, scene_judge_training
from benchmarks.scene_judge import HEADS, about_judge, load_judge
from benchmarks.scene_judge_training import JudgeRecipe, accuracy, drawn_clip
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.scenes import Scene, Thing

SMALL = JudgeRecipe(steps=3, batch=4, first=6, kept=7, glance_steps=2, glance_first=4)
RED_CAR = Scene(
    time="day", place="hills", weather="clear", thing=Thing(kind="car", colour="red", motion="left", speed=0.15), seed=4
)


def clip_of(scene: Scene, *, frames: int = 65) -> np.ndarray:
    renderer = Renderer(scene, height_px=120, width_px=208)
    return np.stack([renderer.frame(number / 16) for number in range(frames)])


def test_training_is_the_same_every_time_and_the_file_keeps_it(tmp_path: Path) -> None:
    heard = list[dict[str, float]]()
    first = scene_judge_training.train(SMALL, lambda _, right: heard.append(right))
    again, other = scene_judge_training.train(SMALL), scene_judge_training.train(replace(SMALL, seed=2))
    clip = drawn_clip(3)[0][None]
    logits = [judge(clip)["kind"].detach() for judge in (first, again, other)]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    assert len(heard) == SMALL.steps + SMALL.glance_steps and heard[0].keys() == HEADS.keys()
    path = tmp_path / "judge.safetensors"
    scene_judge.save_judge(first, path, {"steps": 3})
    torch.testing.assert_close(load_judge(path)(clip)["kind"].detach(), logits[0], atol=0.02, rtol=0.02)
    assert about_judge(path) == {"steps": 3}


def test_softened_clips_differ_and_stay_pictures() -> None:
    clips = torch.stack([drawn_clip(number)[0] for number in range(4)])
    soft = scene_judge_training.soften(clips, torch.Generator().manual_seed(1))
    assert soft.shape == clips.shape and soft.min() >= 0 and soft.max() <= 1
    changed = (soft - clips).abs().mean(dim=(1, 2, 3, 4))
    assert (changed > 0.002).all() and (changed < 0.2).all()


def test_a_scene_without_a_thing_has_no_colour_to_name() -> None:
    labels = scene_judge_training.labels_of(replace(RED_CAR, thing=None))
    assert labels["colour"] == scene_judge.UNSAID
    assert HEADS["kind"][labels["kind"]] == HEADS["motion"][labels["motion"]] == "none"
    labels = scene_judge_training.labels_of(RED_CAR)
    assert {name: HEADS[name][label] for name, label in labels.items()} == {
        "kind": "car",
        "colour": "red",
        "time": "day",
        "motion": "left",
        "place": "hills",
    }


def test_the_judge_at_hand_reached_95_percent_and_is_small() -> None:
    about = about_judge()
    assert about["scenes"] >= 200 and about["accuracy"]["unseen"].keys() == HEADS.keys()
    assert min(about["accuracy"]["unseen"].values()) >= 0.95
    assert scene_judge.WEIGHTS.stat().st_size < 2**20


def test_the_judge_at_hand_is_right_on_scenes_it_has_not_seen() -> None:
    right = accuracy(load_judge(), 40, size=scene_judge.FINE)
    assert min(right.values()) >= 0.85 and np.mean(list(right.values())) >= 0.93


def test_the_judge_sees_what_changes_in_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = load_judge()
    seen = scene_judge.verdict(judge, clip_of(RED_CAR))
    assert seen == {"kind": "car", "colour": "red", "time": "day", "motion": "left", "place": "hills"}
    assert scene_judge.verdict(judge, clip_of(RED_CAR)[::-1])["motion"] == "right"
    assert scene_judge.verdict(judge, clip_of(replace(RED_CAR, time="night")))["time"] == "night"
    assert scene_judge.verdict(judge, clip_of(replace(RED_CAR, thing=None)))["kind"] == "none"


def test_the_command_says_how_often_it_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert scene_judge_training.main(["check", "--scenes", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["unseen"].keys() == HEADS.keys()
