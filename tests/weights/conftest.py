"""Fixtures: a hub, a store and the files of the hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.weights.checkpoints import saved, tiny_decoder, upsampler, wrapped
from tests.weights.hub import FakeHub, running_hub
from tests.weights.pulling import TOKENIZER, WAN, unlocked
from ultraflash_cli.weights.manifest import manifest_text, read_manifest, read_sets
from ultraflash_cli.weights.store import WeightStore


@pytest.fixture(scope="module")
def decoder_file() -> bytes:
    return saved(tiny_decoder())


@pytest.fixture(scope="module")
def upsampler_file() -> bytes:
    names = {f"_fsdp_wrapped_module.{name}": value for name, value in upsampler(2).items()}
    return saved(wrapped(names, "model"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the tokenizer, an environment that points only to it, and a list
    without locks."""
    listed = tmp_path / "listed.toml"
    listed.write_text(manifest_text({name: unlocked(e) for name, e in read_manifest().items()}, read_sets()))
    monkeypatch.setattr("ultraflash_cli.weights.manifest._manifest_path", lambda: listed)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "ULTRAFLASH_HOME", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with running_hub() as hub:
        hub.files[WAN] = dict(TOKENIZER)
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "hf" / "ultraflash")
