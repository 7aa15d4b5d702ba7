"""Embeddings of prompts; those of the large text encoder are computed once and cached
on disk."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoder, PromptEncoderConfig, WordTokenizer, words_of
from ultraflash_cli.engine.stages.text_encoder import (
    ByteTokenizer,
    TextEncoder,
    TextEncoderConfig,
    clean_prompt,
    encode_prompts,
    load_tokenizer,
)
from ultraflash_cli.engine.vocabulary import FAINT_WORDS, FUNCTION_WORDS, SUBJECTS
from ultraflash_cli.errors import UsageError
from ultraflash_cli.files import write_whole
from ultraflash_cli.models.device import stage_precisions
from ultraflash_cli.models.shelf import TOKENIZER, Shelf

__all__ = ["EMBEDDINGS", "embed_prompts", "is_embedded", "prompt_read", "word_warnings"]

EMBEDDINGS = "embeddings"
"""Name of the folder in the weight store."""
_WORDS_SHOWN = 10
_WORD_COLUMNS = 30
"""Maximum width of an unknown word in a warning."""


class _Embedding(NamedTuple):
    rows: Tensor
    """``[1, tokens in use, text width]``."""
    tokens: int
    """Number of tokens in the whole prompt; more than the rows if it was truncated."""


def embed_prompts(
    shelf: Shelf,
    profile: Profile,
    prompts: Sequence[str],
    *,
    device: torch.device,
    precision: str,
    keep_encoder: bool = False,
    warn: Callable[[str], None],
) -> list[Tensor]:
    """Return the embedding ``[1, tokens, text width]`` of each prompt without padding,
    on ``device``. The text encoder is loaded only if an embedding is not on disk yet,
    and dropped afterwards unless ``keep_encoder``. ``warn`` is called for truncated
    prompts and unknown words. Raises UsageError for a prompt that is empty once
    cleaned, WeightsError.
    """
    dtype = stage_precisions(profile, precision, device)("text_encoder")
    cleaned = [_cleaned(profile, prompt) for prompt in prompts]
    if "" in cleaned:
        raise UsageError("the prompt is empty; describe what the clip shows")
    folder = _folder(shelf, profile) if _is_kept(profile) else None
    known = {prompt: kept for prompt in cleaned if (kept := _read(folder, prompt, dtype)) is not None}
    missing = [prompt for prompt in dict.fromkeys(cleaned) if prompt not in known]
    if missing:
        for prompt, embedding in _compute(shelf, profile, missing, device, dtype, keep=keep_encoder).items():
            _write(folder, prompt, embedding)
            known[prompt] = embedding
    for prompt in cleaned:
        rows = known[prompt].rows.shape[1]
        if known[prompt].tokens > rows:
            warn(f"the prompt has {known[prompt].tokens} tokens; only the first {rows} are used")
        for warning in word_warnings(profile, prompt):
            warn(warning)
    return [known[prompt].rows.to(device) for prompt in cleaned]


def word_warnings(profile: Profile, prompt: str) -> list[str]:
    """Return the warnings about a prompt's words, for which no weights are needed."""
    warnings: list[str] = []
    if unheard := _unheard(profile, prompt):
        warnings.append(f"words unknown to {profile.name}, ignored: {_listed(unheard)}")
    heard = _heard(profile, prompt)
    if heard is not None and not heard:
        warnings.append(f"{profile.name} knows no word of this prompt; the clip will not match it")
    elif heard is not None and heard <= FUNCTION_WORDS:
        warnings.append(f"this prompt names nothing that {profile.name} knows; the clip will not match it")
    return warnings + _limits_met(profile, prompt, heard or set())


def _limits_met(profile: Profile, prompt: str, heard: set[str]) -> list[str]:
    """Return warnings about known words of a prompt that its clip cannot show."""
    warnings: list[str] = []
    known = [word for word in dict.fromkeys(words_of(prompt)) if word in heard]
    if faint := [word for word in known if word in FAINT_WORDS]:
        warnings.append(f"{profile.name} hardly draws {' or '.join(faint)}")
    subjects = list(dict.fromkeys(SUBJECTS[word] for word in known if word in SUBJECTS))
    if len(subjects) > 1:
        named = f"{', '.join(subjects[:-1])} and {subjects[-1]}"
        warnings.append(f"{profile.name} draws one kind of moving thing, this prompt names {named}; they will mix")
    return warnings


def _unheard(profile: Profile, prompt: str) -> list[str]:
    """Return the words of a prompt that are unknown to the model's prompt encoder."""
    config = profile.text_encoder
    listed = isinstance(config, PromptEncoderConfig)
    return WordTokenizer(config.vocab, config.words).unheard(prompt) if listed else []


def _listed(words: Sequence[str]) -> str:
    """Return the first words of a list, each cut, and how many more there are."""
    shown = [word if len(word) <= _WORD_COLUMNS else f"{word[:_WORD_COLUMNS]}..." for word in words[:_WORDS_SHOWN]]
    rest = len(words) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _heard(profile: Profile, prompt: str) -> set[str] | None:
    """Return the words of a prompt that its encoder knows, apart from those of its variant; None if it has no words."""
    config = profile.text_encoder
    if not isinstance(config, PromptEncoderConfig):
        return None
    tokenizer = WordTokenizer(config.vocab, config.words)
    added = {word for group in config.variants for word in group}
    return {word for word in words_of(prompt) if word not in added and len(tokenizer(word)) > 1}


def prompt_read(profile: Profile, prompt: str, seed: int) -> str:
    """Return the text that the encoder reads for a prompt; if the model has variants,
    the seed chooses one."""
    words = profile.text_encoder
    return words.with_variant(prompt, seed) if isinstance(words, PromptEncoderConfig) else prompt


def is_embedded(shelf: Shelf, profile: Profile, prompt: str, *, precision: str, device: torch.device) -> bool:
    """Return whether a prompt needs no text encoder, because its embedding is on disk
    or the model has no text path."""
    if profile.text_encoder is None:
        return True
    if not _is_kept(profile):
        return False
    dtype = stage_precisions(profile, precision, device)("text_encoder")
    folder = _folder(shelf, profile)
    return folder is not None and _path(folder, _cleaned(profile, prompt), dtype).is_file()


def _is_kept(profile: Profile) -> bool:
    """Return whether embeddings are cached, which those of random weights and of the
    small encoder are not."""
    return profile.random_seed is None and isinstance(profile.text_encoder, TextEncoderConfig)


def _cleaned(profile: Profile, prompt: str) -> str:
    if isinstance(profile.text_encoder, PromptEncoderConfig):
        return " ".join(prompt.split())  # word tokenisation needs no package
    return clean_prompt(prompt)


def _compute(
    shelf: Shelf,
    profile: Profile,
    prompts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    *,
    keep: bool,
) -> dict[str, _Embedding]:
    config = profile.text_encoder
    assert config is not None, "a model that takes prompts has a text encoder"
    encoder = shelf.take(profile, "text_encoder", config, device=device, dtype=dtype)
    computed: dict[str, _Embedding] = {}
    if isinstance(encoder, PromptEncoder):
        tokenizer = WordTokenizer(encoder.config.vocab, encoder.config.words)
        encode: Callable[[str], Tensor] = lambda prompt: encoder.encode((prompt,))  # noqa: E731
    else:
        assert isinstance(encoder, TextEncoder)
        random = profile.random_seed is not None
        tokenizer = ByteTokenizer() if random else load_tokenizer(shelf.folder(TOKENIZER))
        encode = lambda prompt: encode_prompts(encoder, tokenizer, [prompt])  # noqa: E731
    for prompt in prompts:
        tokens = len(tokenizer(prompt))
        computed[prompt] = _Embedding(encode(prompt)[:, : min(tokens, config.text_len)].cpu(), tokens)
    if not keep:
        shelf.drop(encoder)
    return computed


def _folder(shelf: Shelf, profile: Profile) -> Path | None:
    """Return the folder for embeddings of this text encoder and tokenizer."""
    names = (profile.weight_of("text_encoder"), TOKENIZER)
    identity = hashlib.sha256("\n".join(shelf.identity(name) for name in names).encode()).hexdigest()[:16]
    kept = shelf.kept(EMBEDDINGS)
    return kept / identity if kept is not None else None


def _path(folder: Path, prompt: str, dtype: torch.dtype) -> Path:
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    return folder / f"{digest}.{str(dtype).removeprefix('torch.')}.safetensors"


def _read(folder: Path | None, prompt: str, dtype: torch.dtype) -> _Embedding | None:
    if folder is None:
        return None
    try:
        kept = load_file(_path(folder, prompt, dtype))
        return _Embedding(kept["rows"], int(kept["tokens"]))
    except (OSError, SafetensorError, KeyError):
        return None


def _write(folder: Path | None, prompt: str, embedding: _Embedding) -> None:
    """Cache an embedding; if the folder is not writable, the next run only takes
    longer."""
    if folder is None:
        return
    path = _path(folder, prompt, embedding.rows.dtype)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, save({"rows": embedding.rows.contiguous(), "tokens": torch.tensor(embedding.tokens)}))
