"""Published checkpoints to plain safetensors: wrappers, prefixes, shapes, refusals; the LoRA merge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.weights.checkpoints import MANIFESTS, manifest_of, meta_tensors, saved, wrapped
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler, LatentUpsamplerConfig
from ultraflash_cli.engine.stages.latent_upsampler_v3 import LatentUpsamplerV3, LatentUpsamplerV3Config
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig
from ultraflash_cli.engine.stages.text_encoder import TextEncoder, TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig, WanVaeDecoder, WanVaeEncoder
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.models.architectures import ARCHITECTURES, expected_shapes
from ultraflash_cli.weights.convert import (
    RULES,
    Wrapper,
    WrapperRules,
    convert,
    merge_lora,
    normalise,
    read_checkpoint,
    recognise,
)
from ultraflash_cli.weights.detect import detect
from ultraflash_cli.weights.load import load_strictly, read_tensors

TOTALS = {
    "generator": (825, 1418996800),
    "lora": (600, 349962240),
    "sr_dit": (825, 1419095104),
    "upsampler_x2": (52, 4814352),
    "upsampler_x3": (52, 4907152),
    "upsampler_v3_x2": (65, 12155088),
    "tiny_decoder": (128, 11315539),
    "tiny_decoder_lr": (132, 11329511),
    "ultra_decoder": (134, 14413907),
    "ultra_decoder_released": (69, 12906115),
    "wan_vae": (194, 126892531),
    "text_encoder": (242, 5680910336),
}
"""Number of tensors and of values in each published file."""

by_architecture = pytest.mark.parametrize("architecture", [pytest.param(name, id=name) for name in MANIFESTS])
by_manifest = pytest.mark.parametrize(
    "architecture", [pytest.param(name, id=name) for name, file in MANIFESTS.items() if file is not None]
)


@pytest.fixture(scope="session")
def manifests(repository: Path) -> Path:
    """Return the folder of manifests with names and shapes of the published files."""
    return repository / "tests" / "manifests"


def test_every_architecture_has_rules_and_expected_shapes() -> None:
    assert ARCHITECTURES.keys() == RULES.keys() == MANIFESTS.keys()


@by_architecture
def test_the_engine_has_as_many_tensors_and_numbers_as_the_published_file(architecture: str) -> None:
    shapes = expected_shapes(architecture)
    assert (len(shapes), sum(int(torch.Size(shape).numel()) for shape in shapes.values())) == TOTALS[architecture]


@by_manifest
def test_the_engine_has_the_names_and_shapes_of_the_manifest(architecture: str, manifests: Path) -> None:
    manifest, shapes = manifest_of(manifests, architecture)
    assert expected_shapes(architecture) == shapes
    assert (manifest["num_tensors"], manifest["num_elements"]) == TOTALS[architecture]


@by_manifest
def test_every_wrapper_of_the_manifest_produces_the_same_tensors(architecture: str, manifests: Path) -> None:
    manifest, shapes = manifest_of(manifests, architecture)
    tensors, rules = meta_tensors(shapes), RULES[architecture]
    strip = manifest.get("strip_substrings", [])
    leading = manifest.get("strip_substrings_defensive", [])
    assert (rules.strip, rules.strip_leading) == (tuple(strip), tuple(leading))
    assert [(list(each.keys), each.prefix) for each in rules.wrappers] == [
        (each["wrapper"], each["key_prefix"]) for each in manifest["accepted_wrappers"]
    ]
    for accepted in manifest["accepted_wrappers"]:
        for extra in ["", *strip, *leading, "".join([*leading, *strip])]:
            content = wrapped(tensors, *accepted["wrapper"], prefix=extra + accepted["key_prefix"])
            assert normalise(content, shapes, rules).keys() == shapes.keys(), (accepted, extra)
            assert recognise(content) == architecture
        for part in strip:
            inside = {name.replace("blocks.0.", f"blocks.0.{part}"): value for name, value in tensors.items()}
            content = wrapped(inside, *accepted["wrapper"], prefix=accepted["key_prefix"])
            assert normalise(content, shapes, rules).keys() == shapes.keys(), (accepted, part)


def text_encoder() -> torch.nn.Module:
    pytest.importorskip("transformers")
    return TextEncoder(TextEncoderConfig())


NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], ...]] = {
    "generator": (lambda: Generator(GeneratorConfig()),),
    "sr_dit": (lambda: SrDit(SrDitConfig()),),
    "upsampler_x2": (lambda: LatentUpsampler(LatentUpsamplerConfig(scale=2)),),
    "upsampler_x3": (lambda: LatentUpsampler(LatentUpsamplerConfig(scale=3)),),
    "upsampler_v3_x2": (lambda: LatentUpsamplerV3(LatentUpsamplerV3Config()),),
    "tiny_decoder": (lambda: Encoder(EncoderConfig()), lambda: Decoder(DecoderConfig())),
    "ultra_decoder": (lambda: Encoder(EncoderConfig()), lambda: Decoder(DecoderConfig(upsampling="pixel_shuffle"))),
    "wan_vae": (lambda: WanVaeEncoder(WanVaeConfig()), lambda: WanVaeDecoder(WanVaeConfig())),
    "text_encoder": (text_encoder,),
}
"""The full-size networks that share a published file."""


@pytest.mark.parametrize("architecture", [pytest.param(name, id=name) for name in NETWORKS])
def test_a_published_file_loads_strictly_into_the_full_size_networks(architecture: str, manifests: Path) -> None:
    _, shapes = manifest_of(manifests, architecture)
    tensors = normalise(meta_tensors(shapes), shapes, RULES[architecture])
    taken: set[str] = set()
    for build in NETWORKS[architecture]:
        with torch.device("meta"):
            network = build()
        own = {name: value for name, value in tensors.items() if name in network.state_dict()}
        load_strictly(network, own, name=architecture)
        assert all(parameter.dtype == torch.float32 and parameter.is_meta for parameter in network.parameters())
        taken |= own.keys()
    assert taken == shapes.keys()


@by_architecture
def test_tensors_of_a_different_architecture_are_distinguished(architecture: str) -> None:
    tensors = meta_tensors(expected_shapes(architecture))
    assert recognise(tensors) == architecture
    other = "wan_vae" if architecture != "wan_vae" else "generator"
    with pytest.raises(WeightsError, match="are missing"):
        normalise(tensors, expected_shapes(other), RULES[other])


def test_unknown_tensors_have_no_architecture() -> None:
    assert detect({"weight": (3, 2)}) is None
    assert detect({"patch_embedding.weight": (8, 20, 1, 2, 2), "head.modulation": (1, 2, 8)}) is None
    assert detect({"pre_shuffle.0.weight": (2048, 16, 3, 3), "final.weight": (16, 128, 3, 3)}) is None
    assert recognise({"epoch": 3, "model": "not tensors"}) is None


def test_the_averaged_generator_is_taken_unless_the_plain_one_is_preferred() -> None:
    content = {
        "generator": {"model.w": torch.zeros(2)},
        "generator_ema": {"model._fsdp_wrapped_module.w": torch.ones(2)},
        "critic": {"model.w": torch.full((2,), 5.0)},
    }
    expected = {"w": (2,)}
    assert normalise(content, expected, RULES["generator"])["w"].tolist() == [1, 1]
    assert normalise(content, expected, RULES["generator"], prefer="generator")["w"].tolist() == [0, 0]


def test_a_preferred_part_that_does_not_fit_is_refused_and_not_replaced_by_another() -> None:
    content = {"generator": {"model.v": torch.zeros(2)}, "generator_ema": {"model.w": torch.ones(2)}}
    with pytest.raises(WeightsError, match=r"1 of 1 tensors are missing \(w\), 1 are unexpected \(v\)"):
        normalise(content, {"w": (2,)}, RULES["generator"], prefer="generator")


def test_of_a_time_growth_with_more_rows_the_last_ones_count() -> None:
    rules, name = RULES["tiny_decoder"], "decoder.13.conv.weight"
    disk = torch.arange(8.0).view(4, 2, 1, 1)
    assert normalise({name: disk}, {name: (2, 2, 1, 1)}, rules)[name].flatten().tolist() == [4, 5, 6, 7]
    for other, shape in (("decoder.14.weight", (2, 2, 1, 1)), (name, (3, 2, 1, 1)), (name, (2, 4, 1, 1))):
        with pytest.raises(WeightsError, match="has shape"):
            normalise({other: disk}, {other: shape}, rules)


def test_two_names_that_become_one_are_refused() -> None:
    rules = WrapperRules(wrappers=(Wrapper(prefix="model."),))
    with pytest.raises(WeightsError, match="no tensors found"):
        normalise({"model.w": torch.zeros(1), "w": torch.ones(1)}, {"w": (1,)}, rules)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param({"w": torch.zeros(2)}, r"1 of 2 tensors are missing \(b\)", id="missing"),
        pytest.param(dict.fromkeys(("w", "b", "x"), torch.zeros(2)), r"1 are unexpected \(x\)", id="unexpected"),
        pytest.param(
            {"w": torch.zeros(2), "b": torch.zeros(3)}, r"b has shape \(3,\), expected \(2,\)", id="another shape"
        ),
        pytest.param({"step": 3, "w": torch.zeros(2)}, "only step, w", id="other values among them"),
        pytest.param({}, "only none", id="empty"),
    ],
)
def test_anything_but_the_expected_tensors_is_refused(tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        normalise(tensors, {"w": (2,), "b": (2,)}, WrapperRules(), name="net.pth")


SHAPES = {"net.w": (3, 4), "net.b": (4,)}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A network of two tensors with its own rules."""
    monkeypatch.setitem(RULES, "tiny", WrapperRules(wrappers=(Wrapper(), Wrapper(keys=("model",)))))
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for (name, shape), dtype in zip(SHAPES.items(), (torch.bfloat16, torch.float16), strict=True)
    }


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_checkpoint_of_any_form_becomes_safetensors_in_the_same_dtypes(
    tmp_path: Path, tiny: dict[str, Tensor], form: str
) -> None:
    source, target = tmp_path / "net.pth", tmp_path / "net.safetensors"
    if form == "safetensors":
        save_file(tiny, source)
    else:
        torch.save({"model": tiny}, source, _use_new_zipfile_serialization=form == "zip")
    convert(source, target, "tiny", SHAPES)
    converted = load_file(target)
    assert converted.keys() == tiny.keys()
    assert all(torch.equal(converted[name], tiny[name]) for name in tiny)
    assert [converted[name].dtype for name in tiny] == [torch.bfloat16, torch.float16]


def test_tensors_that_share_memory_are_written_each(tmp_path: Path, tiny: dict[str, Tensor]) -> None:
    shared = torch.arange(12.0)
    (tmp_path / "net.pt").write_bytes(saved({"net.w": shared.view(4, 3).T, "net.b": shared[:4]}))
    convert(tmp_path / "net.pt", tmp_path / "out", "tiny", SHAPES)
    assert load_file(tmp_path / "out")["net.w"].tolist() == shared.view(4, 3).T.tolist()


class Harmful:
    """An object that would run a command when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(saved({"w": Harmful()}), id="a pickle that runs code"),
        pytest.param(saved([1, 2]), id="a list"),
        pytest.param(b"", id="an empty file"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", id="a pointer"),
        pytest.param(saved({"w": torch.zeros(999)})[:2000], id="a truncated file"),
        pytest.param(b"\x40\0\0\0\0\0\0\0{" + b" " * 90, id="broken safetensors"),
    ],
)
def test_a_file_that_holds_no_plain_tensors_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"net\.pth: (not a readable weight file|contains list, expected tensors)"):
        read_checkpoint(tmp_path / "net.pth")
    assert not (tmp_path / "harm").exists()


def test_values_that_are_not_finite_are_refused(tmp_path: Path, tiny: dict[str, Tensor]) -> None:
    tiny["net.b"][2] = torch.inf
    (tmp_path / "net.pth").write_bytes(saved(tiny))
    with pytest.raises(WeightsError, match=r"net\.b contains NaN or infinite values"):
        convert(tmp_path / "net.pth", tmp_path / "out", "tiny", SHAPES)


def test_a_file_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "latent_upsampler.pth").write_bytes(
        saved({"pre_shuffle.0.weight": torch.zeros(36, 1), "final.weight": torch.zeros(1, 4, 3, 3)})
    )
    with pytest.raises(WeightsError, match="these are weights of upsampler_x3, expected upsampler_x2"):
        convert(tmp_path / "latent_upsampler.pth", tmp_path / "out", "upsampler_x2", expected_shapes("upsampler_x2"))


def test_a_disk_that_is_full_is_an_error_of_the_system(tmp_path: Path, tiny: dict[str, Tensor]) -> None:
    (tmp_path / "net.pth").write_bytes(saved(tiny))
    with pytest.raises(OSError, match="No such file") as caught:
        convert(tmp_path / "net.pth", tmp_path / "missing" / "out", "tiny", SHAPES)
    assert caught.value.errno == 2


def test_tensors_are_read_in_their_dtypes_or_as_asked(tmp_path: Path, tiny: dict[str, Tensor]) -> None:
    save_file(tiny, tmp_path / "net.safetensors")
    read = read_tensors(tmp_path / "net.safetensors")
    assert [read[name].dtype for name in tiny] == [torch.bfloat16, torch.float16]
    read = read_tensors(tmp_path / "net.safetensors", dtype=torch.float32, device="cpu")
    assert all(torch.equal(read[name], tiny[name].float()) for name in tiny)


def test_a_network_without_memory_takes_the_tensors_as_they_are() -> None:
    with torch.device("meta"):
        network = torch.nn.Linear(3, 2)
    tensors = {"weight": torch.ones(2, 3, dtype=torch.bfloat16), "bias": torch.zeros(2, dtype=torch.bfloat16)}
    load_strictly(network, tensors, name="net")
    assert network.weight.dtype == torch.bfloat16
    assert network.weight.data_ptr() == tensors["weight"].data_ptr()


def test_a_lora_is_added_in_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    base = {
        "blocks.0.ffn.0.weight": torch.randn(6, 4, generator=generator).bfloat16(),
        "blocks.0.ffn.0.bias": torch.ones(6, dtype=torch.bfloat16),
    }
    down, up = (torch.randn(shape, generator=generator).bfloat16() for shape in ((3, 4), (6, 3)))
    lora = {"blocks.0.ffn.0.lora_A.weight": down, "blocks.0.ffn.0.lora_B.weight": up}
    merged = merge_lora(base, lora, scale=0.5)
    wanted = base["blocks.0.ffn.0.weight"].float() + 0.5 * (up.float() @ down.float())
    assert torch.equal(merged["blocks.0.ffn.0.weight"], wanted.bfloat16())
    assert merged["blocks.0.ffn.0.bias"] is base["blocks.0.ffn.0.bias"]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        pytest.param({"a.lora_A.weight": torch.ones(2, 3)}, "has no weight, lora_A or lora_B", id="half a pair"),
        pytest.param(
            {"b.lora_A.weight": torch.ones(2, 3), "b.lora_B.weight": torch.ones(4, 2)},
            "b has no weight",
            id="no such weight",
        ),
        pytest.param(
            {"a.lora_A.weight": torch.ones(2, 5), "a.lora_B.weight": torch.ones(4, 2)}, "different network", id="shape"
        ),
    ],
)
def test_a_lora_of_another_network_is_refused(lora: dict[str, Tensor], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        merge_lora({"a.weight": torch.ones(4, 3)}, lora)


def test_a_lora_may_name_its_adapter(manifests: Path) -> None:
    _, shapes = manifest_of(manifests, "lora")
    named = {name.replace(".weight", ".default.weight"): value for name, value in meta_tensors(shapes).items()}
    content = wrapped(named, "generator_lora", prefix="base_model.model.")
    assert normalise(content, shapes, RULES["lora"]).keys() == shapes.keys()
