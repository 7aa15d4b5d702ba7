"""Weight lists that are locked to a revision."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

import ultraflash_cli
from tests.weights.hub import COMMIT, FakeHub
from tests.weights.pulling import NAME, TOKENIZER, WAN, pull, refused
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.main import main
from ultraflash_cli.weights.manifest import read_manifest, read_sets
from ultraflash_cli.weights.store import WeightStore
from ultraflash_cli.weights.verify import verify


def test_a_lock_is_filled_from_the_hub_and_holds_later_pulls_to_it(
    hub: FakeHub,
    store: WeightStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "weights.toml"
    assert main(["weights", "lock", "--out", str(out), "wan/tokenizer"]) == 0
    capsys.readouterr()
    locked, listed = read_manifest(out), read_manifest()
    assert locked.keys() == listed.keys()
    assert read_sets(out) == read_sets()
    for path, content in TOKENIZER.items():
        entry = locked[f"wan/tokenizer/{Path(path).name}"]
        assert (entry.revision, entry.bytes) == (COMMIT, len(content))
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
    assert locked["ultraflash/decoder"] == listed["ultraflash/decoder"]
    assert "exists; use -y to replace it" in refused(capsys, "weights", "lock", "--out", out, "wan/tokenizer", code=2)

    pull(capsys, NAME)
    monkeypatch.setattr("ultraflash_cli.jobs.weights.catalogue.read_manifest", lambda: locked)
    assert pull(capsys, NAME)[0]["state"] == "ready"
    states = pull(capsys, "wan/tokenizer")
    assert {each["verified_by"] for each in states if each["name"] != NAME} == {"lock"}
    # A different file with the same name, on the hub or from the user, is no longer
    # accepted.
    assert main(["weights", "rm", NAME]) == 0
    capsys.readouterr()
    hub.files[WAN] = {"google/umt5-xxl/spiece.model": b"\nother"}
    line = refused(capsys, "weights", "pull", NAME)
    assert "the hub has 6 bytes" in line and "expected 102409 bytes" in line
    mine = tmp_path / "spiece.model"
    mine.write_bytes(b"\nother")
    assert "6 bytes, sha256 starts" in refused(capsys, "weights", "pull", NAME, "--from", mine)


def test_a_lock_is_never_written_into_an_installed_package(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = Path(ultraflash_cli.__file__).parent
    for place in (package / "weights.toml", tmp_path / "site-packages" / "x" / "weights.toml"):
        line = refused(capsys, "weights", "lock", "--out", place, code=2)
        assert "inside an installed package" in line
    assert "is a folder" in refused(capsys, "weights", "lock", "--out", tmp_path, code=2)
    out = tmp_path / "weights.toml"
    assert "(401)" in refused(capsys, "weights", "lock", "--out", out, "ultraflash")
    assert not out.exists()


def test_a_list_that_was_locked_later_does_not_take_what_was_pulled_before(
    hub: FakeHub, store: WeightStore, capsys: pytest.CaptureFixture[str]
) -> None:
    pull(capsys, NAME)
    entry = replace(read_manifest()[NAME], revision="0" * 40, sha256="1" * 64, bytes=5)
    with pytest.raises(WeightsError, match=r"made from a file whose sha256 starts .* expected 111111111111"):
        verify(entry, store, quick=True)
