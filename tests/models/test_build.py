"""Weight files into the networks of a profile: shared files, adapters, random weights, precision."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.contracts.stages import randomise
from tests.models.installing import put
from ultraflash_cli.engine.pixel_refiner import PixelRefiner
from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.engine.profiles import LITE, TINY_LITE, TINY_RANDOM, ULTRAFLASH, Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.errors import ConfigError, DeviceError, UsageError, WeightsError
from ultraflash_cli.models import device as devices
from ultraflash_cli.models.build import build_upscaler
from ultraflash_cli.models.device import choose_device, precision_name, precision_warnings, stage_precisions
from ultraflash_cli.models.profile import find_profile, with_full_encoder, with_ultra_decoder
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.weights.manifest import read_manifest
from ultraflash_cli.weights.store import WeightStore
from ultraflash_kernels import dispatch
from ultraflash_kernels.fp8_linear import Fp8Linear

CPU = torch.device("cpu")
SMALL = replace(TINY_RANDOM, name="small", random_seed=None, weights=ULTRAFLASH.weights)
"""The published names at tiny sizes."""


def coders() -> tuple[Encoder, Decoder]:
    assert isinstance(SMALL.encoder, EncoderConfig)
    encoder, decoder = Encoder(SMALL.encoder), Decoder(SMALL.base_decoder)
    randomise(encoder, 1)
    randomise(decoder, 2)
    return encoder, decoder


def test_encoder_and_decoder_come_out_of_one_file(tmp_path: Path) -> None:
    encoder, decoder = coders()
    put(WeightStore(tmp_path), "ultraflash/decoder", encoder.state_dict() | decoder.state_dict())
    shelf = Shelf(tmp_path)
    for part, config, made in (("encoder", SMALL.encoder, encoder), ("decoder", SMALL.base_decoder, decoder)):
        taken = shelf.take(SMALL, part, config, device=CPU, dtype=torch.float32)
        assert taken.state_dict().keys() == made.state_dict().keys()
        assert all(torch.equal(value, made.state_dict()[key]) for key, value in taken.state_dict().items())
        assert not any(parameter.requires_grad for parameter in taken.parameters())
    assert shelf.hashes.keys() == {"ultraflash/decoder"}


def test_a_network_is_loaded_once_and_forgotten_when_dropped(tmp_path: Path) -> None:
    encoder, decoder = coders()
    put(WeightStore(tmp_path), "ultraflash/decoder", encoder.state_dict() | decoder.state_dict())
    shelf = Shelf(tmp_path)
    one, two = (shelf.take(SMALL, "decoder", SMALL.base_decoder, device=CPU, dtype=torch.float32) for _ in range(2))
    assert one is two
    shelf.drop(one)
    assert shelf.take(SMALL, "decoder", SMALL.base_decoder, device=CPU, dtype=torch.float32) is not one


def test_weights_come_in_the_precision_asked_for(tmp_path: Path) -> None:
    encoder, decoder = coders()
    put(WeightStore(tmp_path), "ultraflash/decoder", encoder.state_dict() | decoder.state_dict())
    taken = Shelf(tmp_path).take(SMALL, "decoder", SMALL.base_decoder, device=CPU, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in taken.parameters()} == {torch.bfloat16}


def test_a_tensor_too_many_or_too_few_is_refused(tmp_path: Path) -> None:
    _, decoder = coders()
    weights = decoder.state_dict()
    for change in ({**weights, "decoder.99.weight": torch.zeros(1)}, dict(list(weights.items())[1:])):
        put(WeightStore(tmp_path), "ultraflash/decoder", change)
        with pytest.raises(WeightsError, match=r"1 unexpected|1 keys are missing"):
            Shelf(tmp_path).take(SMALL, "decoder", SMALL.base_decoder, device=CPU, dtype=torch.float32)


def test_the_long_generator_is_its_base_with_the_adapter_merged(tmp_path: Path) -> None:
    config = SMALL.long_generator
    assert config is not None
    base = Generator(config)
    randomise(base, 5)
    draw = torch.Generator().manual_seed(6)
    down, up = torch.randn((4, 48), generator=draw), torch.randn((48, 4), generator=draw)
    lora = {"blocks.1.self_attn.q.lora_A.weight": down, "blocks.1.self_attn.q.lora_B.weight": up}
    store = WeightStore(tmp_path)
    put(store, "ultraflash-long/generator", base.state_dict())
    put(store, "ultraflash-long/lora", lora)
    shelf = Shelf(tmp_path)
    taken = shelf.take(SMALL, "long_generator", config, device=CPU, dtype=torch.float32).state_dict()
    key = "blocks.1.self_attn.q.weight"
    torch.testing.assert_close(taken[key], base.state_dict()[key] + up @ down)
    assert torch.equal(taken["blocks.0.self_attn.q.weight"], base.state_dict()["blocks.0.self_attn.q.weight"])
    assert shelf.hashes.keys() == {"ultraflash-long/generator", "ultraflash-long/lora"}


def test_missing_weights_say_what_to_pull(tmp_path: Path) -> None:
    for shelf in (Shelf(tmp_path), Shelf()):
        with pytest.raises(WeightsError, match="ultraflash/sr_dit"):
            assert SMALL.sr_dit is not None
            shelf.take(SMALL, "sr_dit", SMALL.sr_dit, device=CPU, dtype=torch.float32)


def test_random_weights_are_the_same_in_every_process() -> None:
    one, two = (
        Shelf().take(TINY_RANDOM, "decoder", TINY_RANDOM.base_decoder, device=CPU, dtype=torch.float32)
        for _ in range(2)
    )
    first, second = (network.state_dict()["decoder.1.weight"] for network in (one, two))
    assert torch.equal(first, second)
    assert first.flatten()[:3].tolist() == pytest.approx([-0.095959, -0.055671, 0.132341], abs=1e-5)


@pytest.mark.parametrize("profile", [LITE, ULTRAFLASH, TINY_RANDOM], ids=lambda profile: profile.name)
def test_every_weight_that_a_profile_names_is_in_the_manifest(profile: Profile) -> None:
    manifest = read_manifest()
    for scale in (2, 3):
        named = [profile.at_scale(scale).weight_of(part) for part, _ in profile.weights]
        assert set(named) <= manifest.keys()


def test_a_part_that_a_profile_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="lite has no wan_vae"):
        LITE.weight_of("wan_vae")


def test_a_cpu_runs_all_stages_in_one_precision_but_the_full_encoder() -> None:
    dtype_of = stage_precisions(ULTRAFLASH, "auto", CPU)
    assert dtype_of("generator") == dtype_of("decoder") == dtype_of("sr_dit")
    assert dtype_of("wan_vae") == torch.float32
    assert stage_precisions(ULTRAFLASH, "bf16", CPU)("wan_vae") == torch.bfloat16


def test_8_bits_are_refused_where_they_cannot_be_multiplied() -> None:
    with pytest.raises(DeviceError, match=r"fp8 cannot run here: .*NVIDIA GPU.*--precision auto") as refused:
        stage_precisions(ULTRAFLASH, "fp8", CPU)
    assert refused.value.exit_code == 4


def test_8_bits_go_into_the_transformers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "fp8_refusal", lambda _device: None)
    dtype_of = stage_precisions(ULTRAFLASH, "fp8", CPU)
    assert dtype_of("sr_dit") == dtype_of("generator") == torch.bfloat16 and dtype_of("decoder") == torch.float16
    shelf, plan = Shelf(), plan_upscale(32, 32, res="2x")

    def transformer(precision: str) -> SrDit:
        refiner = build_upscaler(shelf, TINY_RANDOM, plan, device=CPU, precision=precision).cascade.refiner
        assert isinstance(refiner, Refiner) and refiner.sr_dit is not None
        return refiner.sr_dit

    first = transformer("fp8")
    assert first.fp8 and isinstance(first.blocks[0].get_submodule("ffn.0"), Fp8Linear)
    assert transformer("fp8") is first and not transformer("bf16").fp8
    assert precision_name(ULTRAFLASH, "fp8", CPU) == "fp8"
    assert "changes pixels" in precision_warnings("fp8")[0] and not precision_warnings("bf16")


def test_constant_gates_are_folded_on_a_gpu_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "fp8_refusal", lambda _device: None)
    assert TINY_RANDOM.sr_dit is not None
    pooled = replace(TINY_RANDOM, name="pooled", sr_dit=replace(TINY_RANDOM.sr_dit, pool_text=True))
    shelf, plan = Shelf(), plan_upscale(32, 32, res="2x")

    def transformer(precision: str, profile: Profile = TINY_RANDOM) -> SrDit:
        refiner = build_upscaler(shelf, profile, plan, device=CPU, precision=precision).cascade.refiner
        assert isinstance(refiner, Refiner) and refiner.sr_dit is not None
        return refiner.sr_dit

    plain = transformer("bf16")
    published, before = plain.state_dict(), shelf.hashes
    assert not plain.folded
    monkeypatch.setattr(dispatch, "prefers_kernels", lambda _device: True)
    folded = transformer("bf16")
    assert folded.folded and transformer("bf16") is folded and not plain.folded
    assert not any(transformer(precision).folded for precision in ("fp32", "fp8"))
    assert not transformer("bf16", pooled).folded, "there the gates depend on the prompt"

    assert shelf.hashes == before, "those of the files"
    with pytest.raises(
        RuntimeError, match=r"(?s)ffn\.2\.bias.*ffn\.2\.offset"
    ):  # weights that are not the published ones
        SrDit(plain.config).load_state_dict(folded.state_dict())
    assert all(torch.equal(value, published[name]) for name, value in plain.state_dict().items())


def test_detail_chooses_the_weights_of_the_pixel_path_and_lies_between_them() -> None:
    shelf, plan = Shelf(), plan_upscale(32, 32, res="2x")

    def path(detail: float) -> dict[str, Tensor]:
        refiner = build_upscaler(shelf, TINY_LITE, plan, device=CPU, precision="fp32", detail=detail).cascade.refiner
        assert isinstance(refiner, PixelRefiner)
        return refiner.path.state_dict()

    ends = path(0), path(1)
    assert shelf.hashes.keys() == {"random/pixels", "random/pixels_detail"}
    for name, value in path(0.25).items():
        torch.testing.assert_close(value, 0.75 * ends[0][name] + 0.25 * ends[1][name])
        assert not torch.equal(ends[0][name], ends[1][name])


def test_other_coders_take_their_own_weights() -> None:
    ultra = with_ultra_decoder(ULTRAFLASH)
    assert (ultra.weight_of("encoder"), ultra.weight_of("decoder")) == ("ultraflash/ultra_decoder",) * 2
    assert ultra.base_decoder.upsampling == "pixel_shuffle"
    full = with_full_encoder(ULTRAFLASH)
    assert full.encoder == ULTRAFLASH.wan_vae and not full.alignment.copy_front
    for change in (with_ultra_decoder, with_full_encoder):
        with pytest.raises(UsageError, match="lite"):
            change(LITE)


def test_unknown_models_and_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown model"):
        find_profile("nope")
    with pytest.raises(UsageError, match="--device"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="0 usable CUDA devices"):
            choose_device("cuda")
