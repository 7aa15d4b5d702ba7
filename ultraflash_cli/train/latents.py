"""Rendered scenes as latents on disk: rendered and encoded once, used in training many times."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, GENERATED_FPS
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.engine.vocabulary import LAYOUT_WORDS
from ultraflash_cli.errors import InputError, UsageError
from ultraflash_cli.train.captions import Usual, caption
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.roles import CascadeRoles
from ultraflash_cli.train.scenes import Colour, Motion, Place, Scene, Time, random_scene
from ultraflash_cli.video.partial import output_errors, partial_file

__all__ = [
    "SCENES_A_SEED",
    "EncodeScenesJob",
    "SceneLatents",
    "draw_scene",
    "encode_scenes",
    "layout_of",
    "open_scene_latents",
    "scene_caption",
    "scene_velocity",
    "taught_scene",
    "thing_cover",
]

TIMES: tuple[Time, ...] = ("day", "sunset", "morning")
"""With each sky: the time of day that goes without saying."""

PLACES: tuple[Place, ...] = ("hills", "snowy mountains", "city")
"""With each land: the place that goes without saying; for boats it is the sea."""

WAYS: tuple[tuple[Colour, Motion], ...] = (("red", "right"), ("yellow", "left"), ("blue", "right"))
"""With each way of things: the colour and the motion that go without saying."""

SPEEDS = (0.10, 0.13, 0.16)
"""With each way of things: picture heights a second, for the ``QUICK`` some more."""

PLAIN_EVERY = 50
"""One in this many scenes is all as usual and has nothing in it, and its caption may be no word at all."""

QUICK = ("bird", "car")
"""Things that are faster than the others by 1.3."""

_DRAWN = {"pace": "free"}
"""What files say of how their scenes are drawn: in older ones things moved as the network's tokens wanted it."""

SCENES_A_SEED = 100_000_000
"""Scenes that belong to one seed; those before the first seed's belong to no seed and are used for tests."""

_SEEN_LEVELS = 8
"""Grey levels by which a thing has to differ from what is behind it."""

WORDINGS = 1000
"""Different wordings of a scene's caption."""


def taught_scene(seed: int, number: int) -> Scene:
    """Return a scene as generators are taught it: any words, but one of few layouts, each way of things with a speed.

    What no caption says is what a generator has to guess, and each guess takes training.
    """
    scene = random_scene(seed * SCENES_A_SEED + number)
    sky, land, way = layout_of(number)
    thing = scene.thing
    if thing is not None:
        thing = replace(thing, speed=SPEEDS[way] * (1.3 if thing.kind in QUICK else 1.0))
    scene = replace(scene, thing=thing, seed=land, sky_seed=sky, thing_seed=way)
    if number % PLAIN_EVERY == 0:
        scene = replace(scene, time=TIMES[sky], place=PLACES[land], weather="clear", thing=None)
    return scene


def layout_of(number: int) -> tuple[int, int, int]:
    """Return which sky, land and way of things a number stands for: its digits, the sky's first, few of each to learn.

    ``PromptEncoderConfig.with_variant`` says the same of a seed, in words.
    """
    digits: list[int] = []
    for words in LAYOUT_WORDS:
        number, digit = divmod(number, len(words))
        digits.append(digit)
    sky, land, way = digits
    return sky, land, way


def draw_scene(seed: int, number: int, latents: int, size: tuple[int, int]) -> Tensor:
    """Return the frames [3, 4 * latents, H, W] in [0, 1] of a scene; the first one comes four times, as a stream's."""
    renderer = Renderer(taught_scene(seed, number), height_px=size[0], width_px=size[1])
    clip = [renderer.frame(t / GENERATED_FPS) for t in range(FRAMES_PER_LATENT * (latents - 1) + 1)]
    clip = clip[:1] * (FRAMES_PER_LATENT - 1) + clip
    return torch.from_numpy(np.stack(clip)).permute(3, 0, 1, 2).float().div_(255)


def scene_caption(seed: int, number: int, rng: np.random.Generator) -> str:
    """Return what a scene shows, in one of many wordings, and the words of its layout."""
    scene = taught_scene(seed, number)
    sky, land, way = layout_of(number)
    boat = scene.thing is not None and scene.thing.kind == "boat"
    colour, motion = WAYS[way]
    usual = Usual(time=TIMES[sky], place="sea" if boat else PLACES[land], colour=colour, motion=motion)
    words = caption(replace(scene, seed=int(rng.integers(2**31))), int(rng.integers(WORDINGS)), usual=usual)
    if number % PLAIN_EVERY == 0 and rng.random() < 0.5:
        words = ""
    assert isinstance(LITE.text_encoder, PromptEncoderConfig), "the built-in model has words of its own"
    return LITE.text_encoder.with_variant(words, number).strip()


def scene_velocity(seed: int, number: int) -> tuple[float, float]:
    """Return how fast a scene's thing moves, down and right, in picture heights per second; 0, 0 without one."""
    thing = taught_scene(seed, number).thing
    if thing is None:
        return 0.0, 0.0
    ways: dict[Motion, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "up": (-1, 0)}
    down, right = ways[thing.motion]
    return down * thing.speed, right * thing.speed


@lru_cache(maxsize=8192)
def thing_cover(seed: int, number: int, count: int, size: tuple[int, int]) -> Tensor:
    """Return where a scene's thing is seen in its first ``count`` latent frames: bool [count, h, w].

    ``size`` is that of a latent frame, h and w; a cell next to the thing counts, too.
    """
    scene = taught_scene(seed, number)
    if scene.thing is None:
        return torch.zeros((count, *size), dtype=torch.bool)
    shown, bare = (Renderer(each, height_px=size[0], width_px=size[1]) for each in (scene, replace(scene, thing=None)))
    planes: list[Tensor] = []
    for latent in range(count):
        end = FRAMES_PER_LATENT * latent
        seconds = [at / GENERATED_FPS for at in {max(0, end - FRAMES_PER_LATENT + 1), end}]
        apart = [np.abs(shown.frame(at).astype(int) - bare.frame(at)).max(axis=-1) > _SEEN_LEVELS for at in seconds]
        planes.append(torch.from_numpy(np.logical_or.reduce(apart)))
    return F.max_pool2d(torch.stack(planes)[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


@dataclass(frozen=True, kw_only=True)
class EncodeScenesJob:
    """Scenes to render, and their encoder."""

    out: Path
    """Folder of the files; those that are there already are kept."""
    weights: dict[str, Tensor]
    """Weights of a run that holds an encoder."""
    count: int
    """Scenes."""
    first: int = 0
    """Number of the first one, a multiple of ``shard``."""
    latents: int = 6
    """Latent frames of each."""
    size: tuple[int, int] = LITE.base_size
    """Height and width in pixels."""
    seed: int = 1
    """Whose scenes."""
    shard: int = 50
    """Scenes in a file."""
    profile: Profile = LITE
    """Whose encoder."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder's products."""

    def __post_init__(self) -> None:
        if min(self.count, self.latents, self.shard) < 1 or self.first < 0 or self.first % self.shard:
            raise UsageError(f"--count and --latents must be at least 1, and --first a multiple of {self.shard}")


@torch.no_grad()
def encode_scenes(job: EncodeScenesJob, *, on_file: Callable[[int], None] | None = None) -> None:
    """Write float16 latents [N, C, T, h, w] and covers [N, T, h, w] of things, a file for every ``shard`` scenes.

    ``on_file`` is reported how many are done; see ``thing_cover``.

    Raises WeightsError for weights without the profile's encoder, InputError where the folder holds other latents.
    """
    roles = CascadeRoles(job.profile, ("encoder",))
    roles.load(job.weights, hint="average.safetensors of a run of `autoencoder` or `decoder`")
    made_by = _encoder_hash(roles)
    with output_errors(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
    for first in range(job.first, job.first + job.count, job.shard):
        numbers = range(first, min(first + job.shard, job.first + job.count))
        path = job.out / f"scenes_{first:06d}.safetensors"
        facts = {"seed": job.seed, "first": first, "encoder": made_by, "size": list(job.size), "covers": True, **_DRAWN}
        if path.exists():
            if _facts(path) != facts:
                raise InputError(f"{path}: contains other latents; choose another folder")
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16"):
                clips = [
                    roles.encode(draw_scene(job.seed, number, job.latents, job.size)[None]).half() for number in numbers
                ]
            cells = clips[0].shape[3], clips[0].shape[4]
            covers = [thing_cover(job.seed, number, job.latents, cells) for number in numbers]
            tensors = {"latents": torch.cat(clips).contiguous(), "covers": torch.stack(covers)}
            with output_errors(path), partial_file(path) as part:
                save_file(tensors, part, metadata={"facts": json.dumps(facts)})

        if on_file is not None:
            on_file(numbers.stop - job.first)


class SceneLatents:
    """The scenes of a folder; opened lazily, and the same in every process."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("scenes_*.safetensors"))
        if not self.files:
            raise InputError(f"{folder}: no encoded scenes; make some with `ultraflash train encode-scenes`")
        self.facts = [_facts(path) for path in self.files]
        if len({(fact["seed"], fact["encoder"], tuple(fact["size"])) for fact in self.facts}) > 1:
            raise InputError(f"{folder}: mixes scenes of different seeds, sizes or encoders; use one folder for each")
        if not all({"covers": True, **_DRAWN}.items() <= fact.items() for fact in self.facts):
            raise InputError(f"{folder}: contains scenes of an older version; encode them again")
        self.seed = int(self.facts[0]["seed"])
        self.shapes: list[list[int]] = []
        for path in self.files:
            with safe_open(path, "pt") as opened:
                self.shapes.append(list(opened.get_slice("latents").get_shape()))

    @property
    def longest(self) -> int:
        """Latent frames of the longest scenes."""
        return max(shape[2] for shape in self.shapes)

    def draw(self, count: int, rng: np.random.Generator, *, first: int = 0) -> tuple[Tensor, str, Tensor]:
        """Return latent frames ``first`` to ``first + count`` [C, count, h, w] of some scene, its caption and cover.

        Latents are float32, the cover is that of ``thing_cover``. Raises InputError if no scene is long enough.
        """
        least = first + count
        sizes = np.array([shape[0] if shape[2] >= least else 0 for shape in self.shapes])
        if not sizes.any():
            raise InputError(f"{self.files[0].parent}: scenes have at most {self.longest} latents, {least} are needed")
        file = int(rng.choice(len(sizes), p=sizes / sizes.sum()))
        i = int(rng.integers(sizes[file]))
        with safe_open(self.files[file], "pt") as opened:
            latents = opened.get_slice("latents")[i, :, first : first + count].float()
            cover = opened.get_slice("covers")[i, first : first + count]
        return latents, scene_caption(self.seed, int(self.facts[file]["first"]) + i, rng), cover

    def hash(self) -> str:
        """Return a short hash over what the latents were made from."""
        return hashlib.sha256(json.dumps([self.facts, self.shapes]).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def open_scene_latents(folder: Path) -> SceneLatents:
    """Return the scenes of a folder. Raises InputError if there are none or they do not go together."""
    return SceneLatents(folder)


def _facts(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as opened:
            return json.loads((opened.metadata() or {})["facts"])
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: no encoded scenes ({error})") from error


def _encoder_hash(roles: CascadeRoles) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(roles.encoder.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
