"""Say what a clip shows: a small classifier that has only ever seen scenes drawn by code.

It reads the words back from a picture, so it can count how often a text-to-video model draws what it was told. It must
not learn from any model's clips; what keeps it fair to soft or blotchy ones is that its training clips are blurred,
bent, blotched, recoloured and blended at random.

    python -m benchmarks.scene_judge train --out benchmarks/scene_judge.safetensors
    python -m benchmarks.scene_judge check                  how often it is right on scenes that it has not seen
    python -m benchmarks.scene_judge judge CLIP...          what it sees in clips
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.scenes import Colour, Kind, Motion, Place, Scene, Time, random_scene
from ultraflash_cli.video.plain import read_plain_frames
from ultraflash_cli.video.probe import probe

__all__ = [
    "HEADS",
    "WEIGHTS",
    "JudgeRecipe",
    "SceneJudge",
    "about_judge",
    "accuracy",
    "drawn_clip",
    "labels_of",
    "load_judge",
    "main",
    "save_judge",
    "shrink",
    "soften",
    "train",
    "verdict",
]

HEADS: dict[str, tuple[str, ...]] = {
    "kind": (*get_args(Kind), "none"),
    "colour": get_args(Colour),
    "time": get_args(Time),
    "motion": (*get_args(Motion), "none"),
    "place": get_args(Place),
}
"""What is said of a clip, and the words for it."""

WEIGHTS = Path(__file__).with_suffix(".safetensors")
FINE = 120, 208
"""Height and width in pixels of the frames that a judge is given."""
COARSE = 60, 104
"""What it surveys, to find the thing and name all else."""
GLANCE = 56
"""Sides of the piece of a fine frame, around the thing, by which it tells kinds apart."""
SEEN = 8, 13
"""Rows and columns of the features that are pooled; a thing is found to within one of them."""
STEP_S = 0.5
"""Between two frames that it looks at."""
UNSAID = -1
"""The label of a head that does not apply: a scene without a thing has no colour."""

TRAIN_SEED, CHECK_SEED = 50_000_000, 70_000_000
"""Numbers of the scenes to learn from and to check with; a generator's recipe draws others."""
LATEST_START_S = 1.5
WOBBLE = 16
"""Pixels by which a glance may be off in training: a cell of the survey."""
DRAWN_FRAMES = 3

Frames = npt.NDArray[np.uint8]
OnStep = Callable[[int, dict[str, float]], None]
"""Hears of a step's number and of how often each head was right in its batch."""


@dataclass(frozen=True, kw_only=True)
class JudgeRecipe:
    """How a judge is trained."""

    steps: int = 800
    batch: int = 32
    """Clips of a step."""
    fresh: int = 1
    """New scenes drawn before every step; they take the place of the oldest."""
    kept: int = 3000
    """Scenes at hand."""
    first: int = 600
    """Scenes drawn before the first step."""
    frames: int = 2
    """Frames of a clip in training."""
    glance_steps: int = 700
    """Steps of learning to tell kinds apart; they come last and draw scenes of their own."""
    glance_first: int = 500
    """Scenes drawn before the first of them."""
    rate: float = 4e-3
    seed: int = 1

    def __post_init__(self) -> None:
        assert 2 <= self.frames <= DRAWN_FRAMES, "motion needs two frames"
        assert 1 <= self.first <= self.kept, "there are scenes to begin with"


class SceneJudge(nn.Module):
    """Surveys pairs of coarse frames and glances at what moves in fine ones: two small convolutional networks."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.features = _convolutions(6, ((16, 5, 2), (32, 3, 2), (48, 3, 1), (64, 3, 2), (width, 3, 1)))
        self.attend = nn.Conv2d(width, 2, 1)
        self.mix = nn.Sequential(nn.Linear(4 * width, 128), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(words)) for name, words in HEADS.items()})
        self.glance = _convolutions(3, ((16, 5, 2), (32, 3, 2), (48, 3, 1), (64, 3, 2)))
        self.glance_kind = nn.Linear(2 * 64, len(get_args(Kind)))

    def forward(self, frames_btchw: Tensor) -> dict[str, Tensor]:
        """Return the logits of each head for clips in [0, 1] of size `FINE`, two frames or more."""
        count, frames = frames_btchw.shape[:2]
        said, places = self.survey(F.avg_pool2d(frames_btchw.flatten(0, 1), 2).unflatten(0, (count, frames)))
        cells = places.flatten(2).argmax(dim=2).flatten().tolist()
        pieces = [
            _piece(frame, cell, GLANCE) for frame, cell in zip(frames_btchw[:, :-1].flatten(0, 1), cells, strict=True)
        ]
        kinds = self.kinds(torch.stack(pieces)).unflatten(0, (count, -1)).mean(dim=1).log_softmax(dim=1)
        surveyed = said["kind"].log_softmax(dim=1)
        there, none = surveyed[:, :-1].logsumexp(dim=1, keepdim=True), surveyed[:, -1:]
        return said | {"kind": torch.cat([kinds + there, none], dim=1)}

    def kinds(self, pieces_bchw: Tensor) -> Tensor:
        """Return the logits of what is in pieces of fine frames [B, 3, GLANCE, GLANCE], which is something."""
        seen = self.glance((2 * pieces_bchw - 1).contiguous(memory_format=torch.channels_last))
        return self.glance_kind(torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1))

    def survey(self, frames_btchw: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return what is said and where it looked, of clips in [0, 1] of size `COARSE`, two frames or more.

        The logits of each head [B, words], and the logits [B, T - 1, *SEEN] of the place of the thing.
        """
        now, then = frames_btchw[:, :-1], frames_btchw[:, 1:]
        pairs = torch.cat([2 * now - 1, 4 * (then - now)], dim=2)
        count = pairs.shape[1]
        flat = pairs.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        seen = self.features(flat)
        places = self.attend(seen)
        weight = places.flatten(2).softmax(dim=2)
        seen = seen.flatten(2)
        looked_at = torch.einsum("nks,ncs->nkc", weight, seen).flatten(1)
        pooled = torch.cat([seen.mean(dim=2), seen.amax(dim=2), looked_at], dim=1)
        mixed = self.mix(pooled).unflatten(0, (-1, count)).mean(dim=1)
        return {name: head(mixed) for name, head in self.heads.items()}, places[:, 0].unflatten(0, (-1, count))


def _convolutions(width: int, layers: Sequence[tuple[int, int, int]]) -> nn.Sequential:
    """Return layers of (channels, kernel, stride), each normalised and rectified."""
    modules = list[nn.Module]()
    for wide, kernel, stride in layers:
        modules += [nn.Conv2d(width, wide, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*modules)


def _piece(frame_chw: Tensor, cell: int, side: int) -> Tensor:
    """Return the square of a fine frame around a cell, counted row by row; the picture's edge goes on beyond it."""
    row, column = divmod(cell, SEEN[1])
    y, x = ((at + 0.5) * size / cells for at, size, cells in zip((row, column), FINE, SEEN, strict=True))
    wide = F.pad(frame_chw, [side // 2] * 4, mode="replicate")
    return wide[:, int(y) : int(y) + side, int(x) : int(x) + side]


# Clips


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


def shrink(frames: Frames) -> Tensor:
    """Return frames ``[T, H, W, 3]`` of any size as the judge wants them: [T, 3, *FINE] in [0, 1]."""
    return F.adaptive_avg_pool2d(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255, FINE)


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
    """A clip to learn from."""

    frames_tchw_u8: Tensor
    """Coarse."""
    labels: dict[str, int]
    place: Tensor
    """Where the thing is: shares [T, *SEEN] that sum to 1, or zeros."""


def _bytes(frames: Tensor) -> Tensor:
    return (frames * 255).round().to(torch.uint8)


def _empty(scene: Scene, seed: int) -> Tensor:
    """Return the frames of `drawn_clip` without the thing."""
    return _drawn(replace(scene, thing=None), seed, FINE, DRAWN_FRAMES)


def _place(frames: Tensor, empty: Tensor) -> Tensor:
    """Return the shares of a thing's pixels that lie in each cell [T, *SEEN]; zeros where there are none."""
    changed = ((frames - empty).abs().sum(dim=1, keepdim=True) > 0.15).float()
    place = F.adaptive_avg_pool2d(changed, SEEN)[:, 0]
    return place / place.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)


def _lesson(seed: int) -> _Lesson:
    fine, scene = drawn_clip(seed)
    coarse = F.avg_pool2d(fine, 2)
    place = _place(coarse, F.avg_pool2d(_empty(scene, seed), 2)) if scene.thing else torch.zeros(len(fine), *SEEN)
    return _Lesson(_bytes(coarse), labels_of(scene), place)


def _glances(seed: int, rng: torch.Generator) -> tuple[Tensor, int] | None:
    """Return pieces around a scene's thing, somewhat wider than a glance, and its kind; None without a thing."""
    fine, scene = drawn_clip(seed)
    if scene.thing is None:
        return None
    place = _place(fine, _empty(scene, seed)).flatten(1)
    shown = [number for number in range(len(fine)) if place[number].any()]
    if not shown:
        return None
    cells = torch.multinomial(place[shown].square(), 1, generator=rng).flatten().tolist()
    pieces = [_piece(fine[number], cell, GLANCE + WOBBLE) for number, cell in zip(shown, cells, strict=True)]
    return _bytes(torch.stack(pieces)), labels_of(scene)["kind"]


def soften(clips_btchw: Tensor, rng: torch.Generator, *, reach_px: int = 1) -> Tensor:
    """Damage clips as small models' pictures are damaged: soft, bent, blotched, off in colour, blended in time."""
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


# Training


def train(recipe: JudgeRecipe, on_step: OnStep | None = None) -> SceneJudge:
    """Return a judge trained on drawn scenes alone; ``on_step`` hears how often each head is right in the batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        judge = SceneJudge()
    _learn_survey(judge, recipe, on_step)
    learn_glance(judge, recipe, on_step)
    return judge.eval()


def _schedule(
    judge: SceneJudge, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=0.02)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )


def learn_glance(judge: SceneJudge, recipe: JudgeRecipe, on_step: OnStep | None = None) -> None:
    """Teach a judge to tell kinds apart from close by; the rest of it stays as it is."""
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
"""The motion that a mirrored clip shows."""


def _share_right(said: Tensor, wanted: Tensor) -> float:
    asked = wanted != UNSAID
    return float((said.argmax(dim=1) == wanted)[asked].float().mean())


# Judging


@torch.no_grad()
def verdict(judge: SceneJudge, frames: Frames, *, fps: float = 16) -> dict[str, str]:
    """Return the word of each head for a clip ``[T, H, W, 3]`` of half a second at least."""
    step = max(1, round(STEP_S * fps))
    assert len(frames) > step, "two frames half a second apart"
    said = judge(shrink(np.ascontiguousarray(frames[::step]))[None])
    return {name: HEADS[name][int(logits.argmax())] for name, logits in said.items()}


@torch.no_grad()
def accuracy(
    judge: SceneJudge, count: int, *, size: tuple[int, int] = (480, 832), softened: bool = False
) -> dict[str, float]:
    """Return how often each head is right on scenes that nobody trained on, as they are or softened."""
    rng = torch.Generator().manual_seed(7)
    right = {name: list[bool]() for name in HEADS}
    for number in range(count):
        clip, scene = drawn_clip(CHECK_SEED + number, size=size)
        said = judge(soften(clip[None], rng, reach_px=2) if softened else clip[None])
        for name, wanted in labels_of(scene).items():
            if wanted != UNSAID:
                right[name].append(int(said[name].argmax()) == wanted)
    return {name: float(np.mean(each)) for name, each in right.items()}


def save_judge(judge: SceneJudge, path: Path, about: Mapping[str, Any]) -> None:
    """Write weights in half precision, and JSON about how they came to be."""
    state = {name: value.half().contiguous() for name, value in judge.state_dict().items() if value.is_floating_point()}
    save_file(state, path, metadata={name: json.dumps(value) for name, value in about.items()})


def load_judge(path: Path = WEIGHTS) -> SceneJudge:
    """Return a judge as `save_judge` wrote it."""
    judge = SceneJudge()
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 not a mapping
    counts = {name: value for name, value in judge.state_dict().items() if not value.is_floating_point()}
    judge.load_state_dict(state | counts)
    return judge.eval()


def about_judge(path: Path = WEIGHTS) -> dict[str, Any]:
    """Return what `save_judge` wrote about a judge."""
    with safe_open(path, "pt") as file:
        return {name: json.loads(value) for name, value in sorted(file.metadata().items())}


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
    """Prints the mean of fifty steps."""

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
