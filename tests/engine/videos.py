"""Tiny text-to-video cascades and functions to run them."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.contracts.stages import randomise
from ultraflash_cli.engine.profiles import TINY_RANDOM, Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.sampling import Sampler
from ultraflash_cli.engine.schedule import GenerationPlan
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.engine.text_to_video import GeneratedGroup, TextToVideo

__all__ = ["CONTEXT", "HEIGHT", "WIDTH", "frames_of", "run", "start", "video"]

HEIGHT, WIDTH = 4, 4


CONTEXT = torch.randn((1, 5, 24), generator=torch.Generator().manual_seed(8))


def video(
    plan: GenerationPlan, profile: Profile = TINY_RANDOM, *, refined: bool = True, low: bool = False, **options: Any
) -> TextToVideo:
    assert profile.generator is not None
    generator, base_decoder = Generator(profile.generator), Decoder(profile.base_decoder)
    networks: list[nn.Module] = [generator, base_decoder]
    assert profile.sr_dit is not None
    upsampler, sr_dit = LatentUpsampler(profile.latent_stages[0]), SrDit(profile.sr_dit)
    networks += [upsampler, sr_dit]
    for seed, network in enumerate(networks):
        randomise(network, seed)
    refiner = Refiner(profile, upsampler, sr_dit, base_decoder) if refined else None
    low_decoder = base_decoder if low or not refined else None
    return TextToVideo(profile, plan, Sampler(generator), refiner=refiner, low_decoder=low_decoder, **options)


def start(model: TextToVideo, **options: Any) -> Any:
    settings: dict[str, Any] = {"context": CONTEXT, **options}
    return model.init_state(height=HEIGHT, width=WIDTH, **settings)


def run(model: TextToVideo, **options: Any) -> list[GeneratedGroup]:
    state, groups = start(model, **options), list[GeneratedGroup]()
    for _ in model.plan.groups:
        state, group = model.step(state)
        groups.append(group)
    return groups


def frames_of(groups: list[GeneratedGroup]) -> Tensor:
    frames = [group.frames_bcthw for group in groups if group.frames_bcthw is not None]
    return torch.cat(frames, dim=2)
