"""Rendered scenes stored as latents on disk: rendered and encoded once, used in
training many times."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from ultraflash_cli.train.things import HOP, HOP_RATE, WING_RATE
from ultraflash_cli.video.partial import output_errors, partial_file

__all__ = [
    "SCENES_A_SEED",
    "EncodeScenesJob",
    "SceneCourse",
    "SceneLatents",
    "draw_scene",
    "encode_scenes",
    "layout_of",
    "open_scene_latents",
    "scene_caption",
    "scene_course",
    "thing_cover",
    "training_scene",
]

USUAL_TIMES: tuple[Time, ...] = ("day", "sunset", "morning")
"""Default time of day of each sky layout, which captions may omit."""

USUAL_PLACES: tuple[Place, ...] = ("hills", "snowy mountains", "city")
"""Default place of each land layout, which captions may omit; for boats it is the
sea."""

USUAL_MOTIONS: tuple[tuple[Colour, Motion], ...] = (("red", "right"), ("yellow", "left"), ("blue", "right"))
"""Default colour and motion of each motion layout, which captions may omit."""

SPEEDS = (0.10, 0.13, 0.16)
"""Speed of each motion layout in picture heights per second; ``QUICK`` things are
faster."""

PLAIN_EVERY = 50
"""One in this many scenes has the defaults and no moving thing, and its caption may be
empty."""

QUICK = ("bird", "car")
"""Things that move 1.3 times as fast as the others."""

_DRAWN = {"pace": "free"}
"""Entry in a file's metadata that records how its scenes are drawn; in older
files, speeds were tied to the network's tokens."""

SCENES_A_SEED = 100_000_000
"""Number of scenes that belong to one seed; the scenes before those of seed 1 belong to
no training seed and are used for tests."""

_PIECE_LATENTS = 6
"""Latent frames that are rendered and encoded at once."""

_SEEN_LEVELS = 8
"""Grey levels by which a thing has to differ from the background."""

WORDINGS = 1000
"""Number of different wordings of a scene's caption."""


def training_scene(seed: int, number: int) -> Scene:
    """Return a scene for training a generator: any subject and attributes, but one of a
    few layouts, each with a fixed speed. A generator has to guess whatever captions
    leave out, and each guess takes training.
    """
    scene = random_scene(seed * SCENES_A_SEED + number)
    sky, land, way = layout_of(number)
    thing = scene.thing
    if thing is not None:
        thing = replace(thing, speed=SPEEDS[way] * (1.3 if thing.kind in QUICK else 1.0))
    scene = replace(scene, thing=thing, seed=land, sky_seed=sky, thing_seed=way)
    if number % PLAIN_EVERY == 0:
        scene = replace(scene, time=USUAL_TIMES[sky], place=USUAL_PLACES[land], weather="clear", thing=None)
    return scene


def layout_of(number: int) -> tuple[int, int, int]:
    """Return the sky, land and motion layouts of a scene number, which are its digits,
    starting with the sky. ``PromptEncoderConfig.with_variant`` names the same layouts
    of a seed in words.
    """
    digits: list[int] = []
    for words in LAYOUT_WORDS:
        number, digit = divmod(number, len(words))
        digits.append(digit)
    sky, land, way = digits
    return sky, land, way


def draw_scene(seed: int, number: int, latents: int, size: tuple[int, int]) -> Tensor:
    """Return the frames [3, 4 * latents, H, W] in [0, 1] of a scene; the first one is
    repeated four times, as at the start of a stream."""
    return torch.cat(list(_pieces(seed, number, latents, size)), dim=1)


def _pieces(seed: int, number: int, latents: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield the frames of a scene in pieces of a few latents."""
    renderer = Renderer(training_scene(seed, number), height_px=size[0], width_px=size[1])
    at = range(1 - FRAMES_PER_LATENT, FRAMES_PER_LATENT * (latents - 1) + 1)
    for first in range(0, len(at), FRAMES_PER_LATENT * _PIECE_LATENTS):
        piece = [
            renderer.frame(max(0, t) / GENERATED_FPS) for t in at[first : first + FRAMES_PER_LATENT * _PIECE_LATENTS]
        ]
        yield torch.from_numpy(np.stack(piece)).permute(3, 0, 1, 2).float().div_(255)


def scene_caption(seed: int, number: int, rng: np.random.Generator) -> str:
    """Return a caption of a scene, in one of many wordings, followed by the words of
    its layout."""
    scene = training_scene(seed, number)
    sky, land, way = layout_of(number)
    boat = scene.thing is not None and scene.thing.kind == "boat"
    colour, motion = USUAL_MOTIONS[way]
    usual = Usual(time=USUAL_TIMES[sky], place="sea" if boat else USUAL_PLACES[land], colour=colour, motion=motion)
    words = caption(replace(scene, seed=int(rng.integers(2**31))), int(rng.integers(WORDINGS)), usual=usual)
    if number % PLAIN_EVERY == 0 and rng.random() < 0.5:
        words = ""
    assert isinstance(LITE.text_encoder, PromptEncoderConfig), "the built-in model has words of its own"
    return LITE.text_encoder.with_variant(words, number).strip()


class SceneCourse(NamedTuple):
    """Motion of a scene's thing: a generator's ``Course`` in units of the scene."""

    down: float = 0.0
    """Picture heights per second."""
    right: float = 0.0
    """Picture heights per second."""
    hop: float = 0.0
    """Height of hops in picture heights."""
    rate: float = 0.0
    """Angular frequency of hops or wing beats in radians per second."""


def scene_course(seed: int, number: int) -> SceneCourse:
    """Return the course of a scene's thing; all zeros if there is none."""
    thing = training_scene(seed, number).thing
    if thing is None:
        return SceneCourse()
    ways: dict[Motion, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "up": (-1, 0)}
    down, right = ways[thing.motion]
    hop, rate = {"ball": (HOP, HOP_RATE), "bird": (0.0, WING_RATE)}.get(thing.kind, (0.0, 0.0))
    return SceneCourse(down * thing.speed, right * thing.speed, hop, rate)


@lru_cache(maxsize=8192)
def thing_cover(seed: int, number: int, count: int, size: tuple[int, int]) -> Tensor:
    """Return a mask of the cells where a scene's thing is visible in its first
    ``count`` latent frames: bool [count, h, w]. ``size`` is the height and width of a
    latent frame; cells next to the thing are included.
    """
    scene = training_scene(seed, number)
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
    """Settings of a run that renders and encodes scenes."""

    out: Path
    """Output folder; existing files are kept."""
    weights: dict[str, Tensor]
    """Weights of a training run that includes an encoder."""
    count: int
    """Number of scenes."""
    first: int = 0
    """Number of the first scene, a multiple of ``shard``."""
    latents: int = 6
    """Latent frames per scene."""
    size: tuple[int, int] = LITE.base_size
    """Height and width in pixels."""
    seed: int = 1
    """Seed of the scenes."""
    shard: int = 50
    """Scenes per file."""
    profile: Profile = LITE
    """Model whose encoder is used."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the encoder."""

    def __post_init__(self) -> None:
        if min(self.count, self.latents, self.shard) < 1 or self.first < 0 or self.first % self.shard:
            raise UsageError(f"--count and --latents must be at least 1, and --first a multiple of {self.shard}")


@torch.no_grad()
def encode_scenes(job: EncodeScenesJob, *, on_file: Callable[[int], None] | None = None) -> None:
    """Write float16 latents [N, C, T, h, w] and masks [N, T, h, w] of things (see
    ``thing_cover``), one file for every ``shard`` scenes. ``on_file`` is called with
    the number of finished scenes. Raises WeightsError for weights without the profile's
    encoder, InputError if the folder contains different latents.
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
                raise InputError(f"{path}: contains different latents; choose another folder")
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16"):
                clips = [_encoded(roles, _pieces(job.seed, number, job.latents, job.size)) for number in numbers]
            cells = clips[0].shape[3], clips[0].shape[4]
            covers = [thing_cover(job.seed, number, job.latents, cells) for number in numbers]
            tensors = {"latents": torch.cat(clips).contiguous(), "covers": torch.stack(covers)}
            with output_errors(path), partial_file(path) as part:
                save_file(tensors, part, metadata={"facts": json.dumps(facts)})

        if on_file is not None:
            on_file(numbers.stop - job.first)


def _encoded(roles: CascadeRoles, pieces: Iterator[Tensor]) -> Tensor:
    """Return the float16 latents [1, C, T, h, w] of a clip that comes in pieces."""
    latents: list[Tensor] = []
    memories: tuple[Tensor, ...] | None = None
    for frames in pieces:
        latent, memories = roles.encoder.encode(frames[None], memories)
        latents.append(latent.float())
    return torch.cat(latents, dim=2).half()


class SceneLatents:
    """Encoded scenes of a folder, opened lazily and identical in every process."""

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
        """Number of latent frames of the longest scenes."""
        return max(shape[2] for shape in self.shapes)

    def length_of_one(self, rng: np.random.Generator, *, least: int) -> int:
        """Return the number of latent frames of a random scene that has at least
        ``least``. Raises InputError if there is none."""
        return self.shapes[self._file_of_one(least, rng)][2]

    def _file_of_one(self, least: int, rng: np.random.Generator) -> int:
        """Return the index of the file of a random scene of at least ``least`` latent
        frames."""
        sizes = np.array([shape[0] if shape[2] >= least else 0 for shape in self.shapes])
        if not sizes.any():
            raise InputError(f"{self.files[0].parent}: scenes have at most {self.longest} latents, not {least}")
        return int(rng.choice(len(sizes), p=sizes / sizes.sum()))

    def draw(self, count: int, rng: np.random.Generator, *, first: int = 0) -> tuple[Tensor, str, Tensor]:
        """Return latent frames ``first`` to ``first + count`` [C, count, h, w] of a
        random scene, its caption and its mask. Latents are float32; see ``thing_cover``
        for the mask. Raises InputError if no scene is long enough.
        """
        file = self._file_of_one(first + count, rng)
        i = int(rng.integers(self.shapes[file][0]))
        with safe_open(self.files[file], "pt") as opened:
            latents = opened.get_slice("latents")[i, :, first : first + count].float()
            cover = opened.get_slice("covers")[i, first : first + count]
        return latents, scene_caption(self.seed, int(self.facts[file]["first"]) + i, rng), cover

    def hash(self) -> str:
        """Return a short hash of the settings that the latents were made with."""
        return hashlib.sha256(json.dumps([self.facts, self.shapes]).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def open_scene_latents(folder: Path) -> SceneLatents:
    """Return the scenes of a folder. Raises InputError if there are none or they cannot
    be combined."""
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
