"""Train the judge of `scene_judge.py`, and measure its accuracy. It must not learn from
any model's clips; to be fair to soft or blotchy ones, its training clips are blurred,
warped, blotched, recoloured and blended at random.

    python -m benchmarks.scene_judge_training train --out benchmarks/scene_judge.safetensors
    python -m benchmarks.scene_judge_training check         how often it is right on scenes that it has not seen
    python -m benchmarks.scene_judge_training judge CLIP... what it sees in clips
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.scene_judge import (
    FINE,
    GLANCE,
    HEADS,
    SEEN,
    STEP_S,
    UNSAID,
    WEIGHTS,
    SceneJudge,
    load_judge,
    piece_around,
    save_judge,
    shrink,
    verdict,
)
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.scenes import Scene, random_scene
from ultraflash_cli.video.plain import read_plain_frames
from ultraflash_cli.video.probe import probe

__all__ = ["JudgeRecipe", "accuracy", "drawn_clip", "labels_of", "main", "soften", "train"]

TRAIN_SEED, CHECK_SEED = 50_000_000, 70_000_000
"""First numbers of the scenes for training and for checking; a generator's recipe uses
different ones."""
LATEST_START_S = 1.5
WOBBLE = 16
"""Maximum displacement of a glance in training, in pixels: one cell of the survey."""
DRAWN_FRAMES = 3

OnStep = Callable[[int, dict[str, float]], None]
"""Function that receives a step's number and the accuracy of each head on its batch."""


@dataclass(frozen=True, kw_only=True)
class JudgeRecipe:
    """Settings of a judge's training."""

    steps: int = 800
    batch: int = 32
    """Clips per step."""
    fresh: int = 1
    """New scenes rendered before every step; they replace the oldest."""
    kept: int = 3000
    """Maximum number of scenes kept."""
    first: int = 600
    """Scenes rendered before the first step."""
    frames: int = 2
    """Frames per clip in training."""
    glance_steps: int = 700
    """Steps for learning to distinguish kinds; they come last and render separate
    scenes."""
    glance_first: int = 500
    """Scenes rendered before the first of these steps."""
    rate: float = 4e-3
    seed: int = 1

    def __post_init__(self) -> None:
        assert 2 <= self.frames <= DRAWN_FRAMES, "motion needs two frames"
        assert 1 <= self.first <= self.kept, "there are scenes to begin with"


def labels_of(scene: Scene) -> dict[str, int]:
    """Return the number of each head's word, or `UNSAID`."""
    thing = scene.thing
    words: dict[str, str | None] = {
        "kind": thing.kind if thing else "none",
        "colour": thing.colour if thing else None,
        "time": scene.time,
        "motion": thing.motion if thing else "none",
        "place": scene.place,
    }
    return {name: UNSAID if word is None else HEADS[name].index(word) for name, word in words.items()}


def drawn_clip(seed: int, *, size: tuple[int, int] = FINE, frames: int = DRAWN_FRAMES) -> tuple[Tensor, Scene]:
    """Return frames [T, 3, *FINE] of the scene of this number, and the scene."""
    scene = random_scene(seed)
    return _drawn(scene, seed, size, frames), scene


def _drawn(scene: Scene, seed: int, size: tuple[int, int], frames: int) -> Tensor:
    start = np.random.default_rng((seed, 21)).uniform(0, LATEST_START_S)
    renderer = Renderer(scene, height_px=size[0], width_px=size[1])
    return shrink(np.stack([renderer.frame(start + STEP_S * i) for i in range(frames)]))


@dataclass(frozen=True)
class _Lesson:
    """A training clip."""

    frames_tchw_u8: Tensor
    """Coarse frames."""
    labels: dict[str, int]
    place: Tensor
    """Position of the thing: shares [T, *SEEN] that sum to 1, or zeros."""


def _bytes(frames: Tensor) -> Tensor:
    return (frames * 255).round().to(torch.uint8)


def _empty(scene: Scene, seed: int) -> Tensor:
    """Return the frames of `drawn_clip` without the thing."""
    return _drawn(replace(scene, thing=None), seed, FINE, DRAWN_FRAMES)


def _place(frames: Tensor, empty: Tensor) -> Tensor:
    """Return the shares of a thing's pixels that lie in each cell [T, *SEEN]; zeros if
    there are none."""
    changed = ((frames - empty).abs().sum(dim=1, keepdim=True) > 0.15).float()
    place = F.adaptive_avg_pool2d(changed, SEEN)[:, 0]
    return place / place.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)


def _lesson(seed: int) -> _Lesson:
    fine, scene = drawn_clip(seed)
    coarse = F.avg_pool2d(fine, 2)
    place = _place(coarse, F.avg_pool2d(_empty(scene, seed), 2)) if scene.thing else torch.zeros(len(fine), *SEEN)
    return _Lesson(_bytes(coarse), labels_of(scene), place)


def _glances(seed: int, rng: torch.Generator) -> tuple[Tensor, int] | None:
    """Return crops around a scene's thing, somewhat wider than a glance, and its kind;
    None without a thing."""
    fine, scene = drawn_clip(seed)
    if scene.thing is None:
        return None
    place = _place(fine, _empty(scene, seed)).flatten(1)
    shown = [number for number in range(len(fine)) if place[number].any()]
    if not shown:
        return None
    cells = torch.multinomial(place[shown].square(), 1, generator=rng).flatten().tolist()
    pieces = [piece_around(fine[number], cell, GLANCE + WOBBLE) for number, cell in zip(shown, cells, strict=True)]
    return _bytes(torch.stack(pieces)), labels_of(scene)["kind"]


def soften(clips_btchw: Tensor, rng: torch.Generator, *, reach_px: int = 1) -> Tensor:
    """Degrade clips like the pictures of small models: soft, warped, blotched, off in
    colour, blended in time."""
    edge, size = [reach_px] * 4, 2 * reach_px + 1
    count, frames = clips_btchw.shape[:2]

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=rng)

    x = clips_btchw + draw(0, 0.35, count, 1, 1, 1, 1) * (clips_btchw.roll(1, dims=1) - clips_btchw) * (
        torch.arange(frames)[None, :, None, None, None] > 0
    )
    bend = torch.randn((count, 2, 4, 6), generator=rng) * draw(0, 0.035, count, 1, 1, 1)
    bend = F.interpolate(bend, size=x.shape[-2:], mode="bicubic").permute(0, 2, 3, 1)
    straight = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), [count, 1, *x.shape[-2:]], align_corners=False)
    x = F.grid_sample(x.flatten(1, 2), straight + bend, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(x, edge, mode="replicate"), size, 1)
    softer = F.avg_pool2d(F.pad(soft, edge, mode="replicate"), size, 1)
    share = draw(-0.6, 1, count, 1, 1, 1)
    x = x + (soft - x) * (2 * share).clamp(0, 1) + (softer - soft) * (2 * share - 1).clamp(0, 1)
    x = x.unflatten(1, (frames, 3))
    blotches = F.interpolate(
        torch.randn((count * frames, 3, 15, 26), generator=rng), size=x.shape[-2:], mode="bilinear"
    ).view_as(x)
    x = x + blotches * draw(0, 0.035, count, 1, 1, 1, 1)
    x = x + torch.randn(x.shape, generator=rng) * draw(0, 0.03, count, 1, 1, 1, 1)
    grey = x.mean(dim=2, keepdim=True)
    x = grey + (x - grey) * draw(0.8, 1.1, count, 1, 1, 1, 1)
    x = x.clamp(1e-3, 1) ** draw(0.87, 1.15, count, 1, 1, 1, 1)
    x = x * draw(0.93, 1.07, count, 1, 3, 1, 1) + draw(-0.03, 0.03, count, 1, 3, 1, 1)
    return x.clamp(0, 1)


def train(recipe: JudgeRecipe, on_step: OnStep | None = None) -> SceneJudge:
    """Return a judge trained only on rendered scenes; ``on_step`` receives the accuracy
    of each head on the batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        judge = SceneJudge()
    _learn_survey(judge, recipe, on_step)
    _learn_glance(judge, recipe, on_step)
    return judge.eval()


def _schedule(
    judge: SceneJudge, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=0.02)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )


def _learn_glance(judge: SceneJudge, recipe: JudgeRecipe, on_step: OnStep | None = None) -> None:
    """Train a judge to distinguish kinds in close-ups; the rest of it is unchanged."""
    rng = torch.Generator().manual_seed(recipe.seed + 1)
    optimizer, schedule = _schedule(judge, recipe.rate, recipe.glance_steps)
    glances: list[tuple[Tensor, int]] = []
    drawn = 0
    for step in range(recipe.glance_steps):
        for _ in range(recipe.fresh if step else recipe.glance_first):
            glance = _glances(TRAIN_SEED + (recipe.seed + 9) * 1_000_000 + drawn, rng)
            glances += [] if glance is None else [glance]
            drawn += 1
        batch, wanted = list[Tensor](), list[int]()
        for i in torch.randint(len(glances), (2 * recipe.batch,), generator=rng).tolist():
            pieces, kind = glances[i]
            frame, x, y = (
                int(torch.randint(most, (1,), generator=rng)) for most in (len(pieces), WOBBLE + 1, WOBBLE + 1)
            )
            batch.append(pieces[frame, :, y : y + GLANCE, x : x + GLANCE])
            wanted.append(kind)
        pieces = torch.stack(batch).float() / 255
        mirror = torch.rand(len(pieces), generator=rng) < 0.5
        pieces[mirror] = pieces[mirror].flip(-1)
        said = judge.kinds(soften(pieces[:, None], rng, reach_px=2)[:, 0])
        optimizer.zero_grad()
        F.cross_entropy(said, torch.tensor(wanted)).backward()
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step + 1, {"glance": _share_right(said, torch.tensor(wanted))})


def _learn_survey(judge: SceneJudge, recipe: JudgeRecipe, on_step: OnStep | None) -> None:
    rng = torch.Generator().manual_seed(recipe.seed)
    optimizer, schedule = _schedule(judge, recipe.rate, recipe.steps)
    lessons: list[_Lesson] = []
    drawn = 0
    for step in range(recipe.steps):
        for _ in range(recipe.fresh if step else recipe.first):
            lesson = _lesson(TRAIN_SEED + recipe.seed * 1_000_000 + drawn)
            if drawn < recipe.kept:
                lessons.append(lesson)
            else:
                lessons[drawn % recipe.kept] = lesson
            drawn += 1
        picked = [lessons[i] for i in torch.randint(len(lessons), (recipe.batch,), generator=rng).tolist()]
        starts = torch.randint(DRAWN_FRAMES - recipe.frames + 1, (recipe.batch,), generator=rng).tolist()
        cuts = [(lesson, slice(at, at + recipe.frames)) for lesson, at in zip(picked, starts, strict=True)]
        batch = torch.stack([lesson.frames_tchw_u8[cut] for lesson, cut in cuts]).float() / 255
        place = torch.stack([lesson.place[cut][:-1] for lesson, cut in cuts])
        wanted = {name: torch.tensor([lesson.labels[name] for lesson in picked]) for name in HEADS}
        mirror = torch.rand(recipe.batch, generator=rng) < 0.5
        batch[mirror], place[mirror] = batch[mirror].flip(-1), place[mirror].flip(-1)
        wanted["motion"] = torch.where(mirror, _MIRRORED[wanted["motion"]], wanted["motion"])
        said, looked = judge.survey(soften(batch, rng))
        losses = [F.cross_entropy(said[name], wanted[name], ignore_index=UNSAID) for name in HEADS]
        losses.append(-(place * looked.flatten(2).log_softmax(dim=2).view_as(place)).sum(dim=(2, 3)).mean() * 0.3)
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step + 1, {name: _share_right(said[name], wanted[name]) for name in HEADS})


_OTHER_SIDE = {"left": "right", "right": "left"}
_MIRRORED = torch.tensor([HEADS["motion"].index(_OTHER_SIDE.get(word, word)) for word in HEADS["motion"]])
"""Motion of a mirrored clip, by the original motion."""


def _share_right(said: Tensor, wanted: Tensor) -> float:
    asked = wanted != UNSAID
    return float((said.argmax(dim=1) == wanted)[asked].float().mean())


@torch.no_grad()
def accuracy(
    judge: SceneJudge, count: int, *, size: tuple[int, int] = (480, 832), softened: bool = False
) -> dict[str, float]:
    """Return the accuracy of each head on held-out scenes, unchanged or softened."""
    rng = torch.Generator().manual_seed(7)
    right = {name: list[bool]() for name in HEADS}
    for number in range(count):
        clip, scene = drawn_clip(CHECK_SEED + number, size=size)
        said = judge(soften(clip[None], rng, reach_px=2) if softened else clip[None])
        for name, wanted in labels_of(scene).items():
            if wanted != UNSAID:
                right[name].append(int(said[name].argmax()) == wanted)
    return {name: float(np.mean(each)) for name, each in right.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train")
    learn.add_argument("--out", type=Path, default=WEIGHTS)
    learn.add_argument("--steps", type=int, default=JudgeRecipe.steps)
    learn.add_argument("--seed", type=int, default=JudgeRecipe.seed)
    check = commands.add_parser("check")
    see = commands.add_parser("judge")
    see.add_argument("clips", nargs="+", type=Path)
    for command in (learn, check):
        command.add_argument("--scenes", type=int, default=200, help="to check with (200)")
    for command in (check, see):
        command.add_argument("--weights", type=Path, default=WEIGHTS)
    options = parser.parse_args(arguments)
    if options.command == "train":
        recipe = replace(JudgeRecipe(), steps=options.steps, seed=options.seed)
        started = time.process_time()
        judge = train(recipe, _Report())
        spent = time.process_time() - started
        save_judge(judge, options.out, {"recipe": asdict(recipe), "cpu_seconds": round(spent)})
        judge = load_judge(options.out)
        scores = {
            "unseen": accuracy(judge, options.scenes),
            "unseen_softened": accuracy(judge, options.scenes, size=FINE, softened=True),
        }
        about = {"recipe": asdict(recipe), "cpu_seconds": round(spent), "scenes": options.scenes, "accuracy": scores}
        save_judge(judge, options.out, about)
        print(json.dumps(about, indent=1))
    elif options.command == "check":
        judge = load_judge(options.weights)
        print(json.dumps({"unseen": accuracy(judge, options.scenes)}, indent=1))
    else:
        judge = load_judge(options.weights)
        for clip in options.clips:
            frames = np.stack(list(read_plain_frames(clip)))
            print(json.dumps({"clip": clip.name, **verdict(judge, frames, fps=float(probe(clip).average_rate))}))
    return 0


class _Report:
    """Prints means over fifty steps."""

    def __init__(self) -> None:
        self._since = list[dict[str, float]]()

    def __call__(self, step: int, right: dict[str, float]) -> None:
        self._since.append(right)
        if step % 50 == 0:
            means = ", ".join(f"{name} {np.nanmean([each[name] for each in self._since]):.3f}" for name in right)
            print(f"step {step}: {means}", file=sys.stderr, flush=True)
            self._since.clear()


if __name__ == "__main__":
    sys.exit(main())
