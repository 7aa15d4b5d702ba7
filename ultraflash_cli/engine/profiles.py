"""Available models: the built-in one, the published one, and two small ones for
tests."""

from dataclasses import replace

from ultraflash_cli.engine.layers.moving_places import Course
from ultraflash_cli.engine.profile import Precision, Profile
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, GENERATED_FPS
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

__all__ = [
    "LITE",
    "PROFILES",
    "RELEASED_ULTRA_DECODER",
    "TINY_LITE",
    "TINY_RANDOM",
    "TRAINED",
    "ULTRAFLASH",
    "Precision",
    "Profile",
]

_LITE_WORDS = PromptEncoderConfig(
    words=SCENE_WORDS, variants=LAYOUT_WORDS, dim=96, heads=4, layers=2, text_len=32
)

_SPEEDS = (0.375, 0.4875, 0.6)
"""Speeds of moving things, in tokens of the generator per latent frame."""

_QUICK = tuple(1.3 * speed for speed in _SPEEDS)
"""Speeds of birds and cars."""

_SECONDS = ((2.6358, 4.0266, 0.3320), (4.3608, 1.1733, 2.4898), (4.4889, 0.3793, 4.5001))
"""Phases of hops and wing beats for each speed: for how many seconds each thing of a
group has been in motion at the first latent frame."""


def _swinging(
    speeds: tuple[float, ...], rate: float, hop: float = 0.0
) -> tuple[Course, ...]:
    """Return the courses of things that move right and left and swing at ``rate``
    radians per second."""
    return tuple(
        Course(
            right=way * speed,
            hop=hop,
            rate=rate * FRAMES_PER_LATENT / GENERATED_FPS,
            phases=(rate * seconds[0], rate * seconds[1], rate * seconds[2]),
        )
        for way in (1, -1)
        for speed, seconds in zip(speeds, _SECONDS, strict=True)
    )


_LITE_GENERATOR = GeneratorConfig(
    dim=192,
    num_heads=3,
    num_layers=6,
    ffn_dim=1024,
    freq_dim=64,
    text_dim=_LITE_WORDS.dim,
    text_len=_LITE_WORDS.text_len,
    patch=(1, 4, 4),
    prediction="clean",
    sees_signal=True,
    pool_text=True,
    grid=(15, 26),
    head_dim=384,
    courses=(
        Course(),
        *(
            Course(right=way * speed)
            for way in (1, -1)
            for speed in (*_SPEEDS, *_QUICK[1:])
        ),
        *(Course(down=-speed) for speed in _SPEEDS),
        *_swinging(_SPEEDS, rate=2.6, hop=3.3),
        *_swinging(_QUICK, rate=7.0),
    ),
    laps=(19.5, 35.0),
    slow_frames=81,
    wave_rates=tuple(
        rate * FRAMES_PER_LATENT / GENERATED_FPS for rate in (1.1, 1.3, 1.5, 1.7)
    ),
    steps=(1000,),
    shift=1.0,
    window=9,
    sink=0,
    slide=True,
)

_LITE_SR_DIT = SrDitConfig(
    dim=_LITE_GENERATOR.dim,
    num_heads=_LITE_GENERATOR.num_heads,
    num_layers=_LITE_GENERATOR.num_layers,
    ffn_dim=_LITE_GENERATOR.ffn_dim,
    freq_dim=_LITE_GENERATOR.freq_dim,
    text_dim=_LITE_GENERATOR.text_dim,
    text_len=_LITE_GENERATOR.text_len,
    patch=_LITE_GENERATOR.patch,
    block=(2, 6, 8),
    local_range=3,
    ref_spatial_tokens=30 * 52,
    top_k_ratio=0.12,
    kv_len=3,
    group_latents=2,
    prediction="residual",
    sees_signal=_LITE_GENERATOR.sees_signal,
    pool_text=_LITE_GENERATOR.pool_text,
    head_dim=_LITE_GENERATOR.head_dim,
)
"""Same sizes as the generator, so that it can be initialised from the generator's
weights."""

LITE = Profile(
    name="lite",
    encoder=EncoderConfig(
        width=64,
        blocks=1,
        patch=4,
        strides=(1, 1, 2),
        memory_init="replicate",
        negative_slope=0.1,
        linear_trunk=True,
    ),
    upsampler=LatentUpsamplerConfig(
        width=48, blocks=2, negative_slope=0.1, padding="replicate"
    ),
    sr_dit=_LITE_SR_DIT,
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
    pixels=PixelPathConfig(),
    generator=_LITE_GENERATOR,
    text_encoder=_LITE_WORDS,
    group_latents=2,
    saving_rules=(),
    notice="lite makes simple landscapes; "
    "for real clips run `ultraflash weights pull ultraflash`, on a GPU",
    precisions=(("text_encoder", "fp32"),),
    weights=(
        ("encoder", "lite/encoder"),
        ("upsampler", "lite/upsampler_x{scale}"),
        ("sr_dit", "lite/sr_dit"),
        ("decoder", "lite/decoder"),
        ("pixels", "lite/pixels"),
        ("pixels_detail", "lite/pixels_detail"),
        ("generator", "lite/generator"),
        ("text_encoder", "lite/text_encoder"),
    ),
)
"""Built-in model: one latent space for 480p and 1K, and a pixel path for clips."""

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
"""Layout of the released ultra decoder, as reported by users: no encoder, no soft
clamp, no convolution before the last ReLU, values in [-1, 1]. It has 69 tensors with
12,906,115 numbers."""

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
"""Published model."""

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
    upsampler=LatentUpsamplerConfig(width=8, blocks=1, negative_slope=0.1),
    sr_dit=SrDitConfig(
        dim=32,
        num_heads=2,
        num_layers=2,
        ffn_dim=48,
        freq_dim=16,
        text_dim=_TINY_WORDS.dim,
        text_len=_TINY_WORDS.text_len,
        patch=(1, 4, 4),
        block=(2, 2, 2),
        local_range=3,
        ref_spatial_tokens=24,
        top_k_ratio=0.5,
        group_latents=2,
        prediction="residual",
    ),
    decoder=DecoderConfig(
        stages=(
            DecoderStage(width=12, blocks=1),
            DecoderStage(width=8, blocks=1, time_growth=2),
            DecoderStage(width=8, blocks=1, time_growth=2),
        ),
        out_width=8,
        memory_init="replicate",
        negative_slope=0.1,
    ),
    pixels=PixelPathConfig(width=8, blocks=2),
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

TRAINED = {profile.name: profile for profile in (LITE, ULTRAFLASH)}
"""Profiles that recipes train, by name."""

PROFILES = {profile.name: profile for profile in (LITE, ULTRAFLASH, TINY_RANDOM, TINY_LITE)}
"""All models by name."""
