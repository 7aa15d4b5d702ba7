"""Roles shared by the paper's recipes: a profile's networks under one module, frozen
until a learner trains them."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.low_frames import by_latent
from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig, DecoderStage
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler, LatentUpsamplerConfig
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoder, PromptEncoderConfig
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig
from ultraflash_cli.errors import UsageError, WeightsError

__all__ = ["CHANNEL_WEIGHT", "CONDITION", "TOY", "TOY_WORDS", "CascadeRoles", "dense", "load_roles", "pixel_gain"]

CHANNEL_WEIGHT = "channel_weight"
"""Name of the roles' buffer [C] with the weight of each latent channel's error."""

CONDITION = "decoder.condition."
"""Name prefix of the tensors that make a decoder read low-resolution frames."""

TOY_WORDS = PromptEncoderConfig(rows=64, dim=32, heads=2, layers=1, text_len=24)
"""A small prompt encoder for trial runs."""

TOY = Profile(
    name="toy",
    encoder=EncoderConfig(
        latent_channels=8, width=24, blocks=1, patch=2, strides=(1, 2, 2), memory_init="replicate", negative_slope=0.1
    ),
    upsampler=LatentUpsamplerConfig(latent_channels=8, width=24, blocks=1, negative_slope=0.1),
    sr_dit=SrDitConfig(
        dim=48,
        num_heads=2,
        num_layers=2,
        ffn_dim=96,
        freq_dim=32,
        text_dim=TOY_WORDS.dim,
        text_len=TOY_WORDS.text_len,
        latent_channels=8,
        block=(2, 2, 2),
        local_range=3,
        ref_spatial_tokens=None,
        top_k_ratio=0.5,
        kv_len=1,
        group_latents=2,
    ),
    decoder=DecoderConfig(
        latent_channels=8,
        stages=(
            DecoderStage(width=32, blocks=1),
            DecoderStage(width=24, blocks=1, time_growth=2),
            DecoderStage(width=16, blocks=1, time_growth=2),
        ),
        out_width=16,
        memory_init="replicate",
        negative_slope=0.1,
    ),
    generator=GeneratorConfig(
        dim=48,
        num_heads=2,
        num_layers=2,
        ffn_dim=96,
        freq_dim=32,
        text_dim=TOY_WORDS.dim,
        text_len=TOY_WORDS.text_len,
        latent_channels=8,
        chunk_latents=2,
        steps=(1000, 500),
        window=8,
    ),
    group_latents=2,
    base_size=(48, 80),
)
"""A model with every class of the published one, small enough to learn something on a
CPU within minutes."""


def dense(config: SrDitConfig, *, memory: int = 2**15) -> SrDitConfig:
    """Return a config that attends to every block that causality allows: no window, no
    budget, and a KV cache of ``memory`` temporal blocks."""
    return replace(config, local_range=0, top_k=2**31 - 1, kv_len=memory, kv_schedule=())


class CascadeRoles(nn.Module):
    """Some of a profile's networks as roles, and the steps of the cascade over whole clips, differentiable.

    ``parts`` are the roles to build, of encoder, upsamplers, decoder, sr_dit, generator and text_encoder.
    Nothing requires gradients before ``learn``.
    """

    def __init__(
        self,
        profile: Profile,
        parts: tuple[str, ...],
        *,
        scales: tuple[int, ...] = (2,),
        words: PromptEncoderConfig | None = None,
    ) -> None:
        super().__init__()
        self.profile = profile
        if "encoder" in parts:
            assert isinstance(profile.encoder, EncoderConfig), "the recipes train beside the small encoder"
            self.encoder = Encoder(profile.encoder)

        if "upsamplers" in parts:
            sizes = {scale: profile.at_scale(scale).latent_stages[0] for scale in scales}
            self.upsamplers = nn.ModuleDict({str(scale): LatentUpsampler(size) for scale, size in sizes.items()})
        if "decoder" in parts:
            self.decoder = Decoder(profile.latent_stages[1])

        if "sr_dit" in parts:
            assert profile.sr_dit is not None, f"{profile.name} has no SR transformer"
            self.sr_dit = SrDit(profile.sr_dit)
        if "generator" in parts:
            assert profile.generator is not None, f"{profile.name} has no generator"
            self.generator = Generator(profile.generator)

        if "text_encoder" in parts:
            assert words is not None, "a prompt encoder has a size"
            self.text_encoder = PromptEncoder(words)
        to_channels_last(self)
        self.requires_grad_(False)

    def learn(self, *roles: str) -> None:
        """Make the parameters of these roles require gradients."""
        for role in roles:
            self.get_submodule(role).requires_grad_(True)

    def load(self, weights: dict[str, Tensor] | None, *, fresh: tuple[str, ...] = (), hint: str = "") -> None:
        """Load weights into the roles. Tensors of other roles are ignored, and so are
        those for low-resolution frames if this decoder does not read any. Only roles in
        ``fresh`` may be missing. Raises UsageError (with ``hint``) if weights are
        needed but missing, WeightsError if they do not fit.
        """
        if any(p.is_meta for p in self.parameters()):
            return  # nothing to load into
        names = {name for name, _ in self.named_children()}
        if weights is None and names - set(fresh):
            raise UsageError(f"this recipe needs --start-from: {hint}")
        mine = {key: value for key, value in (weights or {}).items() if key.split(".")[0] in names}
        if "decoder" in names and not self.decoder.config.reads_low_frames:
            mine = {key: value for key, value in mine.items() if not key.startswith(CONDITION)}
        load_roles(self, mine, fresh=fresh, hint=f"; use {hint}")

    def encode(self, frames_bcthw: Tensor) -> Tensor:
        """Return the latents of clips [B, 3, T, H, W] in [0, 1], T a multiple of 4."""
        return self.encoder.encode(frames_bcthw.to(_dtype(self.encoder)), None)[0].float()

    def latents_of(self, shown_bcthw: Tensor) -> Tensor:
        """Return the latents of a batch of clips, which may be latents already."""
        return self.encode(shown_bcthw) if shown_bcthw.shape[1] == 3 else shown_bcthw

    def frames_of(self, shown_bcthw: Tensor) -> Tensor:
        """Return the frames of a batch of clips, which may be latents."""
        return shown_bcthw if shown_bcthw.shape[1] == 3 else self.decode(shown_bcthw)

    def upsample(self, latents_bcthw: Tensor, scale: int) -> Tensor:
        """Return high-resolution latents."""
        upsampler = self.upsamplers[str(scale)]
        assert isinstance(upsampler, LatentUpsampler), "the list holds upsamplers"
        return upsampler.upsample(latents_bcthw.to(_dtype(upsampler)), None)[0].float()

    def decode(self, latents_bcthw: Tensor, low_bcthw: Tensor | None = None) -> Tensor:
        """Decode latents to frames, together with low-resolution frames if the decoder
        reads them."""
        low = None if low_bcthw is None else by_latent(low_bcthw)
        return self.decoder.decode(latents_bcthw.to(_dtype(self.decoder)), None, low)[0].float()

    def decode_base(self, latents_bcthw: Tensor) -> Tensor:
        """Decode low-resolution latents to frames of the base size."""
        return self.decoder.decode(latents_bcthw, None)[0]

    def context(self, captions: tuple[str, ...] | Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the embeddings of captions, which may be embedded already; zeros
        (unconditional) where ``keep [B]`` is false."""
        embeds = captions if isinstance(captions, Tensor) else self.text_encoder.encode(captions)
        return embeds if keep is None else embeds * keep.to(embeds)[:, None, None]


def load_roles(roles: nn.Module, weights: dict[str, Tensor], *, fresh: tuple[str, ...] = (), hint: str = "") -> None:
    """Load weights into the roles; only roles in ``fresh`` may be missing. Raises
    WeightsError, whose message ends with ``hint``, if they do not fit."""
    try:
        missing, unexpected = roles.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise WeightsError(
            f"the weights of --start-from have different shapes ({str(error).splitlines()[-1].strip()})"
        ) from error
    given = {key.split(".")[0] for key in weights}
    missing = [key for key in missing if key.split(".")[0] in given or key.split(".")[0] not in fresh]
    if missing or unexpected:
        raise WeightsError(
            f"the weights of --start-from lack {len(missing)} tensors ({', '.join(missing[:3]) or 'none'}) and have "
            f"{len(unexpected)} unexpected ones ({', '.join(unexpected[:3]) or 'none'}){hint}"
        )


@torch.no_grad()
def pixel_gain(roles: CascadeRoles) -> Tensor:
    """Return the sensitivity of the frames to a small error in each channel: [C],
    ratios of mean squares."""
    channels, size, probe = roles.decoder.config.latent_channels, 12, 0.1
    noise = probe * torch.randn((channels, 1, 3, size, size), generator=torch.Generator().manual_seed(0))
    still = torch.zeros(1, channels, 3, size, size)
    alone = torch.eye(channels).view(channels, channels, 1, 1, 1) * noise
    return (roles.decode_base(alone) - roles.decode_base(still)).square().mean((1, 2, 3, 4)) / probe**2


def _dtype(network: nn.Module) -> torch.dtype:
    """Return the dtype of a network's inputs; frozen networks may be in bfloat16."""
    return next(network.parameters()).dtype
