"""Pulls that fail because of the hub, the network, the files or the disk."""

import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.weights.hub import FakeHub, git_blob
from tests.weights.pulling import NAME, TOKENIZER, WAN, left, pull, refused
from ultraflash_cli.jobs.weights.pull import hub_of
from ultraflash_cli.main import main
from ultraflash_cli.settings import Settings
from ultraflash_cli.weights.manifest import read_manifest
from ultraflash_cli.weights.store import WeightStore

FILE = "spiece.model"


def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("weights", "pull", NAME)
    hub.tokens[WAN] = "secret"
    assert "requires a login (401); set HF_TOKEN" in refused(capsys, *command)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "refuses access (403); set HF_TOKEN" in refused(capsys, *command)
    hub.tokens.clear()
    hub.gated.add(WAN)
    assert "terms must be accepted (403)" in refused(capsys, *command)
    hub.gated.clear()
    for status, sentence in {
        500: "server error (500); run the same command later",
        429: "too many requests to the hub (429)",
    }.items():
        hub.broken[FILE] = status
        assert sentence in refused(capsys, *command)
    hub.broken = {f"GET {FILE}": 503}
    assert "server error (503); run the same command later to resume" in refused(capsys, *command)
    hub.broken.clear()
    hub.silent.add("google/umt5-xxl/spiece.model")
    assert "does not report commit, size and hash" in refused(capsys, *command)
    hub.files[WAN] = {"README.md": b"# words"}
    line = refused(capsys, *command)
    assert "has no google/umt5-xxl/spiece.model, only README.md" in line and "--from FILE" in line
    del hub.files[WAN]
    assert "(401)" in refused(capsys, *command)
    assert not [request for request in hub.transfers() if "storage" in request.path]


def test_without_network_and_with_a_wrong_address_it_is_one_line(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "no connection to http://127.0.0.1:1" in refused(capsys, "weights", "pull", NAME)
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    assert "HF_ENDPOINT must be a URL" in refused(capsys, "weights", "pull", NAME, code=2)


def test_tokens_and_passwords_are_neither_printed_nor_sent_unencrypted(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret\ntoken")
    assert "HF_TOKEN contains a space" in refused(capsys, "weights", "pull", NAME, code=2)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://user:pass-word@127.0.0.1:1")
    assert main(["-v", "--log-file", str(tmp_path / "log"), "weights", "pull", NAME]) == 8
    shown = capsys.readouterr().err + (tmp_path / "log").read_text()
    assert "no connection to http://***127.0.0.1:1" in shown
    assert "pass-word" not in shown and "hf_secret" not in shown

    settings = Settings.from_environment({"HF_TOKEN": "hf_secret", "HF_ENDPOINT": "http://hub.example"})
    assert hub_of(settings).login is False
    assert "is not encrypted, so the token is not sent" in (hub_of(settings).withheld or "")
    for address in ("https://hub.example", "http://localhost:80"):
        trusted = hub_of(Settings.from_environment({"HF_TOKEN": "hf_secret", "HF_ENDPOINT": address}))
        assert (trusted.login, trusted.withheld) == ("hf_secret", None)


class _Runs:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return subprocess.call, ("true",)


def pickled(what: object, path: Path) -> object:
    return path.write_bytes(pickle.dumps(what))


@pytest.mark.parametrize("save", [torch.save, pickled], ids=["zip", "pickle"])
def test_a_pickle_that_would_run_something_is_one_clean_line(
    hub: FakeHub, capfd: pytest.CaptureFixture[str], tmp_path: Path, save: Callable[[object, Path], object]
) -> None:
    save({"weights": _Runs()}, tmp_path / "evil.pth")
    line = refused(capfd, "weights", "pull", "--from", tmp_path / "evil.pth")
    assert line.startswith("error: evil.pth: ") and line.endswith("; none of its code was run)")
    assert "torch.load" not in line


def test_unknown_names_are_usage_errors_with_the_nearest_ones(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "weights", "pull", "ultraflash/decodr", code=2)
    assert "did you mean ultraflash/decoder" in line
    assert "weights list" in refused(capsys, "weights", "path", "zzz", code=2)
    assert "give a NAME such as ultraflash" in refused(capsys, "weights", "pull", code=2)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        pytest.param(b"x" * 102409, "sha256 of the download starts", id="corrupted"),
        pytest.param(b"\n" * 500, "received 500 bytes, expected 102409", id="truncated"),
    ],
)
def test_a_transfer_that_is_not_what_the_hub_says_is_refused_and_removed(
    hub: FakeHub, store: WeightStore, capsys: pytest.CaptureFixture[str], stored: bytes, message: str
) -> None:
    assert len(TOKENIZER["google/umt5-xxl/spiece.model"]) == 102409
    hub.stored[FILE] = stored
    line = refused(capsys, "weights", "pull", NAME)
    assert message in line
    assert left(store) == []
    assert not store.path(read_manifest()[NAME]).exists()
    hub.stored.clear()
    assert pull(capsys, NAME)[0]["state"] == "pulled"


def test_a_plain_file_that_is_not_what_git_says_is_refused(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    content = TOKENIZER["google/umt5-xxl/tokenizer.json"]
    hub.stored["tokenizer.json"] = content.replace(b"1", b"2")
    line = refused(capsys, "weights", "pull", "wan/tokenizer/tokenizer.json")
    assert f"expected {git_blob(content)[:12]}" in line and "git blob id of the download" in line


def test_a_disk_without_space_is_refused_before_the_transfer(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultraflash_cli.jobs.weights.install.free_bytes", lambda _: 100_000)
    assert "disk full" in refused(capsys, "weights", "pull", NAME, code=7)
    assert hub.transfers() == []


def test_a_disk_that_fills_up_meanwhile_is_one_line_and_the_pull_resumes_later(
    hub: FakeHub, store: WeightStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ultraflash_cli.jobs.weights.install.shutil.copyfile", full)
        assert "No space left on device" in refused(capsys, "weights", "pull", NAME, code=7)
    assert len(left(store)) == 1
    assert pull(capsys, NAME)[0]["state"] == "pulled"
    assert len([request for request in hub.transfers() if "storage" in request.path]) == 1
