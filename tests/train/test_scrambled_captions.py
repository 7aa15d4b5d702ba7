"""Captions in a different order, for the choice of courses."""

import numpy as np

from ultraflash_cli.engine.vocabulary import FUNCTION_WORDS
from ultraflash_cli.train.captions import scrambled

CAPTION = "a red ball is bouncing to the left near the hills at dusk sky1 land2 way3"


def test_scrambling_keeps_every_word_that_counts_and_the_layout_at_the_end() -> None:
    seen = {scrambled(CAPTION, np.random.default_rng(seed)) for seed in range(50)}
    assert len(seen) == 50
    for words in (each.split() for each in seen):
        assert words[-3:] == ["sky1", "land2", "way3"]
        counted = [word for word in words[:-3] if word not in FUNCTION_WORDS]
        assert sorted(counted) == sorted(["red", "ball", "bouncing", "left", "near", "hills", "dusk"])


def test_a_caption_with_two_directions_is_not_scrambled() -> None:
    caption = "a bird flies from right to left sky1 land1 way1"
    assert {scrambled(caption, np.random.default_rng(seed)) for seed in range(20)} == {caption}


def test_an_empty_caption_gets_function_words_alone() -> None:
    for seed in range(20):
        assert set(scrambled("", np.random.default_rng(seed)).split()) <= FUNCTION_WORDS
