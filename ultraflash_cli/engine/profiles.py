"""Models as profiles: one frozen config a stage, and the names of the weights."""

from dataclasses import dataclass, replace

from ultraflash_cli.engine.stages.decoder import DecoderConfig, DecoderStage, SkipConfig
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsamplerConfig
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.errors import ConfigError

__all__ = ["LITE", "PROFILES", "Profile"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything the engine knows of a model."""

    name: str
    """What users call it."""
    encoder: EncoderConfig
    """Frames to low-resolution latents."""
    upsampler: LatentUpsamplerConfig
    """Low- to high-resolution latents; its scale is replaced by the plan's."""
    sr_dit: SrDitConfig | None
    """The one-step refinement; None where a model goes without."""
    decoder: DecoderConfig
    """High-resolution latents to frames."""
    group_latents: int = 6
    """Latent frames that go through the cascade together."""
    pad_front: int = 3
    """Copies of a stream's first frame in front of it; as many raw frames of the decoder are dropped."""
    multiple_px: int = 16
    """Low-resolution sides are padded to multiples of this."""
    weights: str = ""
    """Prefix of the weight names in the manifest."""

    def __post_init__(self) -> None:
        if self.sr_dit is not None and self.sr_dit.group_latents != self.group_latents:
            raise ConfigError(f"{self.name}: the SR transformer groups {self.sr_dit.group_latents} latents")
        if not 0 <= self.pad_front < 4 * self.group_latents:
            raise ConfigError(f"{self.name}: pad_front is shorter than a group, got {self.pad_front}")

    def at_scale(self, scale: int) -> "Profile":
        """Return the profile with every config set to work at ``scale``. Raises ConfigError for one it lacks."""
        skip = self.decoder.skip
        if skip is not None and scale not in skip.scales:
            raise ConfigError(f"{self.name} works at {skip.scales}, not at x{scale}")
        decoder = replace(self.decoder, skip=replace(skip, scale=scale)) if skip else self.decoder
        return replace(self, upsampler=replace(self.upsampler, scale=scale), decoder=decoder)


LITE = Profile(
    name="lite",
    encoder=EncoderConfig(width=32, blocks=1, patch=2, strides=(1, 2, 2), memory_init="replicate", negative_slope=0.1),
    upsampler=LatentUpsamplerConfig(width=48, blocks=2, negative_slope=0.1),
    sr_dit=SrDitConfig(
        dim=64,
        num_heads=2,
        num_layers=2,
        ffn_dim=128,
        freq_dim=32,
        text_len=0,
        block=(2, 4, 4),
        local_range=3,
        ref_spatial_tokens=96,
        kv_len=1,
        group_latents=2,
        prediction="residual",
    ),
    decoder=DecoderConfig(
        stages=(
            DecoderStage(width=48, blocks=1, upsample=False),
            DecoderStage(width=32, blocks=1, upsample=False, time_growth=2),
            DecoderStage(width=32, blocks=1, upsample=False, time_growth=2),
        ),
        out_width=32,
        memory_init="replicate",
        negative_slope=0.1,
        skip=SkipConfig(width=48, blocks=4, latent_features=16, scales=(2, 3)),
    ),
    group_latents=2,
    weights="lite",
)
"""The built-in model."""

PROFILES = {LITE.name: LITE}
"""Every model by name."""
