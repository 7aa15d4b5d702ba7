"""Encode prompts: cleaning, tokenizers and the UMT5 text encoder."""

import html
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ultraflash_cli.errors import ConfigError, UsageError, WeightsError

__all__ = [
    "PUBLISHED_NAMES",
    "ByteTokenizer",
    "TextEncoder",
    "TextEncoderConfig",
    "Tokenizer",
    "clean_prompt",
    "encode_prompts",
    "load_tokenizer",
    "published_names",
]

Tokenizer = Callable[[str], list[int]]
"""A function from a cleaned prompt to all its ids, with the end-of-sequence id last."""

PAD_ID, EOS_ID = 0, 1

OUTER_NAMES = {
    "token_embedding.weight": "encoder.embed_tokens.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
}
BLOCK_NAMES = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",  # noqa: E501
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """Sizes of the text encoder; the defaults are the published ones
    (reference/cascade.md 2)."""

    vocab: int = 256384
    """Number of ids with an embedding."""
    dim: int = 4096
    """Number of channels of an embedding."""
    ffn_dim: int = 10240
    """Internal channels of the gated feed-forward layers."""
    heads: int = 64
    """Attention heads."""
    attention_dim: int | None = None
    """Number of channels of all heads together; None for ``dim``."""
    layers: int = 24
    """Number of blocks."""
    buckets: int = 32
    """Number of distinguished relative distances, half of them forward."""
    max_distance: int = 128
    """Distance in tokens beyond which all distances share a bucket."""
    text_len: int = 512
    """Maximum number of tokens read from a prompt, and rows of its embedding."""

    def __post_init__(self) -> None:
        sizes = (self.vocab, self.dim, self.ffn_dim, self.heads, self.head_dim, self.layers)
        if min(sizes) < 1 or self.heads * self.head_dim != (self.attention_dim or self.dim):
            raise ConfigError(
                "text encoder sizes must be positive, and heads * head_dim must equal the "
                "attention channels"
            )
        if self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 4:
            raise ConfigError(
                "buckets must be a multiple of 4, and max_distance more than a quarter of "
                "them"
            )
        if self.text_len < 1:
            raise ConfigError(f"text_len must be at least 1, got {self.text_len}")

    @property
    def head_dim(self) -> int:
        """Number of channels of one head."""
        return (self.attention_dim or self.dim) // max(1, self.heads)


def published_names(layers: int) -> dict[str, str]:
    """Return the published name of every tensor of an encoder with ``layers`` blocks,
    and its internal name."""
    blocks = {
        f"blocks.{i}.{published}": f"encoder.block.{i}.{own}"
        for i in range(layers)
        for published, own in BLOCK_NAMES.items()
    }
    return OUTER_NAMES | blocks


PUBLISHED_NAMES = published_names(24)
"""The published name of each of the 242 tensors, and its name in our network."""


class TextEncoder(nn.Module):
    """Encodes token ids: the UMT5 encoder of the transformers package, without dropout.
    State dicts use the published names. Raises UsageError if the package is missing.
    Needs no network and no file.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        transformers = _extra("transformers")
        settings = transformers.UMT5Config(
            vocab_size=2,
            d_model=config.dim,
            d_kv=config.head_dim,
            d_ff=config.ffn_dim,
            num_layers=config.layers,
            num_heads=config.heads,
            relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.max_distance,
            dropout_rate=0.0,
            layer_norm_epsilon=1e-6,
            feed_forward_proj="gated-gelu",
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
            attn_implementation="eager",
        )

        # The model around the encoder only holds a second embedding under another name.
        # It is built with two ids and discarded, so that the real embedding is a single
        # tensor with a single name, however it is loaded or moved.
        self.encoder: nn.Module = transformers.UMT5EncoderModel(settings).encoder
        self.encoder.embed_tokens = nn.Embedding(config.vocab, config.dim)
        self.register_state_dict_post_hook(_to_published_names)
        self.register_load_state_dict_pre_hook(_to_own_names)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return [B, L, dim] for ``ids [B, L]``, including rows where ``mask [B, L]``
        is 0, which are not attended to."""
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return [B, L, dim] for ``ids [B, L]``, with zero rows where ``mask [B, L]``
        is 0."""
        return self.hidden(ids, mask).masked_fill(mask[..., None] == 0, 0.0)


def clean_prompt(text: str) -> str:
    """Repair broken characters and HTML entities, and collapse whitespace to single
    spaces; case is kept.

    Raises UsageError if the package ftfy is missing.
    """
    text = html.unescape(html.unescape(_extra("ftfy").fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class ByteTokenizer:
    """Converts the bytes of a prompt to ids from 3 upwards, for models without a
    vocabulary."""

    vocab = 3 + 256
    """Number of ids."""

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a prompt."""
        return [byte + 3 for byte in text.encode()] + [EOS_ID]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder laid out like ``google/umt5-xxl``; needs no
    network.

    ``tokenizer.json`` is used as is. The class named in ``tokenizer_config.json`` is
    not used: its current form rebuilds the pipeline without byte fallback, which loses
    characters outside the vocabulary. Without ``tokenizer.json``, ``spiece.model`` is
    used. Raises WeightsError if there is neither or the file is unreadable, UsageError
    if a package is missing.
    """
    whole, pieces = folder / "tokenizer.json", folder / "spiece.model"
    try:
        if whole.is_file():
            tokenizer = _extra("tokenizers").Tokenizer.from_file(str(whole))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return lambda text: _ended(tokenizer.encode(text).ids)
        if pieces.is_file():
            processor = _extra("sentencepiece").SentencePieceProcessor(
                model_file=str(pieces)
            )
            return lambda text: _ended(processor.encode(text))
    except UsageError:
        raise
    except Exception as error:  # both packages raise generic exceptions for a damaged file
        raise WeightsError(
            f"{folder}: the tokenizer is unreadable ({error}); pull it again"
        ) from error

    raise WeightsError(
        f"{folder} has neither tokenizer.json nor spiece.model; pull the tokenizer first"
    )


@torch.no_grad()
def encode_prompts(
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    on_truncated: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return the embeddings [B, text_len, dim] of cleaned prompts, each padded with
    zero rows. Each prompt is encoded separately, so that its embedding does not depend
    on the others. Prompts of more than ``text_len`` tokens are truncated before the
    end-of-sequence token; ``on_truncated`` is then called with (index of the prompt,
    its number of tokens). Raises ConfigError if tokenizer and encoder do not match.
    """
    config, weight = encoder.config, next(encoder.parameters())
    embeds = weight.new_zeros((len(prompts), config.text_len, config.dim))
    for index, prompt in enumerate(prompts):
        ids = tokenizer(prompt)
        if max(ids) >= config.vocab:
            raise ConfigError(
                f"the tokenizer returned id {max(ids)}, but the text encoder has only "
                f"{config.vocab}"
            )
        if len(ids) > config.text_len:
            if on_truncated is not None:
                on_truncated(index, len(ids))
            ids = ids[: config.text_len - 1] + ids[-1:]
        row = torch.tensor([ids], device=weight.device)
        embeds[index, : len(ids)] = encoder(row, torch.ones_like(row))[0]
    return embeds


def _to_published_names(
    encoder: nn.Module, state: dict[str, Any], prefix: str, _: object
) -> None:
    assert isinstance(encoder, TextEncoder)
    for published, own in published_names(encoder.config.layers).items():
        state[prefix + published] = state.pop(prefix + own)


def _to_own_names(
    encoder: nn.Module, state: dict[str, Any], prefix: str, *_: object
) -> None:
    assert isinstance(encoder, TextEncoder)
    for published, own in published_names(encoder.config.layers).items():
        if prefix + published in state:
            state[prefix + own] = state.pop(prefix + published)


def _ended(ids: list[int]) -> list[int]:
    return ids if ids[-1:] == [EOS_ID] else [*ids, EOS_ID]


def _extra(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            f"prompts need the package {package} ({error}); in the source folder, run pip "
            "install '.[generate]'"
        ) from error
