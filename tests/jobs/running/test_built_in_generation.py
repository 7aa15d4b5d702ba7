"""Clips generated from prompts by a model with the built-in one's structure: the real
cascade, tiny and with random weights."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.jobs.clips import decoded, make_clip
from tests.models.installing import put
from ultraflash_cli.engine.cache_policy import RefreshGate
from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.engine.profiles import LITE, PROFILES, TINY_LITE, TINY_RANDOM, ULTRAFLASH
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoder, PromptEncoderConfig
from ultraflash_cli.errors import Interrupted, UsageError, WeightsError
from ultraflash_cli.jobs.events import Chunk, Event, GenerationPlanned
from ultraflash_cli.jobs.planning.generate import AUTO_PARTS, GenerateJob
from ultraflash_cli.jobs.running.generate import GenerateReport, run_generation
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.jobs.running.prepare import prepare_generation
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.models.memory import plan_generation_memory, plan_upscale_memory
from ultraflash_cli.models.profile import generating_parts, upscaling_parts
from ultraflash_cli.models.prompts import embed_prompts, is_embedded
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.weights.store import WeightStore

CPU = torch.device("cpu")
PROMPT = "a red balloon over snowy mountains"
PACKAGES = ("transformers", "tokenizers", "sentencepiece", "ftfy")
"""Packages of the extra for the published text encoder."""


def job(folder: Path, **options: Any) -> GenerateJob:
    settings: dict[str, Any] = {"prompt": PROMPT, "model": "tiny-lite", "device": "cpu", "threads": 1, "crf": 1}
    settings |= {"res": "480p", "seconds": 0.5} | ({} if "output" in options else {"folder": folder})
    return GenerateJob(**(settings | options))


def generate(made: GenerateJob, *, stop_at: int | None = None, events: list[Event] | None = None) -> GenerateReport:
    stop = Stop()

    def listen(event: Event) -> None:
        if events is not None:
            events.append(event)
        if stop_at is not None and isinstance(event, Chunk) and event.frames_done >= stop_at:
            stop.request(15)

    return run_generation(made, listen, stop=stop, segment_frames=24)


def frames(report: GenerateReport) -> np.ndarray:
    return np.stack(decoded(Path(report.output)))


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the extra for the text encoder."""
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("no_packages")
def test_the_same_words_and_seed_give_the_same_frames_without_the_packages_of_the_large_text_encoder(
    tmp_path: Path,
) -> None:
    one, again, seed, words = (
        frames(generate(job(tmp_path, **options)))
        for options in (
            {},
            {"output": tmp_path / "again.mp4"},
            {"seed": 1},
            {"prompt": "a blue boat on the sea"},
        )
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, seed) and not np.array_equal(one, words)
    with pytest.raises(UsageError, match=r"\.\[generate\]"):
        generate(job(tmp_path, model="tiny-random", output=tmp_path / "other.mp4"))


@pytest.mark.parametrize(
    "prompt", ["xqzt vvv 123", "!?", "雪の山", "word " * 100], ids=["nonsense", "no word", "ja", "long"]
)
def test_words_it_has_never_met_give_a_picture_all_the_same(tmp_path: Path, prompt: str) -> None:
    report = generate(job(tmp_path, prompt=prompt, output=tmp_path / "out.mp4"))
    assert frames(report).std() > 1
    said = {
        "!?": ["tiny-lite knows no word of this prompt; the clip will not match it"],
        "word " * 100: ["the prompt has 101 tokens; only the first 8 are used"],
    }
    assert [warning.split(": ")[1] for warning in report.warnings] == said.get(prompt, [])


def test_both_sizes_are_written_and_an_interrupted_run_continues_with_all_states(tmp_path: Path) -> None:
    made = job(tmp_path, res="1k", seconds=4, save_lr=True, output=tmp_path / "broken.mp4")
    events: list[Event] = []
    report = generate(replace(made, output=tmp_path / "whole.mp4"), events=events)
    assert (report.frames_out, report.width, report.height, report.warnings) == (65, 192, 128, ())
    assert report.counters is not None and report.counters["generator_passes"] == 3 * report.counters["chunks"]
    assert report.seconds_by_stage is not None
    assert report.seconds_by_stage.keys() >= {"generator", "low_decoder", "upsampler", "sr_dit", "decoder"}
    (plan,) = [event for event in events if isinstance(event, GenerationPlanned)]
    assert plan.notice == TINY_LITE.notice != ""
    with pytest.raises(Interrupted):
        generate(made, stop_at=45)
    assert 0 < generate(made).frames_resumed < 65
    for suffix, size in (("", (128, 192, 3)), ("_480p", (64, 96, 3))):
        whole, broken = (np.stack(decoded(tmp_path / f"{name}{suffix}.mp4")) for name in ("whole", "broken"))
        assert whole.shape == (65, *size)
        assert np.array_equal(whole, broken)


def test_the_small_clip_is_that_of_480p(tmp_path: Path) -> None:
    small = frames(generate(job(tmp_path, output=tmp_path / "small.mp4")))
    both = generate(job(tmp_path, output=tmp_path / "large.mp4", res="2k", save_lr=True))
    assert both.low_output is not None
    assert np.array_equal(np.stack(decoded(Path(both.low_output))), small)
    assert frames(both).shape == (9, 192, 288, 3)


def test_a_clip_is_gone_on_from(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=50)
    made = job(tmp_path, init_clip=clip, output=tmp_path / "next.mp4", res="1k")
    report = generate(made)
    assert (report.frames_in, report.frames_out) == (21, 9)
    assert not np.array_equal(frames(report), frames(generate(job(tmp_path, res="1k"))))


def test_the_cache_rules_reach_it_and_its_gate_looks_through_the_decoder(tmp_path: Path) -> None:
    made = prepare_generation(job(tmp_path, res="1k", seconds=3, cache_management="steps=1,refresh=0,kv"))
    built: Any = Models().generator(made).model
    gate = built._video.sampler.gate
    assert isinstance(gate, RefreshGate) and gate.decoder is built._video.refiner.decoder
    assert set(built._video.refiner.sr_dit.config.kv_schedule) == {3, 2, 1}
    report = generate(job(tmp_path, res="1k", seconds=3, cache_management="steps=1,refresh=0,kv"))
    assert report.counters is not None
    chunks = report.counters["chunks"]
    assert report.counters["refreshes_skipped"] == chunks - 1
    assert report.counters["generator_passes"] == 3 + (chunks - 1)


@pytest.mark.parametrize(
    ("model", "rules", "said"),
    [
        ("lite", "steps,kv", "steps saves nothing with lite, which takes one denoising step; remove steps"),
        ("lite", "steps=1", "steps saves nothing with lite"),
        ("lite", "refresh=0.5", "refresh saves no time with lite"),
        ("lite", "kv", "kv saves hardly any time with lite, whose SR transformer is small; remove kv"),
    ],
)
def test_a_cache_rule_that_saves_nothing_is_refused(tmp_path: Path, model: str, rules: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        prepare_generation(job(tmp_path, model=model, res="1k", cache_management=rules))


def test_beyond_its_window_it_slides_without_a_word(tmp_path: Path) -> None:
    assert TINY_LITE.generator is not None
    for seconds in (None, 20):
        made = prepare_generation(job(tmp_path, seconds=seconds))
        assert (made.generator, made.long, made.warnings) == (TINY_LITE.generator, False, ())
    assert made.plan.total_latents > 10 * TINY_LITE.generator.window


def test_objects_of_the_built_in_model_move_on_in_clips_of_any_length(tmp_path: Path) -> None:
    assert prepare_generation(job(tmp_path, model="lite", seconds=60)).warnings == ()
    assert LITE.generator is not None and LITE.generator.laps is not None


def test_the_larger_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tiny-lite has only one decoder"):
        generate(job(tmp_path, decoder="ultra"))
    assert frames(generate(job(tmp_path, decoder="tiny"))).shape[0] == 9


# Which model


@pytest.fixture
def lite_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A built-in model with a generator."""
    monkeypatch.setitem(PROFILES, "lite", replace(TINY_LITE, name="lite"))


@pytest.mark.usefixtures("lite_draws")
def test_auto_is_the_published_model_where_it_is_installed_and_a_gpu_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(**options: Any) -> str:
        made = job(tmp_path, **{"model": "auto", "device": "auto", "store": tmp_path / "home", **options})
        return prepare_generation(made).model

    assert chosen() == chosen(store=None) == "lite"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert chosen() == "lite"
    for part in AUTO_PARTS:
        put(WeightStore(tmp_path / "home"), ULTRAFLASH.at_scale(2).weight_of(part), {"x": torch.zeros(1)})
    assert chosen(res="480p") == chosen(res="1k") == "ultraflash"
    assert chosen(res="2k") == "lite", "the upsampler of that scale is not there"
    assert chosen(device="cpu") == chosen(model="lite") == "lite"


def test_a_built_in_model_that_draws_nothing_leaves_auto_to_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROFILES, "lite", replace(TINY_LITE, name="lite", generator=None))
    assert prepare_generation(job(tmp_path, model="auto")).model == "ultraflash"
    with pytest.raises(UsageError, match="lite cannot generate; use --model ultraflash"):
        prepare_generation(job(tmp_path, model="lite"))


# Parts, prompts, memory


def test_only_what_a_clip_needs_is_asked_for() -> None:
    words = ["generator", "text_encoder"]
    assert generating_parts(TINY_LITE, refines=False) == [*words, "decoder"]
    refined = ["upsampler", "sr_dit", "decoder"]
    assert generating_parts(TINY_LITE, refines=True) == [*words, *refined]
    assert generating_parts(TINY_LITE, refines=False, goes_on=True) == [*words, "encoder", "decoder"]
    assert generating_parts(TINY_RANDOM, refines=True, low_frames=True) == [*words, *refined]
    assert generating_parts(TINY_RANDOM, refines=False, long=True)[:2] == ["long_generator", "long_lora"]
    assert upscaling_parts(TINY_LITE) == ["pixels", "pixels_detail"]
    assert upscaling_parts(TINY_RANDOM) == ["encoder", *refined, "text_encoder"]


def test_files_that_are_missing_are_named_and_no_tokenizer_is_asked_for(tmp_path: Path) -> None:
    weights = (("generator", "ultraflash/generator"), ("text_encoder", "wan/text_encoder"), ("decoder", "wan/vae"))
    profile = replace(TINY_LITE, random_seed=None, weights=weights)
    with pytest.raises(WeightsError) as refused:
        Shelf(tmp_path).require(profile, generating_parts(profile, refines=False))
    assert "ultraflash/generator, wan/text_encoder, wan/vae are missing" in str(refused.value)


def test_an_embedding_has_the_rows_of_its_words_in_full_precision(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    (one, other) = embed_prompts(
        shelf, TINY_LITE, ["a  Red\nballoon", "a blue boat"], device=CPU, precision="auto", warn=lambda _: None
    )
    assert one.shape == (1, 4, 16) and one.dtype == torch.float32
    assert not torch.equal(one, other)
    assert TINY_LITE.text_encoder is not None
    encoder = shelf.take(TINY_LITE, "text_encoder", TINY_LITE.text_encoder, device=CPU, dtype=torch.float32)
    assert isinstance(encoder, PromptEncoder)
    assert torch.equal(one, encoder.encode(("a red balloon",))[:, :4])
    assert not is_embedded(shelf, TINY_LITE, "a red balloon", precision="auto", device=CPU)
    assert list(tmp_path.iterdir()) == [], "nothing is kept of what takes no time"


def test_words_that_a_model_does_not_know_are_named(tmp_path: Path) -> None:
    words = TINY_LITE.text_encoder
    assert isinstance(words, PromptEncoderConfig)
    few = replace(TINY_LITE, text_encoder=replace(words, words=("a", "red", "balloon"), variants=()))
    warned: list[str] = []
    prompts = ["a red balloon", "A red zeppelin, a zeppelin over Paris"]
    embed_prompts(Shelf(tmp_path), few, prompts, device=CPU, precision="auto", warn=warned.append)
    assert warned == ["words unknown to tiny-lite, ignored: zeppelin, over, paris"]


@pytest.mark.parametrize("scale", [1, 2, 3], ids=["480p", "1k", "2k"])
def test_its_memory_is_planned_with_all_parts(scale: int) -> None:
    plan = plan_generation_memory(TINY_LITE, scale=scale, device=CPU, dtype_of=lambda _: torch.float32)
    names = {part.name for phase in plan.phases for part in phase.parts}
    assert {"generator KV ring", "text encoder weights"} <= names
    assert "decoder weights" in names and not [name for name in names if name.startswith("pixel path")]
    refined = {"upsampler weights", "SR transformer weights", "SR transformer KV rings"}
    assert names & refined == (refined if scale > 1 else set())


def test_an_upscale_by_a_model_with_words_for_clips_needs_no_text_encoder() -> None:
    sizes = plan_upscale(96, 64, res="2x")
    plan = plan_upscale_memory(TINY_LITE, sizes, device=CPU, dtype_of=lambda _: torch.float32, encodes_text=True)
    assert not [part.name for part in plan.parts if "text" in part.name]
