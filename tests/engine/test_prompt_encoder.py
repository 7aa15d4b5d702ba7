"""The small prompt encoder: words to ids to embeddings, behind the interface of the large one."""

import pytest
import torch

from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoder, PromptEncoderConfig, WordTokenizer
from ultraflash_cli.engine.stages.text_encoder import encode_prompts
from ultraflash_cli.errors import ConfigError

CONFIG = PromptEncoderConfig(rows=64, dim=16, heads=2, layers=1, text_len=8)


def encoder() -> PromptEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return PromptEncoder(CONFIG)


def test_words_are_told_apart_and_signs_and_case_are_not() -> None:
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


def test_a_prompt_is_embedded_alike_whoever_stands_beside_it_and_other_words_otherwise() -> None:
    network = encoder()
    alone, beside = network.encode(("a red car",)), network.encode(("a red car", "a blue boat at night in the rain"))
    torch.testing.assert_close(alone[0], beside[0])
    assert (network.encode(("a blue car",)) - alone).abs().max() > 0.1


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError):
        PromptEncoderConfig(dim=10, heads=4)
