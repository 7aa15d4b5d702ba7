"""Keys and values of a prompt for cross-attention, its padding folded."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.engine.stage import Leaf

__all__ = ["TYPICAL_TOKENS", "ContextKv", "Folding", "with_context", "without_context"]

TYPICAL_TOKENS = 120
"""Tokens of a prompt of 80 to 90 English words, which benchmarks and estimates
assume."""

_MULTIPLE = 64
"""The number of keys after folding is a multiple of this, so that few shapes occur."""
_PADDING_KEYS = 2
"""Keys that stand for all padding."""


class ContextKv(NamedTuple):
    """Keys and values of the context, ``[B, heads, keys, D]``."""

    k: Tensor
    v: Tensor
    log_weights: Tensor | None = None
    """Logarithm of the number of tokens that a key stands for, ``[keys]``, float32; it
    is added to the key's scores. None if every key stands for one token."""

    def mean_value(self) -> Tensor:
        """Return the mean of the tokens' values, ``[B, heads * D]``."""
        if self.log_weights is None:
            return self.v.mean(dim=2).flatten(1)
        counts = self.log_weights.exp()
        mean = (self.v.float() * (counts / counts.sum())[:, None]).sum(dim=2)
        return mean.to(self.v.dtype).flatten(1)


class Folding(NamedTuple):
    """How a context of ``tokens`` rows and ``padding`` zero rows becomes ``keys`` keys.

    Zero rows have the same key and the same value, so softmax over all of them equals
    softmax over one with the logarithm of their number added to its score. Two keys
    represent them: the first number is exact in bfloat16, to which some libraries round
    masks, and the second one adds what is missing, at most a thirtieth.
    """

    tokens: int
    padding: int
    keys: int

    @classmethod
    def of(cls, tokens: int, text_len: int) -> "Folding | None":
        """Return how to fold the padding of ``tokens`` to ``text_len``; None if that
        saves less than a multiple of 64 keys."""
        keys = _rounded_up(tokens + _PADDING_KEYS)
        if tokens >= text_len or keys >= _rounded_up(text_len):
            return None
        return cls(tokens, text_len - tokens, keys)

    @property
    def rows(self) -> int:
        """Rows to embed: the tokens and those that stand for padding."""
        return self.tokens + _PADDING_KEYS

    def log_weights(self, device: torch.device) -> Tensor:
        """Return the logarithms of the numbers of tokens, ``[keys]`` float32, -inf for
        keys that only fill up."""
        mantissa, exponent = math.frexp(math.log(self.padding))
        first = math.ldexp(math.floor(mantissa * 256) / 256, exponent)
        rest = self.padding - math.exp(first)
        weights = torch.full((self.keys,), -math.inf, device=device)
        weights[: self.tokens] = 0.0
        weights[self.tokens] = first
        weights[self.tokens + 1] = math.log(rest) if rest > 0 else -math.inf
        return weights

    def fill_up(self, x: Tensor) -> Tensor:
        """Append zeros to the embedded rows ``x [B, heads, rows, D]``."""
        return F.pad(x, (0, 0, 0, self.keys - self.rows))


def without_context(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Return the leaves of a state except those of contexts, which depend only on the
    prompt."""
    return {name: leaf for name, leaf in leaves.items() if not _of_context(name)}


def with_context(
    kept: Mapping[str, Tensor], fresh: Mapping[str, Leaf]
) -> dict[str, Tensor]:
    """Return saved leaves with the contexts of a fresh state of the same prompt, also
    if contexts were saved, perhaps in another form."""
    contexts = {
        name: leaf
        for name, leaf in fresh.items()
        if _of_context(name) and isinstance(leaf, Tensor)
    }
    return {name: leaf for name, leaf in kept.items() if not _of_context(name)} | contexts


def _of_context(name: str) -> bool:
    return "context" in name.split(".")


def _rounded_up(keys: int) -> int:
    return -(-keys // _MULTIPLE) * _MULTIPLE
