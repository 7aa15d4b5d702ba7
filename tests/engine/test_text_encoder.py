"""The text encoder: published names, precisions, batches of prompts, tokenizers without
a network connection."""

import io
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import torch
import transformers
from torch import Tensor

from tests.contracts.stages import randomise
from ultraflash_cli.engine.stages.text_encoder import (
    PUBLISHED_NAMES,
    ByteTokenizer,
    TextEncoder,
    TextEncoderConfig,
    clean_prompt,
    encode_prompts,
    load_tokenizer,
)
from ultraflash_cli.errors import ConfigError, UsageError, WeightsError

SIZES: dict[str, Any] = {"vocab": 300, "dim": 16, "ffn_dim": 24, "heads": 2, "layers": 2, "text_len": 24}
PROMPT = "A corgi ☃ runs on the beach"


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    network = TextEncoder(TextEncoderConfig(**SIZES))
    randomise(network)
    return network


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the text encoder reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def pieces() -> bytes:
    """Return a vocabulary like that of umt5: unigram pieces, bytes for the rest, pad 0,
    end 1, unknown 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["A corgi runs on the beach at sunset", "waves and wind on a beach"] * 9),
        model_writer=model,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture
def folder(pieces: bytes, tmp_path: Path) -> Path:
    """The files of a published umt5 tokenizer, at a tiny size."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    vocab = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.vocab_size())]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=["$A", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    named = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named | {"extra_ids": 0}))
    (tmp_path / "spiece.model").write_bytes(pieces)
    return tmp_path


def expanded(manifest: dict[str, Any]) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = dict(manifest["tensors"])
    for part in manifest["repeated"]:
        for i in range(part["count"]):
            prefix: str = part["prefix"].format(i=i)
            shapes |= {prefix + name: shape for name, shape in part["tensors"].items()}
    return shapes


def test_the_full_size_has_the_published_tensors_and_one_embedding(repository: Path) -> None:
    manifest = repository / "tests" / "manifests" / "umt5_xxl_encoder.json"
    with torch.device("meta"):
        network = TextEncoder(TextEncoderConfig())
    published = expanded(json.loads(manifest.read_text()))
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == published
    assert {PUBLISHED_NAMES[name]: shape for name, shape in published.items()} == {
        name: list(tensor.shape) for name, tensor in network.named_parameters(remove_duplicate=False)
    }
    assert len(PUBLISHED_NAMES) == 242
    assert all(tensor.is_meta for tensor in network.parameters())
    assert not list(network.buffers())


def test_weights_are_taken_over_without_a_copy_and_stay_one_tensor_when_moved(encoder: TextEncoder) -> None:
    weights = encoder.state_dict()
    with torch.device("meta"):
        other = TextEncoder(encoder.config)
    other.load_state_dict(weights, strict=True, assign=True)
    name = "token_embedding.weight"
    assert other.get_parameter(PUBLISHED_NAMES[name]).data_ptr() == weights[name].data_ptr()
    moved = other.to(torch.bfloat16).named_parameters(remove_duplicate=False)
    assert [n for n, x in moved if x.shape[0] == SIZES["vocab"]] == [PUBLISHED_NAMES[name]]


def test_a_missing_and_an_unexpected_name_are_refused(encoder: TextEncoder) -> None:
    for rename in ({"norm.weight": "norm.scale"}, {"blocks.1.attn.q.weight": "blocks.2.attn.q.weight"}):
        weights = {rename.get(name, name): tensor for name, tensor in encoder.state_dict().items()}
        with pytest.raises(RuntimeError, match="Missing key"):
            TextEncoder(encoder.config).load_state_dict(weights)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 0.1), (torch.float16, 0.02)],
    ids=["fp32", "bf16", "fp16"],
)
def test_every_precision_produces_the_same_embedding_nearly(
    encoder: TextEncoder, dtype: torch.dtype, tolerance: float
) -> None:
    wide = encode_prompts(encoder, ByteTokenizer(), [PROMPT])
    half = TextEncoder(encoder.config).to(dtype)
    half.load_state_dict(encoder.state_dict())
    embeds = encode_prompts(half, ByteTokenizer(), [PROMPT])
    assert embeds.dtype == dtype
    torch.testing.assert_close(embeds.float(), wide, atol=tolerance, rtol=0.0)


def test_half_precision_that_overflows_is_clamped_to_1000_below_the_largest_number() -> None:
    network = TextEncoder(TextEncoderConfig(**SIZES | {"layers": 1}))
    randomise(network)
    network.get_parameter("encoder.block.0.layer.1.DenseReluDense.wo.weight").mul_(3e4)
    network.get_parameter("encoder.block.0.layer.1.DenseReluDense.wi_1.weight").mul_(4)
    blocks: list[Tensor] = []
    network.get_submodule("encoder.block.0").register_forward_hook(lambda *call: blocks.append(call[2]))
    encode_prompts(network, ByteTokenizer(), ["overflow"])
    assert blocks[0].abs().max() > 65504
    wanted: Tensor = network.get_submodule("encoder.final_layer_norm")(blocks[0].clamp(-64504, 64504))
    embeds = encode_prompts(network.half(), ByteTokenizer(), ["overflow"])
    torch.testing.assert_close(embeds[:, :9].float(), wanted, atol=0.02, rtol=0.0)


def test_an_embedding_does_not_depend_on_the_other_prompts(encoder: TextEncoder) -> None:
    prompts = ["a dog", "", "a much longer prompt", PROMPT]
    together = encode_prompts(encoder, ByteTokenizer(), prompts)
    for index, prompt in enumerate(prompts):
        assert torch.equal(together[index : index + 1], encode_prompts(encoder, ByteTokenizer(), [prompt]))


def test_a_padded_batch_gives_what_each_prompt_gives_alone(encoder: TextEncoder) -> None:
    prompts = ["a dog", "a longer prompt"]
    ids, mask = torch.zeros((2, 24), dtype=torch.int64), torch.zeros((2, 24), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens = ByteTokenizer()(prompt)
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
    with torch.no_grad():
        padded: Tensor = encoder(ids, mask)
    assert padded[0, 6:].count_nonzero() == 0
    torch.testing.assert_close(padded, encode_prompts(encoder, ByteTokenizer(), prompts))


def test_a_prompt_that_is_too_long_keeps_its_end_and_is_reported(encoder: TextEncoder) -> None:
    told: list[tuple[int, int]] = []
    prompts = ["short", "word " * 2000, "w" * 23, "w" * 24]
    embeds = encode_prompts(encoder, ByteTokenizer(), prompts, on_truncated=lambda *what: told.append(what))
    assert told == [(1, 10001), (3, 25)]
    assert torch.equal(embeds[3], embeds[2]), "23 letters and the end are left of both"
    assert embeds.shape == (4, 24, 16)


def test_a_tokenizer_of_another_model_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ConfigError, match="has only 300"):
        encode_prompts(encoder, lambda text: [300, 1], ["a"])


def test_a_published_folder_is_read_as_it_stands(folder: Path) -> None:
    auto = transformers.AutoTokenizer.from_pretrained(folder, config=transformers.UMT5Config(), local_files_only=True)
    ids = load_tokenizer(folder)(PROMPT)
    assert ids == auto(PROMPT, truncation=False, padding=False)["input_ids"]
    assert ids[-1] == 1 and ids.count(1) == 1 and 2 not in ids, "bytes stand in for the snowman"


def test_a_folder_with_the_pieces_alone_produces_the_same_ids(folder: Path) -> None:
    ids = load_tokenizer(folder)(PROMPT)
    (folder / "tokenizer.json").unlink()
    assert load_tokenizer(folder)(PROMPT) == ids


def test_a_long_prompt_goes_through_a_published_tokenizer(encoder: TextEncoder, folder: Path) -> None:
    told: list[tuple[int, int]] = []
    tokenizer = load_tokenizer(folder)
    prompt = clean_prompt("beach " * 2000)
    embeds = encode_prompts(encoder, tokenizer, [prompt], on_truncated=lambda *what: told.append(what))
    assert told == [(0, len(tokenizer(prompt)))] and told[0][1] >= 2001
    assert embeds[0, -1].count_nonzero() > 0


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a tokenizer")
    with pytest.raises(WeightsError, match="unreadable"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="neither"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("package", ["transformers", "ftfy"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    needs_it = {"transformers": lambda: TextEncoder(TextEncoderConfig(**SIZES)), "ftfy": lambda: clean_prompt("text")}
    with pytest.raises(UsageError, match=rf"{package}.*pip install '\.\[generate\]'"):
        needs_it[package]()


@pytest.mark.parametrize(
    ("typed", "cleaned"),
    [
        ("  A cat  walks\n on   the beach. ", "A cat walks on the beach."),
        ("it&#39;s &amp;amp; a &lt;b&gt;", "it's & a <b>"),
        ("sch\u00c3\u00b6n", "sch\u00f6n"),
        ("\n\t ", ""),
    ],
)
def test_a_prompt_is_cleaned(typed: str, cleaned: str) -> None:
    assert clean_prompt(typed) == cleaned


@pytest.mark.parametrize(
    "change",
    [{"heads": 3}, {"heads": 0}, {"layers": 0}, {"buckets": 6}, {"max_distance": 8}, {"text_len": 0}],
    ids=lambda change: next(iter(change)),
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        TextEncoderConfig(**SIZES | change)
