"""Runners for the cascade from noise to frames."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.vector_set import VectorSet
from ultraflash_cli.engine.layers.sparse_attention import SparseAttended
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.sampling import Sampler
from ultraflash_cli.engine.schedule import plan_generation
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig, DecoderStage
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler, LatentUpsamplerConfig
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig
from ultraflash_cli.engine.text_to_video import TextToVideo

__all__ = ["RUNNERS"]

VIDEO_TOLERANCE = 1e-3
"""Largest absolute difference of frames that are stored as float16."""
SHARED = ("dim", "num_heads", "num_layers", "ffn_dim", "freq_dim", "text_dim", "text_len")


def _cascade(vectors: VectorSet) -> None:
    config, io, weights = vectors.config, vectors.io, vectors.weights()
    latents: int = config["num_frames"]
    height, width = config["latent_hw"]
    profile = _profile(config)
    generator, upsampler = Generator(_known(profile.generator)), LatentUpsampler(profile.latent_stages[0])
    sr_dit, decoder = SrDit(_known(profile.sr_dit)), Decoder(profile.latent_stages[1])
    networks: dict[str, nn.Module] = {"lr": generator, "up": upsampler, "sr": sr_dit, "dec": decoder}
    vectors.expect("the list of weights", {name.split(".")[0] for name in weights} == networks.keys())
    for prefix, network in networks.items():
        own = {n.removeprefix(f"{prefix}."): x for n, x in weights.items() if n.startswith(f"{prefix}.")}
        network.load_state_dict(own)

    masks: list[Tensor] = []

    def note_mask(_module: nn.Module, _inputs: object, attended: SparseAttended) -> None:
        masks.append(attended.mask[0])

    sr_dit.blocks[0].get_submodule("self_attn").register_forward_hook(note_mask)
    draws = _StoredDraws(io, config)
    refiner = Refiner(profile, upsampler, sr_dit, decoder, noise=draws)
    plan = plan_generation(latents, independent_first=config["independent_first_frame"])
    video = TextToVideo(profile, plan, Sampler(generator), refiner=refiner, low_decoder=None, noise=draws)
    state = video.init_state(height=height, width=width, context=io["prompt_embeds"])
    groups: list[Any] = []
    for _ in plan.groups:
        state, group = video.step(state)
        groups.append(group)

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(group, name) for group in groups], dim=2).transpose(1, 2)

    for number, mask in enumerate(masks):
        if f"sr_mask.g{number}.layer0" in io:
            vectors.compare_mask(f"sr_mask.g{number}.layer0", mask)
    vectors.compare("lr_latents", whole("low_latents_bcthw"))
    vectors.compare("hr_latents", whole("latents_bcthw"))
    video_btchw = whole("frames_bcthw").clamp(0, 1)
    if "video_crop" in config:  # top, left, height, width of the stored part
        top, left, rows, columns = config["video_crop"]
        video_btchw = video_btchw[..., top : top + rows, left : left + columns]
    vectors.compare("video_f16", video_btchw, tolerance=VIDEO_TOLERANCE)
    vectors.expect("the number of frames", plan.total_frames == config["video_frames"])
    vectors.expect("the order of draws", draws.order == config["draw_order"])


def _profile(config: dict[str, Any]) -> Profile:
    lr, sr, up = config["lr"], config["sr"], config["up"]
    coarse, middle, fine, out = config["decoder_n_f"]
    local, channels = lr["local_attn_size"], up.get("in_channels", 16)
    return Profile(
        name="golden",
        encoder=EncoderConfig(latent_channels=channels),
        generator=GeneratorConfig(
            **{key: lr[key] for key in SHARED},
            latent_channels=lr["in_dim"],
            independent_first_frame=config["independent_first_frame"],
            window=local if local > 0 else config["num_frames"],
            slide=local > 0,
            sink=lr["sink_size"],
        ),
        upsampler=LatentUpsamplerConfig(
            scale=up["scale"], latent_channels=channels, width=up["mid_channels"], blocks=up["num_blocks"]
        ),
        sr_dit=SrDitConfig(
            **{key: sr[key] for key in SHARED},
            latent_channels=sr["out_dim"],
            local_range=sr["sparse_local_range"],
            ref_spatial_tokens=sr["sparse_ref_spatial_tokens"],
            top_k_ratio=sr["sparse_top_k_ratio"],
            kv_schedule=tuple(config.get("kv_len", ())),
        ),
        decoder=DecoderConfig(
            latent_channels=channels,
            stages=(
                DecoderStage(width=coarse),
                DecoderStage(width=middle, time_growth=2),
                DecoderStage(width=fine, time_growth=2),
            ),
            out_width=out,
        ),
        condition_noise=config["condition_noise_scale"],
    )


class _StoredDraws:
    """Stored draws that replace seeded noise; records the order in which they are
    requested."""

    def __init__(self, io: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.io = io
        self.later_steps = len(config["timesteps"]) - 1
        self.order: list[str] = []
        self.latents = 0

    def __call__(self, shape: tuple[int, ...], *, seed: int, stage: str, first_frame: int, group: int) -> Tensor:
        if stage == "generator":
            start = self.latents
            self.latents += shape[2]
            return self.io["noise"][:, start : self.latents].transpose(1, 2)
        if stage == "generator_step":
            steps = [self._next("lr") for _ in range(self.later_steps)]
            return torch.stack(steps).transpose(1, 2)[None]
        return self._next("sr")

    def _next(self, kind: str) -> Tensor:
        name = f"{kind}{sum(drawn.startswith(kind) for drawn in self.order)}"
        self.order.append(name)
        return self.io[f"draw.{name}"]


def _known(value: Any) -> Any:
    assert value is not None, "the profile is complete"
    return value


RUNNERS: dict[str, Callable[[VectorSet], None]] = {"cascade": _cascade}
"""Runner of each set, by the longest prefix of its name."""
