"""The small prompt encoder: words to ids to embeddings, with the interface of the large
one."""

import re
from dataclasses import replace

import pytest
import torch

from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoder, PromptEncoderConfig, WordTokenizer
from ultraflash_cli.engine.stages.text_encoder import encode_prompts
from ultraflash_cli.engine.vocabulary import SCENE_WORDS
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.captions import caption
from ultraflash_cli.train.scenes import random_scene

CONFIG = PromptEncoderConfig(rows=64, dim=16, heads=2, layers=1, text_len=8)


def encoder() -> PromptEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return PromptEncoder(CONFIG)


def test_words_are_distinguished_and_signs_and_case_are_not() -> None:
    tokenize = WordTokenizer(CONFIG.vocab)
    assert tokenize("A red, RED balloon!") == [*tokenize("a red red balloon")]
    a, red, again, balloon, end = tokenize("a red red balloon")
    assert red == again and len({a, red, balloon, end}) == 4 and end == 1
    assert all(2 <= token < CONFIG.vocab for token in (a, red, balloon))
    assert tokenize("") == [1]


def test_it_stands_where_the_large_encoder_stands() -> None:
    network = encoder()
    prompts = ["a red balloon", "one two three four five six seven eight nine ten"]
    told: list[tuple[int, int]] = []
    embeds = encode_prompts(
        network,  # pyright: ignore[reportArgumentType]
        WordTokenizer(CONFIG.vocab),
        prompts,
        on_truncated=lambda index, tokens: told.append((index, tokens)),
    )
    assert told == [(1, 11)]
    torch.testing.assert_close(embeds, network.encode(tuple(prompts)).detach())
    assert (embeds[0, 4:] == 0).all() and (embeds[0, :4] != 0).any()
    assert (embeds[1] != 0).any(dim=-1).all()


def test_a_prompt_is_embedded_alike_in_any_batch_and_other_words_otherwise() -> None:
    network = encoder()
    alone, beside = network.encode(("a red car",)), network.encode(("a red car", "a blue boat at night in the rain"))
    torch.testing.assert_close(alone[0], beside[0])
    assert (network.encode(("a blue car",)) - alone).abs().max() > 0.1


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError):
        PromptEncoderConfig(dim=10, heads=4)


def test_words_off_its_list_are_not_heard() -> None:
    config = PromptEncoderConfig(words=("a", "red", "balloon"), dim=16, heads=2, layers=1, text_len=6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = PromptEncoder(config)
    tokenizer = WordTokenizer(config.vocab, config.words)
    assert tokenizer("A splendid RED balloon") == [2, 3, 4, 1]
    assert tokenizer.unheard("A splendid RED balloon, splendid, over Paris") == ["splendid", "over", "paris"]
    assert WordTokenizer(config.vocab).unheard("A splendid balloon") == [], "without a list all words are heard"
    heard, unheard = network.encode(("a red balloon",)), network.encode(("Oh, a quite red, zeppelin balloon",))
    assert torch.equal(heard, unheard)
    assert torch.equal(network.encode(("xyzzy",)), network.encode(("",)))
    assert not torch.equal(heard, network.encode(("a balloon red",)))


@pytest.mark.parametrize("words", [("a", "a"), ("Red",)], ids=["twice", "upper-case"])
def test_a_list_of_words_names_each_once_in_lower_case(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="lower case"):
        PromptEncoderConfig(words=words)


def test_the_built_in_model_knows_every_word_of_the_captions() -> None:
    said = {word for n in range(1500) for word in re.findall(r"\w+", caption(random_scene(n), n).lower())}
    assert said <= set(SCENE_WORDS)
    assert len(said) > 0.8 * len(SCENE_WORDS), "the list is that of the captions, not a dictionary"


def test_a_seed_chooses_one_of_each_group_of_variants() -> None:
    words = ("ball", "one", "two", "up", "down")
    groups = (("one", "two"), ("up", "down"))
    config = PromptEncoderConfig(words=words, variants=groups, dim=16, heads=2, text_len=6)
    said = [config.with_variant("a ball", seed) for seed in range(5)]
    assert said == ["a ball one up", "a ball two up", "a ball one down", "a ball two down", "a ball one up"]
    assert CONFIG.with_variant("a ball", 3) == "a ball"
    for wrong in ((("three",),), ((),)):
        with pytest.raises(ConfigError, match="must be among its words"):
            replace(config, variants=wrong)
