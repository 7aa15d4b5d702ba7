"""The memory of a job: the numbers, and the formulas compared with the code that they
describe."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.engine.live_bytes import LiveBytes
from tests.engine.published import part, published
from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.footprint.activations import (
    decoder_activations,
    encoder_activations,
    generator_activations,
    pixel_path_activations,
    sr_dit_activations,
    text_encoder_activations,
    text_encoder_parameters,
    upsampler_activations,
    wan_vae_activations,
)
from ultraflash_cli.engine.footprint.ladder import plan_memory
from ultraflash_cli.engine.footprint.ledger import phases_of
from ultraflash_cli.engine.footprint.plan import MemorySettings, MemoryWork
from ultraflash_cli.engine.layers.context import without_context
from ultraflash_cli.engine.layers.memory_block import MemoryState, in_pieces, to_channels_last
from ultraflash_cli.engine.pixel_refiner import PixelRefiner
from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.engine.profiles import LITE, TINY_LITE, TINY_RANDOM, Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, plan_generation
from ultraflash_cli.engine.stage import as_tensor, state_leaves
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig, DecoderInputs
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler, LatentUpsamplerConfig
from ultraflash_cli.engine.stages.pixel_path import PixelPath, PixelPathConfig
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig, SrDitInputs
from ultraflash_cli.engine.stages.text_encoder import TextEncoder, TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig, WanVaeEncoder
from ultraflash_cli.engine.text_to_video import TextToVideo
from ultraflash_cli.engine.upscaler import Upscaler
from ultraflash_cli.models.memory import plan_generation_memory, plan_upscale_memory


@pytest.mark.parametrize(
    ("scale", "long", "name", "gigabytes"),
    [
        pytest.param(2, False, "generator KV ring", 6.04, id="generator, 21 frames"),
        pytest.param(2, True, "generator KV ring", 3.45, id="generator, window of 12"),
        pytest.param(2, False, "SR transformer KV rings", 7.36, id="SR transformer, 1K"),
        pytest.param(3, False, "SR transformer KV rings", 16.99, id="SR transformer, 2K"),
    ],
)
def test_the_caches_take_what_the_architecture_says(scale: int, long: bool, name: str, gigabytes: float) -> None:
    plan = plan_memory(published(scale, generates=True, long=long))
    assert part(plan, name) / 1e9 == pytest.approx(gigabytes, abs=0.005)


@pytest.mark.parametrize(("long", "gigabytes"), [(False, 3.11), (True, 1.78)], ids=["21 frames", "window of 12"])
def test_in_8_bits_the_cache_of_the_generator_takes_half(long: bool, gigabytes: float) -> None:
    """A byte for each number and four for each token of each head."""
    work = published(2, generates=True, long=long)
    whole, small = plan_memory(work), plan_memory(replace(work, fp8_parts=frozenset({"generator"})))
    ring = "generator KV ring"
    assert part(small, ring) / 1e9 == pytest.approx(gigabytes, abs=0.005)
    assert whole.state_bytes - small.state_bytes == part(whole, ring) - part(small, ring)
    assert part(small, "generator weights") == part(whole, "generator weights")


@pytest.mark.parametrize(("scale", "gigabytes"), [(2, 3.82), (3, 8.83)], ids=["1K", "2K"])
def test_in_8_bits_the_caches_and_a_saved_state_take_half(scale: int, gigabytes: float) -> None:
    """A byte for each number, four for each token of each head, and the means of blocks."""
    work = published(scale, generates=False)
    whole, small = plan_memory(work), plan_memory(replace(work, fp8_parts=frozenset({"sr_dit"})))
    rings = "SR transformer KV rings"
    assert part(small, rings) / 1e9 == pytest.approx(gigabytes, abs=0.005)
    assert whole.state_bytes - small.state_bytes == part(whole, rings) - part(small, rings)
    assert whole.total - small.total > part(whole, rings) - part(small, rings)
    assert part(small, "SR transformer weights") == part(whole, "SR transformer weights")


def test_the_weights_are_counted_exactly() -> None:
    plan = plan_memory(published(2, generates=True))
    assert part(plan, "generator weights") == 2 * 1_418_996_800
    assert part(plan, "SR transformer weights") == 2 * 1_419_095_104
    assert part(plan, "text encoder weights") == pytest.approx(2 * 5.681e9, rel=1e-3)


def test_the_parts_of_the_peak_sum_to_the_total() -> None:
    plan = plan_memory(published(3, generates=False))
    assert sum(each.bytes for each in plan.parts) == plan.total == max(phase.total for phase in plan.phases)


def test_what_graphs_may_hold_twice_has_the_generator_s_cache() -> None:
    plan = plan_memory(published(2, generates=True))
    cache = part(plan, "generator KV ring")
    assert plan.beside_bytes > cache > 5e9


def test_lite_is_planned_near_its_measured_peak() -> None:
    # 1.70 GB of resident memory were measured.
    work = MemoryWork(
        latents=(60, 104),
        group_latents=LITE.group_latents,
        pixels=LITE.pixels,
        source=(480, 832),
        dtype_of=lambda part: torch.float32,
        on_gpu=False,
    )
    assert 0.75 * 1.7e9 < plan_memory(work).total < 1.3 * 1.7e9


@pytest.mark.parametrize(
    ("scale", "measured_gb"),
    [pytest.param(1, 0.78, id="480p"), pytest.param(2, 1.93, id="1k"), pytest.param(3, 3.6, id="2k")],
)
def test_a_clip_of_lite_takes_no_more_than_is_planned(scale: int, measured_gb: float) -> None:
    plan = plan_generation_memory(
        LITE, scale=scale, device=torch.device("cpu"), dtype_of=lambda _: torch.bfloat16, encodes_text=True
    )
    assert measured_gb < plan.total / 1e9 < 1.3 * measured_gb


def test_the_plan_of_a_cpu_is_the_whole_process() -> None:
    work = replace(published(2, generates=True), on_gpu=False)
    assert part(plan_memory(work), "Python and its libraries") > 3e8
    on_gpu = plan_memory(published(2, generates=True))
    assert "Python and its libraries" not in {each.name for each in on_gpu.parts}


def test_a_group_in_pieces_holds_one_piece_and_the_result() -> None:
    def run(piece: Tensor, memories: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        return piece.repeat(1, 1, 1, 100, 100), ()

    clip = torch.zeros(1, 1, 6, 2, 2)
    with LiveBytes([clip]) as live:
        in_pieces(run, MemoryState((), True), clip, size=1)
    piece = 4 * 200 * 200
    assert live.peak < (6 + 1.5) * piece


def test_refining_in_groups_holds_one_group_and_the_frames() -> None:
    class Growing:
        def run_group(self, state: Any, low: Tensor) -> tuple[Any, tuple[Tensor, Tensor]]:
            return state, (low, low.repeat(1, 1, FRAMES_PER_LATENT, 100, 100))

    low = torch.zeros(1, 1, 6, 2, 2)
    video: Any = SimpleNamespace(profile=SimpleNamespace(group_latents=2))
    growing: Any = Growing()
    with LiveBytes([low]) as live:
        TextToVideo._refine_all(video, growing, None, low)  # pyright: ignore
    latent = FRAMES_PER_LATENT * 4 * 200 * 200
    assert live.peak < (6 + 2.5) * latent


def measure(stage: Any, size: tuple[int, int], inputs: Callable[[], Any], rounds: int = 2) -> int:
    """Return the peak bytes of a later step beyond those held between steps, without
    its result."""
    with torch.inference_mode():
        state, pushed = stage.init_state(batch=1, height=size[0], width=size[1]), inputs()
        network = stage.network if isinstance(stage, Sampler) else stage
        known = [*network.parameters(), *tensors_of(pushed), *tensors_of(state)]
        with LiveBytes(known) as live:
            state, out = stage.step(state, pushed)
            result_bytes = out.nbytes
            del out
            live.peak = before = live.now
            for _ in range(rounds):
                state, _ = stage.step(state, pushed)
                del _
        return live.peak - before - result_bytes


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    fields = value if isinstance(value, tuple) else vars(value).values() if hasattr(value, "__dict__") else ()
    return [tensor for field in fields for tensor in tensors_of(field)]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


CONVOLUTIONS = [
    pytest.param("upsampler", LatentUpsamplerConfig(width=32), id="upsampler x2"),
    pytest.param("upsampler", LatentUpsamplerConfig(width=16, scale=3), id="upsampler x3"),
    pytest.param("encoder", EncoderConfig(), id="published encoder"),
    pytest.param("encoder", LITE.encoder, id="encoder of lite"),
    pytest.param("wan_vae", WanVaeConfig(width=16), id="full autoencoder"),
    pytest.param("decoder", DecoderConfig(), id="tiny decoder"),
    pytest.param("decoder", DecoderConfig(upsampling="pixel_shuffle", memory_init="replicate"), id="ultra decoder"),
    pytest.param("decoder", LITE.decoder, id="decoder of lite"),
    pytest.param("decoder", DecoderConfig(reads_low_frames=True), id="decoder that reads frames"),
]


@pytest.mark.parametrize(("kind", "config"), CONVOLUTIONS)
def test_convolutions_take_what_their_formula_says(kind: str, config: Any) -> None:
    height, width = 8, 12
    frames, pixels = 4 * 4, (8 * height, 8 * width)
    match kind:
        case "upsampler":
            stage, size, pushed = LatentUpsampler(config), (height, width), draw(1, 16, 4, height, width)
            need = upsampler_activations(config, height=height, width=width)
        case "encoder":
            stage, size, pushed = Encoder(config), pixels, draw(1, 3, frames, *pixels)
            need = encoder_activations(config, height=pixels[0], width=pixels[1])
        case "wan_vae":
            stage, size, pushed = WanVaeEncoder(config), pixels, draw(1, 3, frames + 1, *pixels)
            need = wan_vae_activations(config, height=pixels[0], width=pixels[1])
        case _:
            stage, size = Decoder(config), (height, width)
            pushed = draw(1, 16, 4, height, width)
            need = decoder_activations(config, height=height, width=width)
            if config.reads_low_frames:
                pushed = DecoderInputs(pushed, draw(1, 12, 4, 4 * height, 4 * width))
    measured = measure(to_channels_last(stage).eval(), size, lambda: pushed)
    # The autoencoder also copies the frames of a padded group.
    copied = pushed.numel() if kind == "wan_vae" and isinstance(pushed, torch.Tensor) else 0
    assert 0.8 < 4 * (need.working + 2 * need.memories + copied) / measured < 1.5


@pytest.mark.parametrize("scale", [2, 3])
def test_the_pixel_path_takes_what_its_formula_says(scale: int) -> None:
    config = PixelPathConfig(scale=scale)
    pushed = draw(1, 3, 4, 64, 96)
    measured = measure(to_channels_last(PixelPath(config)).eval(), (64, 96), lambda: pushed)
    assert 0.8 < pixel_path_activations(config, height=64, width=96, element=4) / measured < 1.5


SR_SIZES = replace(
    SrDitConfig(dim=96, num_heads=2, num_layers=2, ffn_dim=560, freq_dim=32, text_dim=24, text_len=32),
    ref_spatial_tokens=60,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("config", "size"),
    [
        pytest.param(SR_SIZES, (32, 48), id="as published"),
        pytest.param(SR_SIZES, (28, 48), id="padded"),
        pytest.param(replace(SR_SIZES, ffn_dim=96), (32, 48), id="narrow feed-forward"),
        pytest.param(LITE.sr_dit, (60, 104), id="lite"),
    ],
)
def test_the_sr_transformer_takes_what_its_formula_says(
    config: SrDitConfig, size: tuple[int, int], dtype: torch.dtype
) -> None:
    def push() -> SrDitInputs:
        both = (draw(1, 16, config.group_latents, *size, dtype=dtype) for _ in range(2))
        return SrDitInputs(*both)

    measured = measure(SrDit(config).to(dtype).eval(), size, push)
    expected = sr_dit_activations(
        config,
        frames=config.group_latents,
        height=size[0],
        width=size[1],
        kv_len=config.kv_len,
        element=dtype.itemsize,
        on_gpu=False,
    )
    assert 0.85 < expected / measured < 1.25


@pytest.mark.parametrize("slide", [False, True], ids=["full window", "sliding window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_generator_takes_what_its_formula_says(slide: bool, dtype: torch.dtype) -> None:
    assert TINY_RANDOM.generator is not None
    config = replace(TINY_RANDOM.generator, dim=96, ffn_dim=400, window=9, sink=3, slide=slide)
    size = (32, 48)
    pushed = GeneratorInputs(draw(1, 16, 3, *size, dtype=dtype), draw(1, 3, 16, 3, *size, dtype=dtype))
    sampler = Sampler(Generator(config).to(dtype).eval())
    measured = measure(sampler, size, lambda: pushed, rounds=3 if slide else 2)
    element = dtype.itemsize
    expected = generator_activations(config, height=size[0], width=size[1], element=element, cached=element)
    assert 0.85 < expected / measured < 1.2


def test_the_text_encoder_takes_what_its_formulas_say() -> None:
    pytest.importorskip("transformers")
    config = TextEncoderConfig(vocab=300, dim=64, ffn_dim=160, heads=8, layers=2, text_len=96)
    encoder = TextEncoder(config).eval()
    assert sum(each.numel() for each in encoder.parameters()) == text_encoder_parameters(config)
    ids = torch.ones(1, config.text_len, dtype=torch.long)
    with torch.inference_mode(), LiveBytes([*encoder.parameters(), *encoder.buffers(), ids]) as live:
        encoder(ids, torch.ones_like(ids))
    assert 0.8 < text_encoder_activations(config, 4) / live.peak < 2


@pytest.mark.parametrize("profile", [LITE, TINY_RANDOM], ids=["lite", "tiny-random"])
def test_an_upscale_takes_what_is_planned_and_its_state_too(profile: Profile) -> None:
    sizes = plan_upscale(96, 64, res="2x")
    torch.manual_seed(0)
    cascade, networks = pixel_networks(profile) if profile.pixels else latent_networks(profile)
    upscaler = Upscaler(cascade, sizes)
    picture = np.zeros((64, 96, 3), np.uint8)
    with torch.inference_mode(), LiveBytes([x for net in networks for x in net.parameters()]) as live:
        state = upscaler.init_state()
        for _ in range(3):
            frames = [picture] * upscaler.group_frames(first=state.is_first)
            state, _ = upscaler.step(state, frames)
    plan = plan_upscale_memory(
        profile, sizes, device=torch.device("cpu"), dtype_of=lambda part: torch.float32, encodes_text=False
    )
    outside = {"reserve", "pictures", "frames in queues", "Python and its libraries"}
    inside = sum(p.bytes for p in plan.parts if p.name not in outside and not p.name.endswith("weights"))
    assert 0.8 < inside / live.peak < 1.4
    assert plan.state_bytes == pytest.approx(saved_bytes(state), rel=0.01)


def saved_bytes(state: object) -> int:
    """Return the bytes of a state without its prompt."""
    leaves = {name: x for name, x in state_leaves(state).items() if x is not None}
    return sum(as_tensor(x).nbytes for x in without_context(leaves).values() if x is not None)


def latent_networks(profile: Profile) -> tuple[Cascade, list[nn.Module]]:
    assert isinstance(profile.encoder, EncoderConfig)
    upsampling, decoding = profile.latent_stages
    upsampler, decoder, encoder = LatentUpsampler(upsampling), Decoder(decoding), Encoder(profile.encoder)
    sr_dit = SrDit(profile.sr_dit) if profile.sr_dit else None
    networks: list[nn.Module] = [encoder, upsampler, decoder, *([sr_dit] if sr_dit else [])]
    return Cascade(profile, encoder, Refiner(profile, upsampler, sr_dit, decoder)), networks


def pixel_networks(profile: Profile) -> tuple[Cascade, list[nn.Module]]:
    assert profile.pixels is not None
    path = PixelPath(profile.pixels)
    return Cascade(profile, None, PixelRefiner(profile, path)), [path]


@pytest.mark.parametrize("low_frames", [False, True], ids=["large", "both sizes"])
def test_a_clip_from_words_takes_what_is_planned(low_frames: bool) -> None:
    profile, plan = TINY_LITE.at_scale(2), plan_generation(18)
    assert profile.generator is not None and profile.decoder is not None and profile.sr_dit is not None
    assert profile.upsampler is not None
    torch.manual_seed(0)
    generator, decoder = Generator(profile.generator), Decoder(profile.decoder)
    upsampler, sr_dit = LatentUpsampler(profile.upsampler), SrDit(profile.sr_dit)
    refiner = Refiner(profile, upsampler, sr_dit, decoder)
    low = decoder if low_frames else None
    video = TextToVideo(profile, plan, Sampler(generator), refiner=refiner, low_decoder=low)
    networks = (generator, decoder, upsampler, sr_dit)
    with torch.inference_mode(), LiveBytes([x for network in networks for x in network.parameters()]) as live:
        state = video.init_state(height=8, width=12)
        for _ in plan.groups:
            state, made = video.step(state)
            del made
    work = MemoryWork(
        latents=(8, 12),
        group_latents=profile.group_latents,
        drawn_latents=6,
        generator=profile.generator,
        upsampler=profile.upsampler,
        sr_dit=profile.sr_dit,
        decoder=profile.decoder,
        low_decoder=profile.decoder if low_frames else None,
        dtype_of=lambda part: torch.float32,
        on_gpu=False,
    )
    planned = plan_memory(work)
    outside = {"reserve", "pictures", "a picture in work", "Python and its libraries"}
    inside = max(
        sum(p.bytes for p in phase.parts if p.name not in outside and not p.name.endswith("weights"))
        for phase in planned.phases
    )
    assert 0.8 < inside / live.peak < 1.4
    assert planned.state_bytes == pytest.approx(saved_bytes(state), rel=0.01)


def test_a_memory_is_one_frame_and_not_the_piece_it_came_in() -> None:
    decoder = Decoder(TINY_RANDOM.base_decoder, together=3).eval()
    with torch.inference_mode():
        state, _ = decoder.step(decoder.init_state(batch=1, height=4, width=4), draw(1, 16, 3, 4, 4))
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in state.memories)


def test_a_decoder_at_once_gives_what_it_gives_latent_by_latent() -> None:
    for config, side in ((TINY_RANDOM.base_decoder, 4), (LITE.base_decoder, 4)):
        weights = Decoder(config).state_dict()
        inputs = draw(1, 16, 5, side, side)
        frames: list[Tensor] = []
        for together in (1, 2, 5):
            decoder = Decoder(config, together=together).eval()
            decoder.load_state_dict(weights)
            with torch.inference_mode():
                frames.append(decoder.step(decoder.init_state(batch=1, height=side, width=side), inputs)[1])
        for other in frames[1:]:
            torch.testing.assert_close(other, frames[0], rtol=0, atol=1e-5)


def test_as_many_latents_are_decoded_at_once_as_32_bits_count() -> None:
    for config, expected in (
        (DecoderConfig(), [6, 6, 3]),
        (DecoderConfig(negative_slope=0.1), [6, 3, 2]),  # its last convolution reads pictures of full size
        (DecoderConfig(upsampling="pixel_shuffle"), [6, 3, 2]),
    ):
        assert [config.piece(6, 60 * scale, 104 * scale) for scale in (1, 2, 3)] == expected
    assert DecoderConfig().piece(6, 2000, 2000) == 1 and DecoderConfig().piece(0, 60, 104) == 0


def test_the_documented_plans_are_the_planned_ones(repository: Path) -> None:
    page = (repository / "docs" / "performance.md").read_text(encoding="utf-8")
    for size, scale, generates in ((s, k, g) for g in (False, True) for s, k in (("1664x960", 2), ("2496x1440", 3))):
        columns = [MemorySettings(kv_len=3), MemorySettings(kv_len=3, offload_text=True)]
        columns += [replace(columns[1], offload_generator=True)] if generates else []
        columns += [replace(columns[-1], kv_len=1)]
        work = published(scale, generates=generates)
        sizes = [f"{max(p.total for p in phases_of(work, each)[0]) / 1e9:.1f}" for each in columns]
        cells = sizes if generates else [*sizes[:2], "", sizes[2]]
        row = " | ".join([f"{size}, {'generate' if generates else 'upscale'}", *cells]).replace("|  |", "| |")
        assert f"| {row} |" in page
