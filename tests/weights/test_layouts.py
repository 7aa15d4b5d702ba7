"""A published set is found on the hub by the content of its files, whatever their
names."""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from tests.weights.checkpoints import manifest_of, meta_tensors, saved, tiny_decoder, upsampler, wrapped
from tests.weights.hub import FakeHub, running_hub
from ultraflash_cli.engine.profiles import RELEASED_ULTRA_DECODER, ULTRAFLASH, Profile
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.main import main
from ultraflash_cli.models.architectures import ARCHITECTURES, expected_shapes
from ultraflash_cli.models.profile import settle_coders, substitutions
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.settings import Settings
from ultraflash_cli.weights.convert import RULES, normalise, recognise
from ultraflash_cli.weights.detect import Shape
from ultraflash_cli.weights.fetch import Hub
from ultraflash_cli.weights.load import load_strictly
from ultraflash_cli.weights.manifest import read_manifest, read_sets
from ultraflash_cli.weights.search import Found, HubSearch
from ultraflash_cli.weights.store import Receipt, WeightStore

ULTRA, TAEHV, WAN, LONG = (
    "xin1u/UltraFlash",
    "madebyollin/taehv",
    "Wan-AI/Wan2.1-T2V-1.3B",
    "Efficient-Large-Model/LongLive-1.3B",
)
ON_DISK = {
    "sr_dit_x2": "1K-Causal-Sparse-SR-Dit-fidelity-step_12800.pth",
    "sr_dit_x3": "2K-Causal-Sparse-SR-Dit-fidelity-step_9000.pth",
    "upsampler_x2": "1K-ultraLatentUpsampler-step_19900.pth",
    "upsampler_x3": "2K-ultraLatentUpsampler-step_28100.pth",
    "ultra_decoder": "v1.1-ultra-decoder-v3-ema_decoder.pth",
}
"""File names of a downloaded set."""


def index_only(shapes: Mapping[str, Shape]) -> bytes:
    """Return a safetensors file without its body: a search may only read the index."""
    rows: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        rows[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(rows).encode()
    return struct.pack("<Q", len(text)) + text


def released_decoder() -> dict[str, torch.Tensor]:
    """Return the released decoder with the names of its file, full size, in float16."""
    names = {name: name.replace("decoder.", "net.", 1).replace(".up.", ".block.") for name in _released_shapes()}
    return {names[name]: torch.full(shape, 0.01, dtype=torch.float16) for name, shape in _released_shapes().items()}


def _released_shapes() -> dict[str, Shape]:
    return expected_shapes("ultra_decoder_released")


SR = index_only(expected_shapes("sr_dit"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "ULTRAFLASH_HOME", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


def search(hub: FakeHub, *, commercial: bool = False) -> HubSearch:
    client = Hub(endpoint=hub.address, token=None, cache=Path("/nonexistent"), offline=False)
    return HubSearch(client, read_manifest().values(), commercial=commercial)


def find(hub: FakeHub, name: str) -> Found:
    return search(hub).find(read_manifest()[f"ultraflash/{name}"])


def paths(hub: FakeHub, *names: str) -> dict[str, str]:
    looking = search(hub)
    return {name: looking.find(read_manifest()[f"ultraflash/{name}"]).remote.path for name in names}


def test_the_names_of_the_list_and_those_on_disk_are_found(hub: FakeHub) -> None:
    small = {
        "upsampler_x2": saved(wrapped(upsampler(2), "model")),
        "upsampler_x3": saved(wrapped(upsampler(3), "model")),
    }
    contents = small | {"sr_dit_x2": SR, "sr_dit_x3": SR, "ultra_decoder": saved(released_decoder())}
    hub.files[ULTRA] = {ON_DISK[name]: content for name, content in contents.items()}
    assert paths(hub, *ON_DISK) == ON_DISK
    found = find(hub, "ultra_decoder")
    assert found.place.architecture == "ultra_decoder_released"
    hub.files[ULTRA] = {"sr_dit_sparse.pth": SR, "latent_upsampler.pth": small["upsampler_x2"]}
    assert paths(hub, "sr_dit_x2", "upsampler_x2") == {
        "sr_dit_x2": "sr_dit_sparse.pth",
        "upsampler_x2": "latent_upsampler.pth",
    }
    assert hub.transfers() == [], "a file was fetched to learn what it is"
    assert all(len(request.range or "") < 40 for request in hub.looks())


def test_shuffled_names_and_swapped_scales_are_identified_by_the_tensors(hub: FakeHub) -> None:
    two, three = saved(upsampler(2)), saved({"ema": {"inner": upsampler(3)}})
    hub.files[ULTRA] = {ON_DISK["upsampler_x2"]: three, ON_DISK["upsampler_x3"]: two, "a/weights.bin": SR}
    assert paths(hub, "upsampler_x2", "upsampler_x3", "sr_dit_x2") == {
        "upsampler_x2": ON_DISK["upsampler_x3"],
        "upsampler_x3": ON_DISK["upsampler_x2"],
        "sr_dit_x2": "a/weights.bin",
    }
    how = find(hub, "upsampler_x2").how
    assert how is not None and "selected by its tensors" in how and "(contains upsampler_x3)" in how


def test_of_two_nameless_files_neither_is_guessed(hub: FakeHub) -> None:
    hub.files[ULTRA] = {"one.pth": SR, "two.pth": SR}
    with pytest.raises(WeightsError, match=r"several matching files \(one.pth, two.pth\)"):
        find(hub, "sr_dit_x2")
    hub.files[ULTRA] = {"sr-1k.pth": SR, "sr-2K.pth": SR}
    assert paths(hub, "sr_dit_x2", "sr_dit_x3") == {"sr_dit_x2": "sr-1k.pth", "sr_dit_x3": "sr-2K.pth"}


def test_one_sr_transformer_is_not_taken_for_the_other_scale_but_serves_there(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[ULTRA] = {ON_DISK["sr_dit_x2"]: SR}
    with pytest.raises(WeightsError, match=r"no matching file on the hub|has no 2K-"):
        find(hub, "sr_dit_x3")
    shelf = Shelf(store_with(tmp_path, "ultraflash/sr_dit_x2", "ultraflash/decoder").root)
    assert shelf.served_by("ultraflash/sr_dit_x3") == "ultraflash/sr_dit_x2"
    shelf.require(ULTRAFLASH.at_scale(3), ["sr_dit"])
    said = substitutions(ULTRAFLASH, shelf, scale=3, encoder="auto", decoder="auto")
    assert said == ["ultraflash/sr_dit_x3 is not installed; using ultraflash/sr_dit_x2 at x3"]
    assert substitutions(ULTRAFLASH, shelf, scale=2, encoder="auto", decoder="auto") == []


def test_where_the_set_has_no_small_decoder_taehv_serves_under_its_own_licence(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files[ULTRA] = {ON_DISK["sr_dit_x2"]: SR}
    hub.files[TAEHV] = {"taew2_1.pth": saved(tiny_decoder())}
    assert main(["weights", "pull", "ultraflash/decoder", "--json"]) == 0
    shown = capsys.readouterr()
    pulled = json.loads(shown.out)
    assert (pulled["state"], pulled["repository"], pulled["licence"]) == ("pulled", TAEHV, "MIT")
    assert "taew2_1.pth" in shown.err and "serves in their place" in shown.err
    receipt = WeightStore(tmp_path / "hf" / "ultraflash").receipt(read_manifest()["ultraflash/decoder"])
    assert receipt is not None and (receipt.licence, receipt.architecture) == ("MIT", "tiny_decoder")
    assert main(["weights", "verify", "ultraflash/decoder"]) == 0


def test_the_released_decoder_is_pulled_converted_and_loads_strictly(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files[ULTRA] = {ON_DISK["ultra_decoder"]: saved({"model": released_decoder()})}
    assert main(["weights", "pull", "ultraflash/ultra_decoder"]) == 0
    capsys.readouterr()
    shelf = Shelf(tmp_path / "hf" / "ultraflash")
    profile = settle_coders(ULTRAFLASH, shelf, encoder="auto", decoder="auto")
    assert profile.base_decoder.signed and profile.weight_of("decoder") == "ultraflash/ultra_decoder"
    taken = shelf.take(profile, "decoder", profile.base_decoder, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(taken, Decoder)
    said = substitutions(profile, shelf, scale=2, encoder="auto", decoder="auto")
    assert said == ["the small decoder is not installed; using the ultra decoder"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(saved(upsampler(2))[:-9000], "not a readable weight file", id="truncated"),
        pytest.param(saved({"w": Path("/")}), "expected tensors saved by torch, and nothing else", id="wants code"),
        pytest.param(struct.pack("<Q", 1 << 40) + b"{}", "its index claims", id="an index that claims everything"),
        pytest.param(struct.pack("<Q", 2) + b"{]", "its index is broken", id="an index that is no JSON"),
    ],
)
def test_a_broken_or_hostile_file_is_refused_in_one_line_before_the_transfer(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    hub.files[ULTRA] = {"latent_upsampler.pth": content}
    assert main(["weights", "pull", "ultraflash/upsampler_x2", "-q"]) == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line or "no matching file on the hub" in line
    assert hub.transfers() == []


def test_a_server_without_ranges_is_believed_and_the_file_checked_after_the_transfer(
    hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.serves_ranges = False
    hub.files[ULTRA] = {"latent_upsampler.pth": saved(upsampler(3))}
    assert main(["weights", "pull", "ultraflash/upsampler_x2", "-q"]) == 8
    assert "these are weights of upsampler_x3, expected upsampler_x2" in capsys.readouterr().err
    assert main(["weights", "pull", "ultraflash/upsampler_x3", "-q"]) == 0


def test_a_set_goes_without_what_is_optional_and_not_without_the_rest(
    hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = ("ultraflash/decoder", "ultraflash/upsampler_x2", "ultraflash/upsampler_x3", "ultraflash/sr_dit_x3")
    smaller = {"ultraflash": replace(read_sets()["ultraflash"], members=members)}
    monkeypatch.setattr("ultraflash_cli.jobs.weights.catalogue.read_sets", lambda: smaller)
    hub.files[ULTRA] = {"tiny_decoder.pth": saved(tiny_decoder()), ON_DISK["upsampler_x2"]: saved(upsampler(2))}
    assert main(["weights", "pull", "ultraflash", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {name: row["state"] for name, row in rows.items()} == {
        "ultraflash/decoder": "pulled",
        "ultraflash/upsampler_x2": "pulled",
        "ultraflash/upsampler_x3": "left out",
        "ultraflash/sr_dit_x3": "left out",
    }
    assert main(["weights", "rm", "ultraflash/decoder"]) == 0
    del hub.files[ULTRA]["tiny_decoder.pth"]
    capsys.readouterr()
    assert main(["weights", "pull", "ultraflash", "-q"]) == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert "ultraflash/decoder: no matching file on the hub" in line and "tiny_decoder.pth (not there)" in line
    assert "taew2_1.pth (refused)" in line


def test_commercial_refuses_what_does_not_allow_it_and_uses_locations_that_do(
    hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "pull", "ultraflash-long", "--commercial", "-q"]) == 8
    line = capsys.readouterr().err
    assert "ultraflash-long/generator: its licence (CC-BY-NC-SA-4.0) does not allow commercial use" in line
    assert hub.requests == []
    # The generator's second location states no licence and is not even inspected.
    hub.files[ULTRA] = {"README.md": b"# words"}
    assert main(["weights", "pull", "ultraflash/generator", "--commercial", "-q"]) == 8
    assert not [request for request in hub.requests if "Self-Forcing" in request.path]


def test_licences_are_listed_with_what_they_allow(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "licences", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    allows = {(row["name"], row["licence"]): row["commercial"] for row in rows}
    assert allows["ultraflash-long/generator", "CC-BY-NC-SA-4.0"] is False
    assert allows["ultraflash/generator", "not confirmed"] is None
    assert allows["ultraflash/decoder", "MIT"] is allows["lite/pixels", "Apache-2.0"] is True
    assert {row["conditions"] for row in rows if row["licence"] == "MIT"} == {"keep the licence and copyright notice"}
    assert main(["weights", "licences", "ultraflash-long"]) == 0
    assert "non-commercial only" in capsys.readouterr().out


def test_no_two_architectures_match_one_file(repository: Path) -> None:
    """Every layout, in every wrapper that its rules allow, is recognised by its own
    rules and by no others."""
    folder = repository / "tests" / "manifests"
    for architecture in ARCHITECTURES:
        if architecture == "ultra_decoder_released":
            tensors: Mapping[str, torch.Tensor] = {name: value.to("meta") for name, value in released_decoder().items()}
        elif architecture == "tiny_decoder_lr":
            tensors = meta_tensors(expected_shapes(architecture))
        else:
            tensors = meta_tensors(manifest_of(folder, architecture)[1])
        for wrapper in RULES[architecture].wrappers:
            content = wrapped(tensors, *wrapper.keys, prefix=wrapper.prefix)
            assert recognise(content) == architecture, (architecture, wrapper)
        for other in ARCHITECTURES.keys() - {architecture}:
            with pytest.raises(WeightsError):
                normalise(tensors, expected_shapes(other), RULES[other])


def test_the_released_layout_loads_into_its_network_from_the_names_of_the_file() -> None:
    shapes = _released_shapes()
    tensors = normalise(released_decoder(), shapes, RULES["ultra_decoder_released"])
    with torch.device("meta"):
        network = Decoder(RELEASED_ULTRA_DECODER)
    load_strictly(network, tensors, name="released")
    assert sum(value.numel() for value in tensors.values()) == 12_906_115 and len(tensors) == 69


def test_a_user_file_is_identified_by_its_tensors(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(save(released_decoder()))
    assert main(["weights", "pull", "--from", str(mine), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "ultraflash/ultra_decoder"
    mine = tmp_path / "mine.bin"
    mine.write_bytes(saved(tiny_decoder()))
    assert main(["weights", "pull", "--from", str(mine), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "ultraflash/decoder"
    assert settle_coders(ULTRAFLASH, Shelf(own_store()), encoder="auto", decoder="auto") == ULTRAFLASH


def own_store() -> Path:
    return WeightStore(Settings.from_environment().home).root


def test_a_user_decoder_that_reads_low_resolution_frames_serves_as_one(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = expected_shapes("tiny_decoder_lr")
    mine = tmp_path / "mine.safetensors"
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}, mine)
    assert main(["weights", "pull", "--from", str(mine), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "ultraflash/decoder"
    shelf = Shelf(own_store())
    profile = settle_coders(ULTRAFLASH, shelf, encoder="auto", decoder="auto")
    assert profile.base_decoder.reads_low_frames
    decoder = shelf.take(profile, "decoder", profile.base_decoder, device=torch.device("cpu"), dtype=torch.float16)
    assert {name for name, _ in decoder.named_children()} == {"decoder", "condition"}
    assert shelf.take(profile, "encoder", profile.encoder, device=torch.device("cpu"), dtype=torch.float16)


def store_with(folder: Path, *names: str, architecture: str = "") -> WeightStore:
    """Return a store that looks as if weights were installed."""
    store = WeightStore(folder / "store")
    for name in names:
        entry = read_manifest()[name]
        part = store.part(entry)
        part.write_bytes(b"weights")
        receipt = Receipt(
            name=name,
            repository=None,
            revision=None,
            source="file",
            source_bytes=7,
            source_sha256=entry.sha256 or "0" * 64,
            verified_by="keys",
            bytes=7,
            sha256="0" * 64,
            mtime_ns=part.stat().st_mtime_ns,
            architecture=architecture or entry.architecture,
        )
        store.add(entry, part, receipt)
    return store


def settled(folder: Path, *names: str, architecture: str = "", **choice: str) -> Profile:
    shelf = Shelf(store_with(folder, *names, architecture=architecture).root)
    return settle_coders(ULTRAFLASH, shelf, **({"encoder": "auto", "decoder": "auto"} | choice))


def test_coders_are_chosen_by_what_is_installed(tmp_path: Path) -> None:
    assert settled(tmp_path / "a", "ultraflash/decoder", "ultraflash/ultra_decoder") == ULTRAFLASH
    published = settled(tmp_path / "b", "ultraflash/ultra_decoder")
    assert published.weight_of("encoder") == published.weight_of("decoder") == "ultraflash/ultra_decoder"
    released = settled(tmp_path / "c", "ultraflash/ultra_decoder", architecture="ultra_decoder_released")
    assert (released.weight_of("encoder"), released.base_decoder.signed) == ("ultraflash/decoder", True)
    both = ("ultraflash/ultra_decoder", "wan/vae")
    with_vae = settled(tmp_path / "d", *both, architecture="ultra_decoder_released")
    assert isinstance(with_vae.encoder, WanVaeConfig) and with_vae.base_decoder.signed
    assert settled(tmp_path / "e") == ULTRAFLASH, "nothing installed: what is missing is the plain set"
    asked = settled(tmp_path / "f", "ultraflash/decoder", "ultraflash/ultra_decoder", decoder="ultra")
    assert asked.weight_of("decoder") == "ultraflash/ultra_decoder"


def test_what_is_missing_is_one_line_with_exit_8(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.y4m"
    clip.write_bytes(b"YUV4MPEG2 W64 H48 F25:1 C420jpeg\n" + (b"FRAME\n" + bytes(64 * 48 * 3 // 2)) * 5)
    for command in (
        ["upscale", str(clip), "-o", str(tmp_path / "o.mp4"), "--model", "ultraflash", "--res", "2x"],
        ["generate", "a dog", "-o", str(tmp_path / "g.mp4"), "--model", "ultraflash"],
    ):
        assert main([*command, "-q", "--device", "cpu"]) == 8
        (line,) = capsys.readouterr().err.splitlines()
        assert "run `ultraflash weights pull ultraflash`" in line
    assert not (tmp_path / "o.mp4").exists()
