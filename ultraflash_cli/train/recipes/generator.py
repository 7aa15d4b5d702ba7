"""Recipe ``generator``: trains a causal text-to-video transformer by flow matching,
with a separate noise level for each chunk."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.engine import regroup
from ultraflash_cli.engine.cache import WindowRing
from ultraflash_cli.engine.layers.context import ContextKv
from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, GENERATED_FPS, LATENT_PX
from ultraflash_cli.engine.stages.generator import LEAST_LEVEL, Generator
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.captions import scrambled
from ultraflash_cli.train.data import Material
from ultraflash_cli.train.flows import chunk_flow, draw_levels, noised, normal, uniform
from ultraflash_cli.train.latents import (
    SCENES_A_SEED,
    draw_scene,
    open_scene_latents,
    scene_caption,
    scene_course,
    thing_cover,
)
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig, RecipeConfig
from ultraflash_cli.train.rewards import load_reward, reward_of
from ultraflash_cli.train.roles import CHANNEL_WEIGHT, TOY, TOY_WORDS, CascadeRoles, pixel_gain
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = [
    "NETWORKS",
    "ClipLength",
    "GeneratorRecipeConfig",
    "clips",
    "configure",
    "is_kernel",
    "learners",
    "loss",
    "make",
    "part_of",
    "pictures",
    "roll_out",
    "scene_batch",
    "start",
]

NETWORKS = ("generator", "text_encoder")
"""Roles that an export writes."""

_PICTURED = 2
"""Number of clips in a batch that are generated for a sample picture; each is a whole
stream, which takes a while."""

_COURSE_WEIGHT = 0.01
"""Weight of the course loss relative to that of the flow."""

_SCRAMBLED = 0.7
"""Share of the captions for the choice of courses that are scrambled, so that prompts of any wording choose
correctly."""

_ALIKE = 2
"""Number of consecutive batches whose clips have the same length, so that two processes
have the same amount of work in every step."""


@dataclass(frozen=True, kw_only=True)
class ClipLength:
    """A clip length, with the size and frequency of its batches."""

    latents: int
    """Number of latent frames; a remainder after whole chunks makes a shorter chunk."""
    clips: float = 1.0
    """Clips per batch, relative to the loop's batch size: short clips may come in
    larger batches."""
    odds: tuple[float, float] = (1.0, 1.0)
    """Relative frequency of this length at the start of the run and at its end."""
    anywhere: bool = False
    """Whether clips start anywhere in their scenes. Then only the last chunk is
    learned; earlier chunks, as far as the scene has any, are its context."""

    def __post_init__(self) -> None:
        if self.latents < 1 or self.clips <= 0 or min(self.odds) < 0:
            raise ConfigError(f"a clip length needs at least 1 latent and a positive weight, got {self}")


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipeConfig(RecipeConfig):
    """Settings for rendering, noise sampling and the training loop."""

    profile: Profile
    """Model that sets the sizes of the networks; it must have a generator."""
    words: PromptEncoderConfig
    """Config of the prompt encoder, which is trained jointly."""
    size: tuple[int, int] = (480, 832)
    """Height and width of the scenes in pixels."""
    lengths: tuple[ClipLength, ...] = (ClipLength(latents=6),)
    """Clip lengths and their frequencies; at most the generator's window."""
    shift: float = 5.0
    """Shift of the noise levels towards pure noise; 1 means no shift."""
    pure_share: float = 0.0
    """Fraction of chunks that start from pure noise, like the first step at inference."""
    weight_below: float = 0.0
    """Noise level below which the flow error is weighted by the squared level, which
    makes it the error of clean latents."""
    text_drop: float = 0.1
    """Fraction of clips whose caption is dropped."""
    clean_share: float = 0.5
    """Fraction of clips whose earlier chunks are clean, as at inference, rather than at their own noise levels."""
    orthogonal: bool = False
    """Whether the transformer block matrices use orthogonalised updates."""
    thing_weight: float = 1.0
    """Weight of the error on a scene's thing, which fills a small part of the picture,
    relative to the background."""
    thing_share: float | None = None
    """Share of the picture at which a thing has exactly this weight; smaller things
    weigh up to twice as much, larger ones at least half. None gives all things the same
    weight."""
    context_noise: float = 0.0
    """Maximum share of noise added to clean context chunks."""
    own_share: float = 0.0
    """Fraction of preceding chunks that are the generator's own output, made in one step."""
    refine_share: float = 0.0
    """Fraction of inputs that are the generator's own output plus noise, at the levels
    used at inference, instead of the noised scene. Set ``weight_below`` to 1, because a
    flow divides their errors by the level."""
    course_captions: int = 0
    """Number of captions per step from which the generator learns to choose a course
    (``GeneratorConfig.courses``)."""
    rewards: tuple[tuple[str, float], ...] = ()
    """Rewards of one clip's decoded prediction, by name and weight. The mean squared
    error of latents is hardly sensitive to fine detail such as the edges of small
    objects."""
    decoded: tuple[int, int] = (32, 32)
    """Number of rows and columns of latents that are decoded for ``rewards``."""
    pixel_power: float = 0.0
    """How strongly latent channels are weighted by their effect in the decoder: the
    exponent of their share of the mean square over pixels, so that 0 weights all
    channels equally and 1 by pixel error."""

    def __post_init__(self) -> None:
        generator = self.profile.generator
        if generator is None:
            raise ConfigError(f"{self.profile.name} has no generator to train")
        if (generator.text_dim, generator.text_len) != (self.words.dim, self.words.text_len):
            raise ConfigError("the prompt encoder's embeddings do not match those of the generator")
        if self.course_captions and not generator.courses:
            raise ConfigError(f"{self.profile.name} has no courses to choose from")
        for name, _ in self.rewards:
            load_reward(name)
        chunk = generator.chunk_latents
        for length in self.lengths:
            if length.anywhere and length.latents > chunk and length.latents % chunk:
                raise ConfigError("clips from within a scene must be whole chunks or part of one")
            if length.latents > generator.window and not (length.anywhere and generator.slide):
                raise ConfigError(f"a clip must not be longer than the window, got {length.latents} latents")


def scene_batch(config: GeneratorRecipeConfig, data: Path | None, number: int) -> Batch:
    """Return frames [B, 3, 4 * T, H, W] in [0, 1] or latents [B, C, T, h, w], captions,
    first latent, masks. A mask [B, T, h, w] marks the thing of a scene. The first
    latent is None for clips in which every chunk is learned, otherwise the number of
    the clips' first latent frame in their scenes; see ``ClipLength.anywhere``. If
    ``data``, a folder of encoded scenes, is given, scenes are chosen from it; otherwise
    every scene is new. Seed 0 is reserved for tests.
    """
    seed, done = config.loop.seed, number / (config.loop.steps * config.loop.accumulate)
    rng, shared = (np.random.default_rng((seed, *key)) for key in ((13, number), (14, number // _ALIKE)))
    odds = np.array([length.odds[0] + (length.odds[1] - length.odds[0]) * min(1.0, done) for length in config.lengths])
    length = config.lengths[shared.choice(len(odds), p=odds / odds.sum())]
    clips = max(1, round(config.loop.batch * length.clips))
    if data is not None:
        generator, scenes = config.profile.generator, open_scene_latents(data)
        assert generator is not None, "the config was checked"
        first, count = None, length.latents
        if length.anywhere:
            chunk = generator.chunk_latents
            unit = min(chunk, length.latents)
            least = 2 if length.latents > chunk else 1
            end = unit * int(shared.integers(least, scenes.length_of_one(shared, least=least * unit) // unit + 1))
            first = max(0, end - length.latents)
            count = end - first
        drawn = [scenes.draw(count, rng, first=first or 0) for _ in range(clips)]
        latents, words, covers = zip(*drawn, strict=True)
        return torch.stack(latents), words, first, torch.stack(covers)

    most = max(max(1, round(config.loop.batch * each.clips)) for each in config.lengths)
    numbers = range(number * most, number * most + clips)
    frames = torch.stack([draw_scene(seed, i, length.latents, config.size) for i in numbers])
    cells = config.size[0] // LATENT_PX, config.size[1] // LATENT_PX
    covers = torch.stack([thing_cover(seed, i, length.latents, cells) for i in numbers])
    return frames, tuple(scene_caption(seed, i, rng) for i in numbers), None, covers


def loss(config: GeneratorRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the losses: the error of the flow, with a separate noise level for each
    chunk, and that of the chosen course."""
    shown, captions, start_frame, cover = batch
    chunk = roles.generator.config.chunk_latents
    with torch.no_grad():
        clean = roles.latents_of(shown)
    count, before = len(clean), clean[:, :, :0]
    if start_frame is not None:
        before, clean, cover = clean[:, :, :-chunk], clean[:, :, -chunk:], cover[:, -chunk:]
    frames = clean.shape[2]
    keep = uniform(count, 0, 1, rng) >= config.text_drop
    noise = normal(clean, rng)
    chunks = -(-frames // chunk)
    level = draw_levels(count * chunks, config.shift, rng)
    is_own = bool(config.refine_share) and uniform(1, 0, 1, rng).item() < config.refine_share
    if is_own:
        served = torch.tensor(roles.generator.config.steps_of_chunk(0)[1:] or (1000.0,)) / 1000
        level = served[torch.randint(len(served), level.shape, generator=rng)]
    level = level.masked_fill(uniform(count * chunks, 0, 1, rng) < config.pure_share, 1.0)
    level = level.view(count, chunks).repeat_interleave(chunk, dim=1)[:, :frames]
    context = roles.context(captions, keep)
    if start_frame is not None:
        keys = roles.generator.embed_context(context, batch=count)
        rings = _remembered(config, roles.generator, before, keys, start_frame, rng) if before.shape[2] else None
        first = before.shape[2]

        def flow_of(noisy: Tensor, level: Tensor) -> Tensor:
            timestep, at = 1000 * level.to(noisy.device), start_frame + first
            run = partial(roles.generator.forward_chunk, rings=rings, context=keys, first_frame=first, position=at)
            return run(noisy, timestep).flow_bcthw.float()
    else:
        seen = _blurred(config, clean, rng) if uniform(1, 0, 1, rng).item() < config.clean_share else None

        def flow_of(noisy: Tensor, level: Tensor) -> Tensor:
            return chunk_flow(
                roles.generator, noisy, level, context, clean_bcthw=seen, recompute=config.loop.recompute
            ).float()

    start, target = clean, noise - clean
    over = level.to(clean).view(count, 1, frames, 1, 1)
    if is_own:
        with torch.no_grad():
            pure = normal(clean, rng)
            start = pure - flow_of(pure, torch.ones_like(level))
        target = target + (1 / over.clamp_min(LEAST_LEVEL) - 1) * (start - clean)
    noisy = noised(start, noise, level)
    flow = flow_of(noisy, level)
    weight = (over / over.clamp_min(config.weight_below)).square()
    weight = weight * (1 + (config.thing_weight - 1) * _urgency(config, cover.to(weight))[:, None])
    if config.pixel_power:
        weight = weight * roles.get_buffer(CHANNEL_WEIGHT).view(-1, 1, 1, 1)
    losses = {"flow": (weight * (flow - target).square()).mean()}
    if config.rewards:
        one = int(torch.randint(count, (1,), generator=rng))
        drawn = (noisy - over * flow)[one : one + 1]
        rows, columns = part_of(config, cover[one], rng)
        frames = roles.decode(drawn[..., rows, columns])
        truth = roles.decode(clean[one : one + 1, ..., rows, columns])
        for name, score in reward_of(frames, truth, config.rewards).items():
            losses[f"reward_{name}"] = -score
    if config.course_captions:
        losses["course"] = _COURSE_WEIGHT * _course_error(config, roles, rng)
    return losses


def part_of(config: GeneratorRecipeConfig, cover: Tensor, rng: torch.Generator) -> tuple[slice, slice]:
    """Return the rows and columns of a random part of a clip's latents, half of the
    time centred on the thing."""
    whole = cover.shape[1:]
    cells = cover.any(dim=0).nonzero()
    if not len(cells) or uniform(1, 0, 1, rng).item() < 0.5:
        cells = torch.ones(whole).nonzero()
    middle = cells[torch.randint(len(cells), (1,), generator=rng)][0].tolist()
    part: list[slice] = []
    for at, most, side in zip(middle, config.decoded, whole, strict=True):
        first = min(max(0, at - most // 2), max(0, side - most))
        part.append(slice(first, first + most))
    return part[0], part[1]


def _course_error(config: GeneratorRecipeConfig, roles: CascadeRoles, rng: torch.Generator) -> Tensor:
    """Return the cross-entropy of the courses that the generator chooses for captions
    of other scenes."""
    generator, seed = roles.generator, config.loop.seed
    draws = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
    numbers = [int(number) for number in draws.integers(SCENES_A_SEED, size=config.course_captions)]
    captions = [scene_caption(seed, number, draws) for number in numbers]
    captions = [scrambled(each, draws) if draws.random() < _SCRAMBLED else each for each in captions]
    context = roles.context(tuple(captions))
    chosen = generator.course_logits(generator.embed_context(context, batch=len(numbers)))
    rows = config.size[0] / LATENT_PX / generator.config.patch[1]
    a_latent = FRAMES_PER_LATENT / GENERATED_FPS
    units = chosen.new_tensor([rows * a_latent, rows * a_latent, rows, a_latent])
    moves = chosen.new_tensor([scene_course(seed, number) for number in numbers]) * units
    courses = [(each.down, each.right, each.hop, each.rate) for each in generator.config.courses]
    wanted = torch.cdist(moves, moves.new_tensor(courses)).argmin(dim=1)
    return F.cross_entropy(chosen.float(), wanted)


def _urgency(config: GeneratorRecipeConfig, cover: Tensor) -> Tensor:
    """Return the extra weight of every cell of ``cover [B, T, h, w]``, which depends on
    the size of the thing."""
    if config.thing_share is None:
        return cover
    share = cover.mean(dim=(1, 2, 3), keepdim=True)
    return cover * (config.thing_share / share.clamp_min(1e-6)).clamp(0.5, 2.0)


def _blurred(config: GeneratorRecipeConfig, clean: Tensor, rng: torch.Generator) -> Tensor:
    """Return clean latents with some noise, because the context of a stream is never
    quite correct at inference."""
    return clean + uniform(len(clean), 0, config.context_noise, rng).to(clean).view(-1, 1, 1, 1, 1) * normal(clean, rng)


def _remembered(
    config: GeneratorRecipeConfig,
    generator: Generator,
    before: Tensor,
    keys: tuple[ContextKv, ...],
    start_frame: int,
    rng: torch.Generator,
) -> tuple[WindowRing, ...]:
    """Return the KV caches after the preceding chunks; the last chunk is sometimes the
    generator's own output. ``start_frame`` is the number of the first frame of
    ``before``. Only the keys and values of the last chunk have gradients.
    """
    chunk = generator.config.chunk_latents
    own = uniform(1, 0, 1, rng).item() < config.own_share
    rings: tuple[WindowRing, ...] | None = None
    for first in range(0, before.shape[2], chunk):
        piece = before[:, :, first : first + chunk]
        is_last = first + chunk == before.shape[2]
        at = start_frame + first
        run = partial(generator.forward_chunk, rings=rings, context=keys, first_frame=first, position=at)
        if own and is_last:
            with torch.no_grad():
                noise = normal(piece, rng)
                piece = noise - run(noise, 1000.0).flow_bcthw.float()
        else:
            piece = _blurred(config, piece, rng)
        with torch.set_grad_enabled(is_last and torch.is_grad_enabled()):
            rings = run(piece, generator.config.context_timestep).rings
    assert rings is not None, "there must be a preceding chunk"
    return rings


@torch.no_grad()
def roll_out(roles: CascadeRoles, captions: tuple[str, ...], shape: torch.Size, rng: torch.Generator) -> Tensor:
    """Return latents of ``shape [B, C, T, H, W]`` generated as at inference."""
    sampler = Sampler(roles.generator)
    batch, height, width = shape[0], shape[3], shape[4]
    state = sampler.init_state(batch=batch, height=height, width=width, context=roles.context(captions))
    weight = roles.generator.patch_embedding.weight
    noise = torch.randn(shape, generator=rng).to(weight)
    draws = torch.randn((batch, sampler.config.draws_per_chunk, *shape[1:]), generator=rng).to(weight)
    return regroup.run(sampler, state, GeneratorInputs(noise, draws))[1]


def learners(config: GeneratorRecipeConfig) -> tuple[Learner, ...]:
    """Return the only learner: generator and prompt encoder together."""
    student = Learner(name="student", roles=NETWORKS, loss=partial(loss, config), steady=False)
    return (replace(student, is_kernel=is_kernel) if config.orthogonal else student,)


def is_kernel(name: str) -> bool:
    """Return whether a parameter is updated with orthogonalised steps, which holds for
    the matrices of the transformer's blocks."""
    return name.startswith("generator.blocks.") and name.endswith(".weight")


def configure(*, steps: int, seed: int, toy: bool = False, profile: Profile = LITE) -> GeneratorRecipeConfig:
    """Return the settings for the generator of a built-in model, or for the toy
    model."""
    if toy:
        loop = LoopConfig(steps=steps, seed=seed, rate=4e-3, warmup=10, average=0.97, save_every=50, log_every=10)
        lengths = (ClipLength(latents=4),)
        return GeneratorRecipeConfig(loop=loop, profile=TOY, words=TOY_WORDS, size=TOY.base_size, lengths=lengths)

    assert isinstance(profile.text_encoder, PromptEncoderConfig), "the built-in models have words of their own"
    lengths = (
        ClipLength(latents=1, clips=4, odds=(0.7, 0.2), anywhere=True),
        ClipLength(latents=3, clips=1.25, odds=(0.1, 0.1), anywhere=True),
        ClipLength(latents=6, odds=(0.15, 0.45), anywhere=True),
        ClipLength(latents=9, clips=0.75, odds=(0.05, 0.25), anywhere=True),
    )

    return GeneratorRecipeConfig(
        loop=LoopConfig(
            steps=steps, seed=seed, rate=1.2e-3, kernel_rate=0.006, warmup=50, average=0.998, batch=4, save_every=500
        ),
        profile=profile,
        words=profile.text_encoder,
        lengths=lengths,
        shift=1.0,
        pure_share=0.4,  # the SR transformer starts from this network, so all levels must be learned
        thing_weight=8.0,
        thing_share=0.065,
        orthogonal=True,
        weight_below=1.0,
        text_drop=0.1,
        context_noise=0.1,
        own_share=0.5,
        refine_share=0.0,
        pixel_power=0.75,
        course_captions=16,
    )


def start(config: GeneratorRecipeConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> CascadeRoles:
    """Return the roles before the first step: the given encoder and decoder, and a new
    or given generator. Raises UsageError without weights, WeightsError if they do not
    match.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        parts = ("encoder", "decoder", *NETWORKS)
        roles = CascadeRoles(config.profile, parts, words=config.words)
    roles.load(weights, fresh=NETWORKS, hint="average.safetensors of a run of `autoencoder` or `decoder`")
    roles.learn(*NETWORKS)
    if config.pixel_power:
        weight = pixel_gain(roles).pow(config.pixel_power)
        roles.register_buffer(CHANNEL_WEIGHT, weight / weight.mean(), persistent=False)
    return roles


def make(config: GeneratorRecipeConfig, data: Path | None) -> Callable[[int], Batch]:
    """Return the function that makes a batch from its number; materials are not
    used."""
    return partial(scene_batch, config, None if data is None else data.absolute())


def clips(
    config: GeneratorRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return clips generated from captions, and the decoded scenes."""
    shown, captions, start_frame, _ = batch
    clean, captions, before = roles.latents_of(shown[:_PICTURED]), captions[:_PICTURED], start_frame or 0
    batch_size, channels, frames, *size = clean.shape
    drawn = roll_out(roles, captions, torch.Size((batch_size, channels, before + frames, *size)), rng)[:, :, before:]
    return roles.decode_base(drawn), roles.decode_base(clean)


def pictures(config: GeneratorRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Return a picture of clips generated from captions next to the scenes."""
    return sheet(*clips(config, roles, batch, rng))
