"""Weights from a hub: downloaded, resumed, checked, converted, imported, removed."""

import hashlib
import json
import os
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights.hub import COMMIT, FakeHub
from tests.weights.pulling import COMMAND, NAME, PIECE, TOKENIZER, ULTRAFLASH, WAN, left, pull, refused
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.jobs.resume.work_folder import OutputLock
from ultraflash_cli.main import main
from ultraflash_cli.settings import DEFAULT_ENDPOINT, Settings
from ultraflash_cli.weights.manifest import read_manifest, read_sets
from ultraflash_cli.weights.store import WeightStore
from ultraflash_cli.weights.verify import verify


def test_a_pull_shows_what_comes_and_leaves_a_checked_converted_file_with_a_receipt(
    hub: FakeHub, store: WeightStore, decoder_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The connection breaks once; the token is sent to the hub and not to its storage.
    hub.files[ULTRAFLASH] = {"tiny_decoder.pth": decoder_file}
    hub.tokens[ULTRAFLASH] = "secret"
    hub.cuts["tiny_decoder.pth"] = [PIECE + 5000]
    monkeypatch.setenv("HF_TOKEN", "secret")
    said = subprocess.run(
        [*COMMAND, "weights", "pull", "ultraflash/decoder", "--json"], capture_output=True, text=True, timeout=120
    )
    assert said.returncode == 0, said.stderr
    (line,) = said.stdout.splitlines()
    report = json.loads(line)
    assert (report["state"], report["verified_by"], report["revision"]) == ("pulled", "hub", COMMIT)
    offer, total, *rest = said.stderr.splitlines()
    assert f"{ULTRAFLASH}/tiny_decoder.pth" in offer and "licence Apache-2.0" in offer
    assert f"unlocked: the hub's current commit {COMMIT[:12]}, checked against the hub's sha256" in offer
    assert total.startswith(f"{len(decoder_file) / 1e6:.1f} MB to download")
    assert all("tiny_decoder.pth: " in line for line in rest), rest

    entry = read_manifest()["ultraflash/decoder"]
    path, receipt = store.path(entry), store.receipt(entry)
    assert Path(report["path"]) == path == verify(entry, store)
    assert receipt is not None
    assert receipt.source_sha256 == hashlib.sha256(decoder_file).hexdigest()
    assert (receipt.source_bytes, receipt.revision, receipt.repository) == (len(decoder_file), COMMIT, ULTRAFLASH)
    assert receipt.sha256 == report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    converted = load_file(path)
    assert {value.dtype for value in converted.values()} == {torch.float16}
    assert converted["decoder.7.conv.weight"].shape[0] == 256
    assert converted["decoder.7.conv.weight"].min() > 0, "the first rows were kept, not the last"
    assert left(store) == []
    assert not [request for request in hub.requests if ULTRAFLASH not in request.path], "something else was asked for"
    transfers = hub.transfers()
    stored = [request for request in transfers if request.path.startswith("/storage/")]
    assert [request.range for request in stored] == [None, f"bytes={PIECE}-"]
    assert {request.authorization for request in stored} == {None}
    assert {request.authorization for request in transfers if request not in stored} == {"Bearer secret"}


def test_the_environment_says_where_weights_are_and_come_from() -> None:
    plain = Settings.from_environment({})
    assert plain.home == Path("~/.cache/huggingface/ultraflash").expanduser()
    assert (plain.hub_endpoint, plain.hub_token, plain.offline) == (DEFAULT_ENDPOINT, None, False)
    assert plain == Settings()
    said = {
        "HF_HOME": "~/hf",
        "HF_ENDPOINT": "https://mirror.example/",
        "HF_TOKEN": " secret\n",
        "HF_HUB_OFFLINE": "TRUE",
        "XDG_CACHE_HOME": "/elsewhere",
    }
    told = Settings.from_environment(said)
    assert (told.home, told.hub_cache) == (Path.home() / "hf" / "ultraflash", Path.home() / "hf" / "hub")
    assert (told.hub_endpoint, told.hub_token, told.offline) == ("https://mirror.example", "secret", True)
    assert "secret" not in repr(told)
    own = Settings.from_environment({"ULTRAFLASH_HOME": "/big/disk", "HF_HUB_CACHE": "/hub"})
    assert (own.home, own.hub_cache) == (Path("/big/disk"), Path("/hub"))
    assert Settings.from_environment({"XDG_CACHE_HOME": "/c"}).home == Path("/c/huggingface/ultraflash")


def test_a_pull_that_was_killed_continues_where_it_was(hub: FakeHub, store: WeightStore, decoder_file: bytes) -> None:
    hub.files[ULTRAFLASH] = {"tiny_decoder.pth": decoder_file}
    hub.cuts["tiny_decoder.pth"] = [2 * PIECE + 5000]
    hub.hold = threading.Event()
    arguments = [*COMMAND, "weights", "pull", "ultraflash/decoder", "--progress", "json"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "transfer" and event["bytes_done"] == 2 * PIECE:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert len(left(store)) == 1
    hub.hold.set()
    said = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    events = [json.loads(line) for line in said.stderr.splitlines()]
    assert events[0]["event"] == "plan"
    assert events[0]["bytes_total"] == len(decoder_file)
    progress = [event["bytes_done"] for event in events if event["event"] == "transfer"]
    assert (progress[0], progress[-1]) == (2 * PIECE, len(decoder_file))
    assert [r.range for r in hub.transfers() if r.path.startswith("/storage/")] == [None, f"bytes={2 * PIECE}-"]
    verify(read_manifest()["ultraflash/decoder"], store)
    assert left(store) == []


def test_the_tokenizer_is_copied_unchanged_and_says_what_it_was_checked_against(
    hub: FakeHub, store: WeightStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "pull", "wan/tokenizer"]) == 0
    said = capsys.readouterr().err
    assert "checked against its git blob id (the hub has no sha256)" in said
    folder = store.folder("wan/tokenizer")
    for path, content in TOKENIZER.items():
        assert (folder / Path(path).name).read_bytes() == content
    receipts = {entry.name: store.receipt(entry) for entry in read_manifest().values() if "tokenizer" in entry.name}
    by = {name: receipt.verified_by for name, receipt in receipts.items() if receipt is not None}
    assert by.pop("wan/tokenizer/spiece.model") == "hub"
    assert len(by) == 3 and set(by.values()) == {"git"}
    asked = len(hub.requests)
    assert {each["state"] for each in pull(capsys, "wan/tokenizer")} == {"ready"}
    assert len(hub.requests) == asked, "what is installed is asked for again"


def test_the_upsampler_is_identified_by_the_file(
    hub: FakeHub, store: WeightStore, upsampler_file: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files[ULTRAFLASH] = {"latent_upsampler.pth": upsampler_file}
    line = refused(capsys, "weights", "pull", "ultraflash/upsampler_x3")
    assert "no matching file on the hub, tried xin1u/UltraFlash/latent_upsampler.pth (contains upsampler_x2)" in line
    assert hub.transfers() == [], "a file was fetched to learn what it is"
    (state,) = pull(capsys, "ultraflash/upsampler_x2")
    assert state["state"] == "pulled"
    assert len([r for r in hub.transfers() if r.path.startswith("/storage/")]) == 1
    assert {value.dtype for value in load_file(state["path"]).values()} == {torch.bfloat16}
    asked = len(hub.transfers())
    refused(capsys, "weights", "pull", "ultraflash/upsampler_x3")
    assert len(hub.transfers()) == asked


def test_a_set_leaves_out_the_scale_that_there_is_no_file_for(
    hub: FakeHub,
    store: WeightStore,
    upsampler_file: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.files[ULTRAFLASH] = {"latent_upsampler.pth": upsampler_file}
    sets = read_sets()
    members = tuple(name for name in sets["ultraflash"].members if "upsampler" in name or "tokenizer" in name)
    smaller = {"ultraflash": replace(sets["ultraflash"], members=members)}
    monkeypatch.setattr("ultraflash_cli.jobs.weights.catalogue.read_sets", lambda: smaller)
    states = {each["name"]: each for each in pull(capsys, "ultraflash")}
    assert states["ultraflash/upsampler_x2"]["state"] == "pulled"
    assert states["ultraflash/upsampler_x3"]["state"] == "left out"
    assert "latent_upsampler.pth (contains upsampler_x2)" in states["ultraflash/upsampler_x3"]["note"]
    assert left(store) == []
    states = {each["name"]: each["state"] for each in pull(capsys, "ultraflash", "--offline")}
    assert states.pop("ultraflash/upsampler_x3") == "left out"
    assert set(states.values()) == {"ready"}


def test_offline_asks_nothing_of_the_network(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is not on this machine" in refused(capsys, "weights", "pull", NAME, "--offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is not on this machine" in refused(capsys, "weights", "pull", NAME)
    assert hub.requests == []


def test_a_file_under_another_folder_and_a_repository_that_moved_are_found(
    hub: FakeHub, store: WeightStore, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["Wan-AI/Wan"] = {"tok/spiece.model": TOKENIZER["google/umt5-xxl/spiece.model"]}
    hub.files[WAN] = {"tok/spiece.model": TOKENIZER["google/umt5-xxl/spiece.model"]}
    assert pull(capsys, NAME)[0]["state"] == "pulled"
    receipt = store.receipt(read_manifest()[NAME])
    assert receipt is not None and receipt.source == "tok/spiece.model"
    assert main(["weights", "rm", NAME]) == 0
    capsys.readouterr()
    del hub.files[WAN]
    hub.files["Wan-AI/Wan"] = dict(TOKENIZER)
    hub.moved[WAN] = "Wan-AI/Wan"
    assert pull(capsys, NAME)[0]["state"] == "pulled"


def test_files_of_the_hubs_own_tools_are_used_where_they_lie(
    hub: FakeHub, store: WeightStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = TOKENIZER["google/umt5-xxl/spiece.model"]
    cache = tmp_path / "hf" / "hub" / "models--Wan-AI--Wan2.1-T2V-1.3B"
    blob = cache / "blobs" / hashlib.sha256(content).hexdigest()
    snapshot = cache / "snapshots" / COMMIT / "google" / "umt5-xxl" / "spiece.model"
    for path in (blob, snapshot, cache / "refs" / "main"):
        path.parent.mkdir(parents=True)
    blob.write_bytes(content)
    snapshot.symlink_to(blob)
    (cache / "refs" / "main").write_text(COMMIT)
    (state,) = pull(capsys, NAME, "--offline")
    assert (state["state"], state["revision"], state["verified_by"]) == ("pulled", COMMIT, "hub")
    assert main(["weights", "rm", NAME]) == 0
    capsys.readouterr()
    assert pull(capsys, NAME)[0]["state"] == "pulled"
    assert not [request for request in hub.transfers() if "storage" in request.path]
    assert blob.exists(), "a file of the hub's own tools was removed"
    # A damaged file is reported and downloaded again.
    assert main(["weights", "rm", NAME]) == 0
    blob.write_bytes(b"\n" + bytes(len(content) - 1))
    assert main(["weights", "pull", NAME]) == 0
    assert "downloading it again" in capsys.readouterr().err
    assert main(["weights", "rm", NAME]) == 0
    capsys.readouterr()
    assert main(["weights", "pull", NAME, "--offline"]) == 8
    assert "--offline is set; run again without it" in capsys.readouterr().err


def test_two_pulls_at_once_do_not_meet(hub: FakeHub, store: WeightStore, capsys: pytest.CaptureFixture[str]) -> None:
    with OutputLock(store.downloads):
        assert "another run" in refused(capsys, "weights", "pull", NAME, code=7)


def test_damage_in_the_store_is_found_and_repaired(
    hub: FakeHub, store: WeightStore, capsys: pytest.CaptureFixture[str]
) -> None:
    pull(capsys, NAME)
    entry = read_manifest()[NAME]
    path = store.path(entry)
    content = path.read_bytes()
    times = path.stat()
    path.write_bytes(content[:-1] + b"!")
    assert main(["weights", "verify", NAME]) == 8
    assert "sha256 of spiece.model starts" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="run `ultraflash weights pull"):
        verify(entry, store, quick=True)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify(entry, store, quick=True) == path, "a quick look goes by size and time"
    path.write_bytes(content[:-9])
    assert main(["weights", "pull", NAME]) == 0
    assert "has 102400 bytes, expected 102409; pulling it again" in capsys.readouterr().err
    assert path.read_bytes() == content
    assert main(["weights", "verify"]) == 0
    assert f"ok    {NAME}" in capsys.readouterr().out
    path.unlink()
    with pytest.raises(WeightsError, match="is missing"):
        verify(entry, store)


def test_path_and_rm(hub: FakeHub, store: WeightStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not installed; run `ultraflash weights pull" in refused(capsys, "weights", "path", NAME)
    pull(capsys, "wan/tokenizer")
    assert main(["weights", "path", NAME]) == 0
    assert capsys.readouterr().out == f"{store.path(read_manifest()[NAME])}\n"
    assert main(["weights", "rm", "wan/tokenizer", "--json"]) == 0
    freed = {each["name"]: each["freed_bytes"] for each in map(json.loads, capsys.readouterr().out.splitlines())}
    assert freed[NAME] > 102409
    assert not store.folder("wan").exists()
    assert main(["weights", "rm", NAME]) == 0
    assert "not installed" in capsys.readouterr().out
    assert "built-in weights cannot be removed" in refused(capsys, "weights", "rm", "lite", code=2)


def test_a_file_the_user_has_is_recognised_by_its_tensors(
    hub: FakeHub, store: WeightStore, tmp_path: Path, upsampler_file: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.bin"
    mine.write_bytes(upsampler_file)
    (state,) = pull(capsys, "--from", mine)
    assert (state["name"], state["state"], state["verified_by"]) == ("ultraflash/upsampler_x2", "imported", "keys")
    assert mine.exists()
    assert hub.requests == []
    assert main(["weights", "verify", "ultraflash/upsampler_x2"]) == 0
    capsys.readouterr()
    line = refused(capsys, "weights", "pull", "ultraflash/decoder", "--from", mine)
    assert "these are weights of upsampler_x2, expected tiny_decoder" in line


def test_a_file_the_user_has_that_fits_nothing_or_too_much_is_refused(
    hub: FakeHub, store: WeightStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.safetensors"
    save_file({"w": torch.zeros(2)}, mine)
    assert "belong to no known network" in refused(capsys, "weights", "pull", "--from", mine)
    save_file({"patch_embedding.weight": torch.zeros(2, 16, 1, 1, 1), "head.modulation": torch.zeros(2)}, mine)
    line = refused(capsys, "weights", "pull", "--from", mine, code=2)
    assert "could be ultraflash-long/generator or ultraflash/generator" in line
    line = refused(capsys, "weights", "pull", "ultraflash/generator", "--from", mine)
    assert "823 of 825 tensors are missing" in line
    mine.write_text("words")
    assert "not a readable weight file" in refused(capsys, "weights", "pull", "--from", mine)
    assert "no such file" in refused(capsys, "weights", "pull", "--from", tmp_path / "nope", code=3)
    refused(capsys, "weights", "pull", "ultraflash", "--from", mine, code=2)
    mine = tmp_path / "tokenizer.json"
    mine.write_text("{broken")
    line = refused(capsys, "weights", "pull", "wan/tokenizer/tokenizer.json", "--from", mine)
    assert "not readable as JSON" in line
    assert left(store) == []
