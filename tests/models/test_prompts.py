"""Embeddings of prompts: computed once, kept on disk, found again; the text encoder only when it is needed."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from tests.contracts.stages import randomise
from tests.models.installing import put
from ultraflash_cli.engine.profiles import LITE, TINY_RANDOM, ULTRAFLASH
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoder, PromptEncoderConfig
from ultraflash_cli.engine.stages.text_encoder import TextEncoder, TextEncoderConfig
from ultraflash_cli.engine.vocabulary import FAINT_WORDS, SCENE_WORDS, SUBJECTS
from ultraflash_cli.errors import UsageError, WeightsError
from ultraflash_cli.models.prompts import EMBEDDINGS, embed_prompts, is_embedded, prompt_read, word_warnings
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.weights.manifest import read_manifest
from ultraflash_cli.weights.store import Receipt, WeightStore
from ultraflash_cli.weights.verify import sha256_of

CPU = torch.device("cpu")
TEXT = TextEncoderConfig(vocab=64, dim=24, ffn_dim=32, heads=4, layers=1, text_len=8)
PROFILE = replace(
    TINY_RANDOM,
    name="small",
    random_seed=None,
    weights=ULTRAFLASH.weights,
    text_encoder=TEXT,
    generator=None,
    long_generator=None,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with a tiny text encoder and tokenizer under the published names."""
    store = WeightStore(tmp_path / "home")
    encoder = TextEncoder(TEXT)
    randomise(encoder)
    put(store, "wan/text_encoder", {name: value.contiguous() for name, value in encoder.state_dict().items()})
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in "abcdefgh")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    for name, entry in read_manifest().items():
        if not name.startswith("wan/tokenizer/"):
            continue
        part = store.part(entry)
        part.write_text(tokenizer.to_str() if name.endswith("tokenizer.json") else "{}")
        size, digest = part.stat().st_size, sha256_of(part)
        receipt = Receipt(
            name=name,
            repository=None,
            revision=None,
            source=name,
            source_bytes=size,
            source_sha256=entry.sha256 or digest,
            verified_by="keys",
            bytes=size,
            sha256=digest,
            mtime_ns=part.stat().st_mtime_ns,
        )
        store.add(entry, part, receipt)
    return store.root


def embed(home: Path, *prompts: str, warnings: list[str] | None = None) -> list[torch.Tensor]:
    warn = (warnings if warnings is not None else []).append
    return embed_prompts(Shelf(home), PROFILE, prompts, device=CPU, precision="fp32", warn=warn)


def kept(home: Path) -> list[Path]:
    return sorted((home / EMBEDDINGS).rglob("*.safetensors"))


def test_an_embedding_is_computed_once_and_found_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = embed(home, "abc")
    assert first.shape[0] == 1 and first.shape[2] == TEXT.dim and 2 <= first.shape[1] <= TEXT.text_len
    assert is_embedded(Shelf(home), PROFILE, "abc", precision="fp32", device=CPU)
    monkeypatch.setattr(TextEncoder, "forward", None)  # using it now fails
    assert torch.equal(embed(home, "  abc ")[0], first)
    with pytest.raises(TypeError):
        embed(home, "another")


def test_equal_prompts_are_encoded_once_and_each_gets_its_own(home: Path) -> None:
    one, other, again = embed(home, "abc", "hgf", "abc")
    assert torch.equal(one, again) and not torch.equal(one[:, :2], other[:, :2])
    assert len(kept(home)) == 2


def test_a_prompt_that_is_cut_is_reported_every_time(home: Path) -> None:
    for _ in range(2):
        warnings: list[str] = []
        (rows,) = embed(home, "abcdefgh" * 20, warnings=warnings)
        assert rows.shape[1] == TEXT.text_len
        assert len(warnings) == 1 and "the first 8 are used" in warnings[0]


def test_a_damaged_file_is_made_again(home: Path) -> None:
    (first,) = embed(home, "abc")
    (path,) = kept(home)
    path.write_bytes(b"broken")
    assert torch.equal(embed(home, "abc")[0], first)
    assert torch.equal(load_file(path)["rows"], first)


def test_a_different_text_encoder_has_its_own_embeddings(home: Path) -> None:
    (first,) = embed(home, "abc")
    store = WeightStore(home)
    tensors = load_file(store.path(read_manifest()["wan/text_encoder"]))
    put(store, "wan/text_encoder", {name: value * 1.5 for name, value in tensors.items()})
    assert not torch.equal(embed(home, "abc")[0], first)
    assert len(kept(home)) == 2


def test_a_folder_that_cannot_be_written_only_costs_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ultraflash_cli.models.prompts.write_whole", refuse)
    assert len(embed(home, "abc")) == 1
    assert not kept(home)


def test_an_empty_prompt_and_missing_weights_are_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="empty"):
        embed(home, " \n ")
    with pytest.raises(WeightsError, match="wan/text_encoder is not installed"):
        embed(tmp_path / "elsewhere", "abc")


def test_a_changed_text_encoder_is_refused(home: Path) -> None:
    path = WeightStore(home).path(read_manifest()["wan/text_encoder"])
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"expected|sha256"):
        embed(home, "abc")


def test_a_prompt_of_which_no_word_is_known_is_reported(tmp_path: Path) -> None:
    told: dict[str, list[str]] = {}
    for prompt in ("a calm sea", "a zeppelin over the sea", "xyzzy", "🎈🌅", "a video of the"):
        read, said = prompt_read(LITE, prompt, 3), told.setdefault(prompt, [])
        embed_prompts(Shelf(tmp_path), LITE, [read], device=CPU, precision="fp32", warn=said.append)
    assert told["a calm sea"] == []
    assert told["a zeppelin over the sea"] == ["words unknown to lite, ignored: zeppelin"]
    assert told["xyzzy"][0] == "words unknown to lite, ignored: xyzzy"
    for nothing in ("xyzzy", "🎈🌅"):
        assert told[nothing][-1].startswith("lite knows no word of this prompt")
    assert told["a video of the"] == ["this prompt names nothing that lite knows; the clip will not match it"]


def test_what_a_clip_cannot_show_is_reported() -> None:
    assert word_warnings(LITE, "two red balloons and one balloon over the sea") == []
    (warning,) = word_warnings(LITE, "a seagull over the sea with rain and stars")
    assert warning == "lite hardly draws rain or stars"
    (warning,) = word_warnings(LITE, "a balloon, a ship and two boats at dusk")
    assert warning == "lite draws one kind of moving thing, this prompt names balloon and boat; they will mix"
    assert {*FAINT_WORDS, *SUBJECTS} <= {*SCENE_WORDS}


def test_the_guide_lists_words_that_are_known(repository: Path) -> None:
    guide = (repository / "docs" / "guides" / "generate.md").read_text("utf-8")
    rows = re.findall(r"^\| (?:things|places|sky and weather|time|motion|colours) \| (.*) \|$", guide, re.MULTILINE)
    listed = [word for row in rows for word in re.findall(r"[a-z]+", row)]
    assert len(rows) == 6 and {*SUBJECTS.values()} <= {*listed}
    assert {*listed} <= {*SCENE_WORDS}


def test_a_warning_names_a_few_of_many_unknown_words() -> None:
    prompt = "sea " + " ".join(f"w{number}" for number in range(5000)) + " " + "x" * 5000
    (warning,) = word_warnings(LITE, prompt)
    assert warning.endswith(", w8, w9 and 4991 more") and len(warning) < 200
    (warning,) = word_warnings(LITE, "sea " + "x" * 5000)
    assert warning.endswith("xxx...") and len(warning) < 100


def test_a_long_prompt_keeps_the_words_that_the_seed_chooses() -> None:
    assert isinstance(LITE.text_encoder, PromptEncoderConfig)
    encoder, long = PromptEncoder(LITE.text_encoder), "calm blue sea " * 30
    read = [prompt_read(LITE, long, seed) for seed in (0, 1)]
    ids, _ = encoder.ids_of((*read, "calm blue sea"))
    assert not torch.equal(ids[0], ids[1])
    layout = encoder.ids_of((prompt_read(LITE, "sea", 1),))[0][0]
    assert torch.equal(ids[1][-4:], layout[1:5])  # three words of the layout, and the end
