"""The profile of a model: one frozen config per stage, and the names of the weights."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, Alignment
from ultraflash_cli.engine.stages.decoder import DecoderConfig
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsamplerConfig
from ultraflash_cli.engine.stages.pixel_path import PixelPathConfig
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.engine.stages.text_encoder import TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig
from ultraflash_cli.errors import ConfigError

__all__ = ["Precision", "Profile"]

TAEHV_ALIGNMENT = Alignment()

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything the engine knows about a model: its stages, and their sizes.

    Clips are upscaled by ``pixels`` if the model has it, else by encoder,
    ``upsampler``, ``sr_dit`` and ``decoder``. Generated latents always go through
    ``upsampler``, ``sr_dit`` and ``decoder``.
    """

    name: str
    """Name for users."""
    encoder: EncoderConfig | WanVaeConfig
    """Encoder from frames to low-resolution latents; a model with ``pixels`` needs it
    only to continue clips."""
    upsampler: LatentUpsamplerConfig | None = None
    """Upsampler from low- to high-resolution latents; its scale is replaced by the
    plan's. None if ``decoder`` is None."""
    sr_dit: SrDitConfig | None = None
    """The one-step SR transformer; None for models without one."""
    decoder: DecoderConfig | None = None
    """Decoder from latents to frames, both at the base size and refined; None if a
    model only enlarges frames."""
    pixels: PixelPathConfig | None = None
    """Pixel path from low- to high-resolution frames; its scale is replaced by the
    plan's. None if clips are enlarged as latents."""
    group_latents: int = 6
    """Latent frames processed together by the cascade."""
    generator: GeneratorConfig | None = None
    """Generator from prompts to low-resolution latents; None if a model only
    upscales."""
    long_generator: GeneratorConfig | None = None
    """The generator's variant for clips beyond its window, with its own weights."""
    text_encoder: TextEncoderConfig | PromptEncoderConfig | None = None
    """Encoder from prompts to embeddings; None for a model without a text path."""
    wan_vae: WanVaeConfig | None = None
    """The full autoencoder, an alternative to the small encoder."""
    base_size: tuple[int, int] = (480, 832)
    """Height and width in pixels at which the generator works."""
    notice: str = ""
    """Notice shown before a clip is generated; empty if there is none."""
    alignment: Alignment = TAEHV_ALIGNMENT
    """Alignment of frames and latents at the start of a stream."""
    condition_noise: float = 0.0
    """Share of noise mixed into the SR transformer's condition: 0 in every published
    command. The published function defaults to 0.2, with which at least one public
    project runs it."""
    long_kv_schedule: bool = False
    """Whether the SR transformer's KV cache shrinks over a clip of the long variant,
    which is the default of the published long program (3, 3, 3, 2 temporal blocks after
    four groups)."""
    saving_rules: tuple[Literal["refresh", "kv"], ...] = ("refresh", "kv")
    """Cache management rules that are available because they save at least a tenth of
    the time. In the built-in model, scoring a chunk costs more than the pass that
    ``refresh`` skips, and ``kv`` saves 3 %."""
    invents_texture: bool = False
    """Whether the SR transformer adds texture to flat colours, which spoils drawings
    and screen recordings."""
    default_prompt: str = ""
    """The SR transformer's prompt for a clip without one. The published programs have
    none, as they always use the generator's prompt."""
    multiple_px: int = 16
    """Low-resolution sides are padded to multiples of this."""
    precisions: tuple[tuple[str, Precision], ...] = ()
    """The published precision of each stage on a GPU; other stages run as requested or
    in the fastest precision."""
    weights: tuple[tuple[str, str], ...] = ()
    """Name of each part's weights in the manifest; ``{scale}`` is replaced by the
    scale."""
    random_seed: int | None = None
    """Seed of random weights that replace those in the manifest, for tests."""

    def __post_init__(self) -> None:
        if self.sr_dit is not None and self.sr_dit.group_latents != self.group_latents:
            raise ConfigError(
                f"{self.name}: groups must have {self.sr_dit.group_latents} latents, as in "
                f"the SR transformer, got {self.group_latents}"
            )

        pad, drop = self.alignment.pad_front, self.alignment.drop_front
        if not 0 <= pad <= drop < FRAMES_PER_LATENT * self.group_latents:
            raise ConfigError(
                f"{self.name}: pad_front must not exceed drop_front, and drop_front must "
                f"be smaller than a group; got pad_front={pad}, drop_front={drop}"
            )
        if (self.upsampler is None) != (self.decoder is None):
            raise ConfigError(f"{self.name}: upsampler and decoder must be given together")
        if self.decoder is None and (self.pixels is None or self.sr_dit is not None):
            raise ConfigError(
                f"{self.name}: without a decoder, a pixel path is required and an SR "
                "transformer is not allowed"
            )
        if self.alignment.delay and self.pixels:
            raise ConfigError(
                f"{self.name}: the pixel path requires pad_front equal to drop_front"
            )
        if not 0 <= self.condition_noise < 1:
            raise ConfigError(
                f"{self.name}: condition_noise must be within 0..1, got "
                f"{self.condition_noise}"
            )
        if any(side % self.multiple_px for side in self.base_size):
            raise ConfigError(
                f"{self.name}: the base size {self.base_size} is not a multiple of "
                f"{self.multiple_px}"
            )

        for generator in (self.generator, self.long_generator):
            if generator is not None:
                self._check_generator(generator)

    def _check_generator(self, generator: GeneratorConfig) -> None:
        if self.decoder is None:
            raise ConfigError(f"{self.name}: a generator requires a decoder")
        if self.base_decoder.latent_channels != generator.latent_channels:
            raise ConfigError(
                f"{self.name}: generator and decoder have different latent channels"
            )
        words = self.text_encoder
        if words is not None and (generator.text_dim, generator.text_len) != (
            words.dim,
            words.text_len,
        ):
            raise ConfigError(
                f"{self.name}: the text encoder's embeddings do not match the generator"
            )

    @property
    def refines_by_words(self) -> bool:
        """Whether the SR transformer is conditioned on a prompt."""
        return self.sr_dit is not None and self.sr_dit.text_len > 0

    @property
    def upscales_by_words(self) -> bool:
        """Whether `upscale` accepts a prompt, that is, clips pass through such a
        transformer."""
        return self.refines_by_words and self.pixels is None

    @property
    def prompt_encoder(self) -> PromptEncoderConfig:
        """The text encoder, if the model was trained on its own vocabulary."""
        words = self.text_encoder
        assert isinstance(words, PromptEncoderConfig), (
            f"{self.name} has no words of its own"
        )
        return words

    @property
    def base_decoder(self) -> DecoderConfig:
        """The decoder of a model that has one."""
        assert self.decoder is not None, f"{self.name} has no decoder"
        return self.decoder

    def chunks_per_group(self, generator: GeneratorConfig) -> int:
        """Return how many chunks of a generator are refined together: the smallest
        number that yields whole groups."""
        return (
            math.lcm(generator.chunk_latents, self.group_latents) // generator.chunk_latents
        )

    def weight_of(self, part: str) -> str:
        """Return the name of the weights of a part at the profile's scale. Raises
        ConfigError for a part it lacks."""
        for name, weights in self.weights:
            if name == part:
                return weights.format(scale=self.scale)
        raise ConfigError(f"{self.name} has no {part}")

    @property
    def latent_stages(self) -> tuple[LatentUpsamplerConfig, DecoderConfig]:
        """The upsampler and decoder of a model that has them."""
        assert self.upsampler is not None and self.decoder is not None, (
            f"{self.name} enlarges frames, not latents"
        )
        return self.upsampler, self.decoder

    @property
    def scale(self) -> int:
        """Growth per side of the network that enlarges."""
        enlarging = self.upsampler or self.pixels
        assert enlarging is not None, f"{self.name} enlarges nothing"
        return enlarging.scale

    def at_scale(self, scale: int) -> "Profile":
        """Return the profile with every config set to ``scale``. Raises ConfigError for
        an unsupported scale."""
        if self.pixels is not None and scale not in self.pixels.scales:
            raise ConfigError(f"{self.name} works at {self.pixels.scales}, not at x{scale}")
        upsampler = self.upsampler and replace(self.upsampler, scale=scale)
        return replace(
            self,
            upsampler=upsampler,
            pixels=self.pixels and replace(self.pixels, scale=scale),
        )
