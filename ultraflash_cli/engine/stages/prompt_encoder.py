"""Encode prompts with a small transformer over words, for models with their own
vocabulary."""

import re
import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.errors import ConfigError

__all__ = ["PromptEncoder", "PromptEncoderConfig", "WordTokenizer", "words_of"]

PAD_ID, EOS_ID, FIRST_WORD_ID = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class PromptEncoderConfig:
    """Sizes of the prompt encoder."""

    words: tuple[str, ...] = ()
    """The known words, lower case; others are ignored. Empty for hashed words."""
    variants: tuple[tuple[str, ...], ...] = ()
    """Groups of words that select the layout of the picture; a seed picks one word from
    each group."""
    rows: int = 512
    """Number of rows of each of the two tables, which are indexed by the two digits of
    a hashed id."""
    dim: int = 64
    """Number of channels of an embedding."""
    heads: int = 4
    """Attention heads."""
    layers: int = 1
    """Number of blocks."""
    text_len: int = 24
    """Maximum number of words read from a prompt, including the end token, and rows of
    its embedding."""

    def __post_init__(self) -> None:
        if len(set(self.words)) < len(self.words) or any(
            word != word.lower() for word in self.words
        ):
            raise ConfigError(
                "the words of a prompt encoder must be distinct and lower case"
            )
        if not all(set(group) <= set(self.words) and group for group in self.variants):
            raise ConfigError("the variants of a prompt encoder must be among its words")
        if (
            min(self.rows, self.dim, self.heads, self.text_len) < 1
            or self.layers < 0
            or self.dim % self.heads
        ):
            raise ConfigError(
                "prompt encoder sizes must be positive, and heads must divide the "
                "number of channels"
            )

    def with_variant(self, prompt: str, seed: int) -> str:
        """Return the prompt followed by one word from each group of variants. The words
        are the digits of the seed, starting with the lowest, so that consecutive seeds
        differ.
        """
        said = [prompt]
        for group in self.variants:
            seed, digit = divmod(seed, len(group))
            said.append(group[digit])
        return " ".join(said)

    @property
    def vocab(self) -> int:
        """Number of ids."""
        return FIRST_WORD_ID + len(self.words) if self.words else self.rows**2


class WordTokenizer:
    """Converts lower-case words to ids, with the end-of-sequence id last: indices in a
    list of words, or hashes if there is no list."""

    def __init__(self, vocab: int, words: tuple[str, ...] = ()) -> None:
        self.vocab = vocab
        self.places = {word: FIRST_WORD_ID + i for i, word in enumerate(words)}

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a prompt; all characters except letters and digits separate
        words. Unknown words are skipped."""
        words = words_of(text)
        if self.places:
            return [self.places[word] for word in words if word in self.places] + [EOS_ID]
        free = self.vocab - FIRST_WORD_ID
        return [FIRST_WORD_ID + zlib.crc32(word.encode()) % free for word in words] + [
            EOS_ID
        ]

    def unheard(self, text: str) -> list[str]:
        """Return the unknown words of a prompt, each once; empty if there is no
        list."""
        return [
            word
            for word in dict.fromkeys(words_of(text))
            if self.places and word not in self.places
        ]


def _cut(row: list[int], length: int, kept: set[int]) -> list[int]:
    """Return at most ``length`` ids, without the last ones in front of those to keep at
    the end."""
    tail = (
        len(row)
        - next((at for at in reversed(range(len(row))) if row[at] not in kept), -1)
        - 1
    )
    tail = min(tail, length)
    return row if len(row) <= length else row[: length - tail] + row[len(row) - tail :]


def words_of(text: str) -> list[str]:
    """Return the words of a prompt in lower case; anything but letters and digits
    separates them."""
    return re.findall(r"\w+", text.lower())


class _Block(nn.Module):
    """Attention over the words, then a feed-forward layer."""

    def __init__(self, config: PromptEncoderConfig) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Update ``x [B, L, dim]``; rows where ``mask [B, L]`` is 0 are not attended
        to."""
        q, k, v = (
            self.qkv(self.norm1(x))
            .unflatten(2, (3, self.heads, -1))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask[:, None, None].bool()
        )
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm2(x))


class PromptEncoder(nn.Module):
    """Encodes word ids to embeddings. Each listed word has its own table row. A hashed
    id is a two-digit number, and its embedding the sum of two table rows: two small
    tables cover half a million words, and words that share one digit still differ.
    """

    def __init__(self, config: PromptEncoderConfig) -> None:
        super().__init__()
        self.config = config
        if config.words:
            self.table = nn.Embedding(config.vocab, config.dim)
        else:
            self.high, self.low = (
                nn.Embedding(config.rows, config.dim),
                nn.Embedding(config.rows, config.dim),
            )
        self.place = nn.Parameter(0.1 * torch.randn(config.text_len, config.dim))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return [B, L, dim] for ``ids [B, L]``, with zero rows where ``mask [B, L]``
        is 0."""
        rows = self.config.rows
        words = (
            self.table(ids)
            if self.config.words
            else self.high(ids // rows) + self.low(ids % rows)
        )
        x = words + self.place[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x).masked_fill(mask[..., None] == 0, 0.0)

    def ids_of(self, prompts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Return ids and mask of prompts, both [B, text_len]; long prompts are
        truncated before the words of a variant and the end token."""
        tokenizer, length = (
            WordTokenizer(self.config.vocab, self.config.words),
            self.config.text_len,
        )
        rows = [tokenizer(prompt) for prompt in prompts]
        variants = {word for group in self.config.variants for word in group}
        kept = {EOS_ID, *(tokenizer.places[word] for word in variants)}
        rows = [_cut(row, length, kept) for row in rows]
        ids = torch.tensor(
            [row + [PAD_ID] * (length - len(row)) for row in rows], device=self.place.device
        )
        return ids, (ids != PAD_ID).long()

    def encode(self, prompts: tuple[str, ...]) -> Tensor:
        """Return the embeddings [B, text_len, dim] of prompts, each padded with zero
        rows; differentiable."""
        return self(*self.ids_of(prompts))
