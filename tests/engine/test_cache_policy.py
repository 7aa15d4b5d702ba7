"""Dynamic cache management: the option, the gate of the context pass, and its score."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.contracts.stages import randomise
from ultraflash_cli.engine.cache_policy import ONE_FEWER, CacheManagement, RefreshGate, SharpnessDrift
from ultraflash_cli.engine.layers.memory_block import MemoryState
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig, DecoderStage
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.errors import UsageError

SMALL = DecoderConfig(
    latent_channels=4,
    stages=(
        DecoderStage(width=6, blocks=1),
        DecoderStage(width=5, blocks=1, time_growth=2),
        DecoderStage(width=4, blocks=1, time_growth=2),
    ),
    out_width=4,
)

# The option


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("off", CacheManagement()),
        ("steps", CacheManagement(steps=ONE_FEWER)),
        ("steps=3", CacheManagement(steps=3)),
        ("refresh", CacheManagement(refresh=0.62)),
        ("steps,refresh,kv", CacheManagement(steps=ONE_FEWER, refresh=0.62, kv=True)),
        (" kv , steps = 1,refresh=0.5", CacheManagement(steps=1, refresh=0.5, kv=True)),
    ],
    ids=str,
)
def test_rules_are_read_from_a_list(text: str, rules: CacheManagement) -> None:
    assert CacheManagement.parse(text) == rules


@given(
    steps=st.none() | st.integers(ONE_FEWER, 9),
    refresh=st.none() | st.integers(0, 100).map(lambda percent: percent / 100),
    kv=st.booleans(),
)
def test_rules_are_written_as_they_are_read(steps: int | None, refresh: float | None, kv: bool) -> None:
    rules = CacheManagement(steps=steps, refresh=refresh, kv=kv)
    assert CacheManagement.parse(str(rules)) == rules


@pytest.mark.parametrize(
    "text",
    ["", "on", "off,kv", "steps=", "steps=two", "steps=2.5", "steps=0", "steps=-1"]
    + ["refresh=x", "refresh=nan", "refresh=2", "kv=1", "kv,kv", "steps,,kv"],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cache-management"):
        CacheManagement.parse(text)


def test_rules_change_the_configs_of_the_stages() -> None:
    rules = CacheManagement(steps=3, kv=True)
    generator = rules.apply_generator(GeneratorConfig())
    assert [len(generator.steps_of_chunk(chunk)) for chunk in (0, 1, 9)] == [4, 3, 3]
    sr = rules.apply_sr(SrDitConfig(), 20)
    assert [sr.kv_len_after(group) for group in range(7)] == [3, 3, 3, 2, 1, 1, 1]
    small = rules.apply_sr(SrDitConfig(kv_len=2), 20)
    assert [small.kv_len_after(group) for group in range(5)] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize(("steps", "fewer"), [((1000, 750, 500, 250), 3), ((1000, 100), 1), ((1000,), 1)])
def test_one_step_fewer_is_one_at_least(steps: tuple[int, ...], fewer: int) -> None:
    rules = CacheManagement.parse("steps")
    generator = rules.apply_generator(GeneratorConfig(steps=steps))
    assert [len(generator.steps_of_chunk(chunk)) for chunk in (0, 1, 9)] == [len(steps), fewer, fewer]


def test_without_rules_the_configs_stay() -> None:
    rules = CacheManagement()
    assert rules.apply_generator(GeneratorConfig()) == GeneratorConfig()
    assert rules.apply_sr(SrDitConfig(), 20) == SrDitConfig()


def test_more_steps_than_there_are_are_refused() -> None:
    with pytest.raises(UsageError, match="steps=5 is more than the 4 denoising steps"):
        CacheManagement(steps=5).apply_generator(GeneratorConfig())


# The gate


def small_decoder() -> Decoder:
    decoder = Decoder(SMALL)
    randomise(decoder)
    return decoder


def test_the_gate_scores_the_last_frame_of_the_last_latent_decoded_alone() -> None:
    decoder = small_decoder()
    seen: list[Tensor] = []

    def scorer(frame: Tensor, anchor: Tensor) -> float:
        seen.extend([frame, anchor])
        return 0.7

    latents, early = torch.randn(1, 4, 3, 2, 3), torch.randn(1, 4, 1, 2, 3)
    assert RefreshGate(decoder, scorer)(latents, early)
    assert not RefreshGate(decoder, scorer, threshold=0.7)(latents, early)
    for frame, latent in zip(seen, (latents[:, :, -1:], early, latents[:, :, -1:], early), strict=True):
        _, raw = decoder.step(decoder.init_state(batch=1, height=2, width=3), latent)
        expected = F.interpolate(raw[:, :, 3].clamp(0, 1), size=(224, 224), mode="bilinear")
        assert torch.equal(frame, expected[0])


def test_the_anchor_is_decoded_once_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, decoded = small_decoder(), list[Tensor]()
    plain = decoder.step

    def step(state: MemoryState, latents: Tensor) -> tuple[MemoryState, Tensor]:
        decoded.append(latents)
        return plain(state, latents)

    monkeypatch.setattr(decoder, "step", step)
    gate = RefreshGate(decoder, lambda frame, anchor: float(not torch.equal(frame, anchor)))
    early, other, latents = (torch.randn(1, 4, 1, 2, 3) for _ in range(3))
    assert gate(latents, early) and gate(other, early.clone())
    assert len(decoded) == 3, "two chunks and the one anchor of a stream"
    assert gate(latents, other) and not gate(other, other)
    assert len(decoded) == 6, "another stream has another anchor"


def test_of_several_clips_all_have_to_pass() -> None:
    decoder = small_decoder()
    latents, early = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 1, 2, 2)
    for scores, passes in (([0.9, 0.9], True), ([0.9, 0.1], False), ([float("nan"), 0.9], False)):
        left = iter(scores)
        assert RefreshGate(decoder, lambda frame, anchor, left=left: next(left))(latents, early) == passes


# The built-in score


def picture() -> Tensor:
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 9, 9, generator=draw)
    texture = torch.rand(1, 3, 48, 48, generator=draw)
    return (0.7 * F.interpolate(coarse, size=(48, 48), mode="bilinear") + 0.3 * texture)[0]


def blurred(frame: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(F.pad(frame[None], (side // 2,) * 4, mode="reflect"), side, stride=1)[0]


def noisy(frame: Tensor, share: float) -> Tensor:
    return (frame + share * torch.randn(frame.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda frame, much: blurred(frame, 3 + 4 * much), id="blur"),
        pytest.param(lambda frame, much: noisy(frame, 0.2 + 0.3 * much), id="noise"),
        pytest.param(lambda frame, much: 0.5 + (frame - 0.5) * (0.6 - 0.4 * much), id="pale"),
        pytest.param(lambda frame, much: frame + torch.tensor([0.1, 0.0, -0.1])[:, None, None] * (1 + much), id="tint"),
    ],
)
def test_the_score_falls_the_more_a_picture_is_spoiled(spoil: Callable[[Tensor, int], Tensor]) -> None:
    score, frame = SharpnessDrift(), picture()
    little, much = (score(spoil(frame, amount), frame) for amount in (0, 1))
    assert 0 <= much < little < score(frame, frame) == 1


def test_two_flat_pictures_are_alike_and_a_broken_one_has_no_score() -> None:
    score, flat = SharpnessDrift(), torch.full((3, 8, 8), 0.5)
    assert score(flat, flat) == 1
    assert not score(torch.full((3, 8, 8), float("nan")), flat) > 0
