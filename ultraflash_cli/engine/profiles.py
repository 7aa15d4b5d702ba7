"""Models as profiles: one frozen config per stage, and the names of the weights."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, Alignment
from ultraflash_cli.engine.stages.decoder import DecoderConfig, DecoderStage
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsamplerConfig
from ultraflash_cli.engine.stages.pixel_path import PixelPathConfig
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.engine.stages.text_encoder import TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig
from ultraflash_cli.engine.vocabulary import LAYOUT_WORDS, SCENE_WORDS
from ultraflash_cli.errors import ConfigError

__all__ = [
    "LITE",
    "LITE2",
    "LITE_CASCADE",
    "PROFILES",
    "RELEASED_ULTRA_DECODER",
    "TINY_LITE",
    "TINY_RANDOM",
    "TRAINED",
    "ULTRAFLASH",
    "Precision",
    "Profile",
]

TAEHV_ALIGNMENT = Alignment()

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything the engine knows of a model: which stages it has, and their sizes.

    Clips are upscaled by ``pixels`` if the model has it, else by encoder,
    ``upsampler``, ``sr_dit`` and ``decoder``. Generated latents go through
    ``upsampler``, ``sr_dit`` and ``decoder`` if the model has them, else through
    ``low_decoder`` and ``pixels``.
    """

    name: str
    """What users call it."""
    encoder: EncoderConfig | WanVaeConfig
    """Frames to low-resolution latents; a model with ``pixels`` only needs it for clips
    to continue."""
    upsampler: LatentUpsamplerConfig | None = None
    """Low- to high-resolution latents; its scale is replaced by the plan's. None with
    ``decoder``."""
    sr_dit: SrDitConfig | None = None
    """The one-step refinement; None if a model goes without."""
    decoder: DecoderConfig | None = None
    """High-resolution latents to frames; None if a model has no latents of that
    size."""
    pixels: PixelPathConfig | None = None
    """Low- to high-resolution frames; its scale is replaced by the plan's. None where
    latents are enlarged."""
    group_latents: int = 6
    """Latent frames that go through the cascade together."""
    generator: GeneratorConfig | None = None
    """Prompts to low-resolution latents; None if a model only upscales."""
    long_generator: GeneratorConfig | None = None
    """The generator's variant for clips beyond its window, with its own weights."""
    low_decoder: DecoderConfig | None = None
    """Low-resolution latents to frames at the base size; None if the decoder itself
    makes them."""
    text_encoder: TextEncoderConfig | PromptEncoderConfig | None = None
    """Prompts to embeddings; None for a model without text path."""
    wan_vae: WanVaeConfig | None = None
    """The full autoencoder that may stand in for the small encoder."""
    base_size: tuple[int, int] = (480, 832)
    """Height and width in pixels of what the generator draws."""
    notice: str = ""
    """What people are told of its clips before one is made; empty if there is
    nothing to say."""
    alignment: Alignment = TAEHV_ALIGNMENT
    """How frames and latents line up at the start of a stream."""
    condition_noise: float = 0.0
    """Share of noise mixed into the SR transformer's condition: 0 in every published
    command. The published function defaults to 0.2, and at least one public user runs
    it with that."""
    long_kv_schedule: bool = False
    """Whether the SR transformer's memory shrinks over a clip of the long variant, as
    the published long program has it by default (3, 3, 3, 2 temporal blocks after four
    groups)."""
    spares_passes: bool = True
    """Whether the cache rule that skips context passes is available: scoring a chunk
    has to cost less than the pass. In the built-in model it costs more."""
    invents_texture: bool = False
    """Whether the SR transformer paints texture onto flat colours, so that drawings and
    screens look wrong."""
    default_prompt: str = ""
    """The SR transformer's prompt for a clip without one. The published programs have
    none: there it always gets the generator's prompt."""
    multiple_px: int = 16
    """Low-resolution sides are padded to multiples of this."""
    precisions: tuple[tuple[str, Precision], ...] = ()
    """The published precision of each stage on a GPU; other stages run as requested or
    in the fastest precision."""
    weights: tuple[tuple[str, str], ...] = ()
    """The name in the manifest of each part's weights; ``{scale}`` stands for the
    scale."""
    random_seed: int | None = None
    """Seed of random weights that replace those of a manifest, for tests."""

    def __post_init__(self) -> None:
        if self.sr_dit is not None and self.sr_dit.group_latents != self.group_latents:
            raise ConfigError(
                f"{self.name}: the SR transformer groups {self.sr_dit.group_latents} "
                "latents"
            )
        pad, drop = self.alignment.pad_front, self.alignment.drop_front
        if not 0 <= pad <= drop < FRAMES_PER_LATENT * self.group_latents:
            raise ConfigError(
                f"{self.name}: pad_front must be at most drop_front and that below a "
                "group, "
                f"got {pad} and {drop}"
            )
        if (self.upsampler is None) != (self.decoder is None):
            raise ConfigError(f"{self.name}: upsampler and decoder must be given together")
        if self.decoder is None and (self.pixels is None or self.sr_dit is not None):
            raise ConfigError(
                f"{self.name}: without a decoder the pixel path enlarges, and there is no "
                "SR transformer"
            )
        if self.alignment.delay and self.pixels:
            raise ConfigError(
                f"{self.name}: the pixel path needs pad_front equal to drop_front"
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
        if self.decoder is None and self.low_decoder is None:
            raise ConfigError(f"{self.name}: a generator needs a decoder")
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
        """Whether the SR transformer reads a prompt, so that an upscaling may have
        one."""
        return self.sr_dit is not None and self.sr_dit.text_len > 0

    @property
    def prompt_encoder(self) -> PromptEncoderConfig:
        """The text encoder of a model trained on its own vocabulary."""
        words = self.text_encoder
        assert isinstance(words, PromptEncoderConfig), (
            f"{self.name} has no words of its own"
        )
        return words

    @property
    def base_decoder(self) -> DecoderConfig:
        """The decoder of low-resolution latents."""
        decoder = self.low_decoder or self.decoder
        assert decoder is not None, f"{self.name} has no decoder"
        return decoder

    @property
    def refines_latents(self) -> bool:
        """Whether generated clips are upscaled as latents; otherwise as frames."""
        return self.decoder is not None

    @property
    def base_decoder_part(self) -> str:
        """The name of the part that ``base_decoder`` is."""
        return "decoder" if self.low_decoder is None else "low_decoder"

    def chunks_per_group(self, generator: GeneratorConfig) -> int:
        """Return how many chunks of a generator are refined together: the smallest
        number that makes whole groups."""
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
        """Growth per side of what enlarges."""
        enlarging = self.upsampler or self.pixels
        assert enlarging is not None, f"{self.name} enlarges nothing"
        return enlarging.scale

    def at_scale(self, scale: int) -> "Profile":
        """Return the profile with every config set to work at ``scale``. Raises
        ConfigError for one it lacks."""
        if self.pixels is not None and scale not in self.pixels.scales:
            raise ConfigError(f"{self.name} works at {self.pixels.scales}, not at x{scale}")
        upsampler = self.upsampler and replace(self.upsampler, scale=scale)
        return replace(
            self,
            upsampler=upsampler,
            pixels=self.pixels and replace(self.pixels, scale=scale),
        )


_LITE_SR_DIT = SrDitConfig(
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
)

_LITE_LOW_DECODER = DecoderConfig(
    stages=(
        DecoderStage(width=64, blocks=2, upsample=False, time_growth=2),
        DecoderStage(width=64, blocks=1, upsample=False, time_growth=2),
        DecoderStage(width=64, blocks=1, upsample=False),
    ),
    out_width=64,
    last_shuffle=8,
    memory_init="replicate",
    negative_slope=0.1,
)
_LITE_WORDS = PromptEncoderConfig(
    words=SCENE_WORDS, variants=LAYOUT_WORDS, dim=96, heads=4, layers=2, text_len=32
)
_LITE_GENERATOR = GeneratorConfig(
    dim=192,
    num_heads=4,
    num_layers=6,
    ffn_dim=1024,
    freq_dim=64,
    text_dim=_LITE_WORDS.dim,
    text_len=_LITE_WORDS.text_len,
    patch=(1, 4, 8),
    prediction="clean",
    sees_signal=True,
    pool_text=True,
    grid=(15, 13),
    head_dim=384,
    drifts=((0, 1), (0, -1), (-1, 0)),
    steps=(1000, 100),
    shift=0.7,
    window=6,
    slide=True,
)
LITE = Profile(
    name="lite",
    encoder=EncoderConfig(
        width=64,
        blocks=1,
        patch=8,
        strides=(1, 1, 1),
        memory_init="replicate",
        negative_slope=0.1,
    ),
    pixels=PixelPathConfig(),
    low_decoder=_LITE_LOW_DECODER,
    generator=_LITE_GENERATOR,
    text_encoder=_LITE_WORDS,
    group_latents=2,
    spares_passes=False,
    notice="lite makes simple landscapes; "
    "for real clips run `ultraflash weights pull ultraflash`, on a GPU",
    precisions=(("text_encoder", "fp32"),),
    weights=(
        ("encoder", "lite/encoder"),
        ("pixels", "lite/pixels"),
        ("pixels_detail", "lite/pixels_detail"),
        ("low_decoder", "lite/low_decoder"),
        ("generator", "lite/generator"),
        ("text_encoder", "lite/text_encoder"),
    ),
)
"""The built-in model."""

LITE_CASCADE = replace(
    LITE,
    name="lite-cascade",
    upsampler=LatentUpsamplerConfig(width=48, blocks=2, negative_slope=0.1),
    sr_dit=_LITE_SR_DIT,
    decoder=_LITE_LOW_DECODER,
)
"""The built-in model with the paper's stages after its generator, for the recipes that
train them; not shipped."""

_LITE2_GENERATOR = replace(
    _LITE_GENERATOR,
    num_heads=3,
    patch=(1, 4, 4),
    grid=(15, 26),
    drifts=(),
    steps=(1000,),
    shift=1.0,
    window=9,
    sink=3,
)

_LITE2_SR_DIT = SrDitConfig(
    dim=_LITE2_GENERATOR.dim,
    num_heads=_LITE2_GENERATOR.num_heads,
    num_layers=_LITE2_GENERATOR.num_layers,
    ffn_dim=_LITE2_GENERATOR.ffn_dim,
    freq_dim=_LITE2_GENERATOR.freq_dim,
    text_dim=_LITE2_GENERATOR.text_dim,
    text_len=_LITE2_GENERATOR.text_len,
    patch=_LITE2_GENERATOR.patch,
    block=(2, 6, 8),
    local_range=3,
    ref_spatial_tokens=30 * 52,
    top_k_ratio=0.12,
    kv_len=3,
    group_latents=2,
    prediction="residual",
    sees_signal=_LITE2_GENERATOR.sees_signal,
    pool_text=_LITE2_GENERATOR.pool_text,
    head_dim=_LITE2_GENERATOR.head_dim,
)
"""The same network as the generator's, so that it can start from it."""

LITE2 = replace(
    LITE_CASCADE,
    name="lite2",
    encoder=EncoderConfig(
        width=64,
        blocks=1,
        patch=4,
        strides=(1, 1, 2),
        memory_init="replicate",
        negative_slope=0.1,
        linear_trunk=True,
    ),
    decoder=DecoderConfig(
        stages=(
            DecoderStage(width=96, blocks=3, time_growth=2),
            DecoderStage(width=64, blocks=1, upsample=False, time_growth=2),
            DecoderStage(width=64, blocks=1, upsample=False),
        ),
        out_width=64,
        upsampling="pixel_shuffle",
        last_shuffle=4,
        memory_init="replicate",
        negative_slope=0.1,
        linear_trunk=True,
    ),
    low_decoder=None,
    generator=_LITE2_GENERATOR,
    sr_dit=_LITE2_SR_DIT,
    weights=(),
)
"""The next built-in model, unfinished: one latent space for 480p and 1K."""

RELEASED_ULTRA_DECODER = DecoderConfig(
    stages=(
        DecoderStage(width=256),
        DecoderStage(width=128, time_growth=2),
        DecoderStage(width=64, time_growth=2),
    ),
    out_width=None,
    upsampling="pixel_shuffle",
    memory_init="replicate",
    soft_clamp=False,
    signed=True,
)
"""The layout of the released ultra decoder, as reported by users:
no encoder, no soft clamp, no convolution before the last ReLU, values in [-1, 1]. 69
tensors, 12,906,115 numbers."""

_GENERATOR = GeneratorConfig()

ULTRAFLASH = Profile(
    name="ultraflash",
    encoder=EncoderConfig(),
    upsampler=LatentUpsamplerConfig(),
    sr_dit=SrDitConfig(mask_dtype="bfloat16"),
    decoder=DecoderConfig(),
    generator=_GENERATOR,
    long_generator=replace(
        _GENERATOR, window=12, sink=3, slide=True, independent_first_frame=True
    ),
    text_encoder=TextEncoderConfig(),
    wan_vae=WanVaeConfig(),
    default_prompt="A high quality video, sharp and rich in natural detail.",
    long_kv_schedule=True,
    invents_texture=True,
    precisions=(
        ("text_encoder", "bf16"),
        ("generator", "bf16"),
        ("upsampler", "bf16"),
        ("sr_dit", "bf16"),
        ("encoder", "fp16"),
        ("decoder", "fp16"),
        ("wan_vae", "fp32"),
    ),
    weights=(
        ("encoder", "ultraflash/decoder"),
        ("upsampler", "ultraflash/upsampler_x{scale}"),
        ("sr_dit", "ultraflash/sr_dit_x{scale}"),
        ("decoder", "ultraflash/decoder"),
        ("ultra_decoder", "ultraflash/ultra_decoder"),
        ("generator", "ultraflash/generator"),
        ("long_generator", "ultraflash-long/generator"),
        ("long_lora", "ultraflash-long/lora"),
        ("text_encoder", "wan/text_encoder"),
        ("wan_vae", "wan/vae"),
    ),
)
"""The published model."""

_TINY_GENERATOR = GeneratorConfig(
    dim=48,
    num_heads=2,
    num_layers=2,
    ffn_dim=64,
    freq_dim=32,
    text_dim=24,
    text_len=32,
    window=9,
)

TINY_RANDOM = Profile(
    name="tiny-random",
    encoder=EncoderConfig(width=8, blocks=1),
    upsampler=LatentUpsamplerConfig(width=16, blocks=1),
    sr_dit=SrDitConfig(
        dim=48,
        num_heads=2,
        num_layers=2,
        ffn_dim=64,
        freq_dim=32,
        text_dim=24,
        text_len=32,
        ref_spatial_tokens=60,
        local_range=3,
    ),
    decoder=DecoderConfig(
        stages=(
            DecoderStage(width=16, blocks=1),
            DecoderStage(width=12, blocks=1, time_growth=2),
            DecoderStage(width=8, blocks=1, time_growth=2),
        ),
        out_width=8,
    ),
    generator=_TINY_GENERATOR,
    long_generator=replace(
        _TINY_GENERATOR, window=6, sink=2, slide=True, independent_first_frame=True
    ),
    text_encoder=TextEncoderConfig(
        vocab=384, dim=24, ffn_dim=32, heads=4, layers=2, text_len=32
    ),
    wan_vae=WanVaeConfig(width=4, blocks=1),
    base_size=(64, 96),
    default_prompt="A clip.",
    random_seed=20260609,
)
"""Every class of the published model at a tiny size with random weights, for tests."""

_TINY_WORDS = PromptEncoderConfig(rows=32, dim=16, heads=2, layers=1, text_len=8)

TINY_LITE = Profile(
    name="tiny-lite",
    encoder=EncoderConfig(
        width=8,
        blocks=1,
        patch=2,
        strides=(1, 2, 2),
        memory_init="replicate",
        negative_slope=0.1,
    ),
    pixels=PixelPathConfig(width=8, blocks=2),
    low_decoder=DecoderConfig(
        stages=(
            DecoderStage(width=12, blocks=1),
            DecoderStage(width=8, blocks=1, time_growth=2),
            DecoderStage(width=8, blocks=1, time_growth=2),
        ),
        out_width=8,
        memory_init="replicate",
        negative_slope=0.1,
    ),
    group_latents=2,
    generator=GeneratorConfig(
        dim=32,
        num_heads=2,
        num_layers=2,
        ffn_dim=48,
        freq_dim=16,
        text_dim=_TINY_WORDS.dim,
        text_len=_TINY_WORDS.text_len,
        patch=(1, 4, 4),
        steps=(1000, 500),
        window=6,
        slide=True,
    ),
    text_encoder=_TINY_WORDS,
    base_size=(64, 96),
    notice="tiny-lite generates nothing recognisable",
    precisions=(("text_encoder", "fp32"),),
    random_seed=20261128,
)
"""Every class of the built-in model at a tiny size with random weights, for tests."""

TRAINED = {profile.name: profile for profile in (LITE, LITE2)}
"""The profiles that recipes train, by name."""

PROFILES = {profile.name: profile for profile in (LITE, ULTRAFLASH, TINY_RANDOM, TINY_LITE)}
"""Every model by name."""
