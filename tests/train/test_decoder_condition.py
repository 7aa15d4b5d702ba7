"""Recipe ``decoder`` with low-resolution frames as its condition: from rendered scenes
to a file that `upscale` can use."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.train.made import CLEAN, write_materials
from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.regroup import run as run_stage
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.errors import ConfigError, UsageError
from ultraflash_cli.main import main
from ultraflash_cli.models.architectures import expected_shapes
from ultraflash_cli.train.data import Material, PairConfig, PairDataset
from ultraflash_cli.train.export import ExportJob, export
from ultraflash_cli.train.latents import draw_scene
from ultraflash_cli.train.loop import generator_of
from ultraflash_cli.train.recipes import decoder, tv2v_flow_matching
from ultraflash_cli.train.record import RECORD
from ultraflash_cli.train.roles import TOY, CascadeRoles
from ultraflash_cli.train.run import AVERAGE
from ultraflash_cli.weights.load import load_strictly, read_tensors

PAIRS = PairConfig(frames=8, crop_px=32, shares=(("scene", 1.0),), degradation=CLEAN)


def drawn_scenes(count: int, *, seed: int) -> list[Material]:
    """Clips of rendered scenes."""
    frames = [draw_scene(seed, number, 4, (96, 160)) for number in range(count)]
    bytes_ = [(x.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy() for x in frames]
    licence = "made for this project (test)"
    return [Material(f"scene_{seed}_{i}", "scene", licence, x, "a scene") for i, x in enumerate(bytes_)]


class Trained(NamedTuple):
    """Weights before and after the runs with and without the condition."""

    start: Path
    plain: Path
    reading: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("decoders")
    data = write_materials(tmp_path_factory.mktemp("scenes"), drawn_scenes(8, seed=1))

    def stage(name: str, steps: int, *more: str) -> Path:
        command = ["train", "run", "decoder", "--toy", "--steps", str(steps), "--batch", "2", "--workers", "0"]
        command += ["--threads", "1", "--device", "cpu", "--save-every", "1000", "--data", str(data)]
        assert main([*command, "--out", str(folder / name), *more]) == 0
        return folder / name

    with pytest.MonkeyPatch.context() as patch:
        toy = decoder.configure(steps=1, seed=1, toy=True)
        assert toy.pairs.crop_px == PAIRS.crop_px
        patch.setattr("ultraflash_cli.host.keep_freed_memory", lambda: None)
        start = stage("start", 30)
        given = ("--start-from", str(start / AVERAGE), "--set", "loop.clip=10")
        yield Trained(start, stage("plain", 80, *given), stage("reading", 80, *given, "--condition", "lr"))


def roles_of(run: Path, *, condition: str) -> tuple[decoder.DecoderRecipeConfig, CascadeRoles]:
    config = replace(decoder.configure(steps=1, seed=1, toy=True), condition=condition)
    return config, decoder.start(config, [], read_tensors(run / AVERAGE))


@torch.no_grad()
def error(run: Path, *, condition: str) -> float:
    """Return the mean square error on held-out scenes."""
    config, roles = roles_of(run, condition=condition)
    unseen = PairDataset(drawn_scenes(4, seed=0), PAIRS, seed=9, scale_of={2: 1.0})
    made, truth = decoder.clips(config, roles, unseen.batch(0, 6), generator_of("unused"))
    return (made.clamp(0, 1) - truth).square().mean().item()


def test_the_condition_helps_on_held_out_scenes(trained: Trained) -> None:
    plain, reading = error(trained.plain, condition="none"), error(trained.reading, condition="lr")
    assert plain < error(trained.start, condition="none")
    assert reading < 0.7 * plain


def test_a_decoder_with_a_new_condition_starts_as_the_one_it_is_given(trained: Trained) -> None:
    before, after = (error(trained.start, condition=condition) for condition in ("none", "lr"))
    assert after == pytest.approx(before, rel=1e-5)


def test_without_its_condition_a_decoder_still_works_and_other_recipes_take_it(trained: Trained) -> None:
    assert error(trained.reading, condition="none") < 1.25 * error(trained.start, condition="none")
    config = tv2v_flow_matching.configure(steps=1, seed=1, toy=True)
    others = CascadeRoles(TOY, ("upsamplers",)).state_dict()
    roles = tv2v_flow_matching.start(config, [], read_tensors(trained.reading / AVERAGE) | others)
    assert not roles.decoder.config.reads_low_frames


def test_its_export_serves_frames_as_training_decoded_them(trained: Trained, tmp_path: Path) -> None:
    entries = export(ExportJob(run=trained.reading, folder=tmp_path / "mine", listing=tmp_path / "weights.toml"))
    assert [entry.name for entry in entries] == ["mine/decoder", "mine/encoder"]
    _, roles = roles_of(trained.reading, condition="lr")
    assert isinstance(TOY.encoder, EncoderConfig) and TOY.decoder is not None and TOY.upsampler is not None
    profile = replace(TOY, decoder=replace(TOY.decoder, reads_low_frames=True), sr_dit=None, generator=None)
    encoder, serving = Encoder(TOY.encoder), Decoder(profile.base_decoder)
    for network, name in ((encoder, "encoder"), (serving, "decoder")):
        load_strictly(network, read_tensors(tmp_path / "mine" / f"{name}.safetensors"), name=name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        upsampler = LatentUpsampler(TOY.upsampler)
    cascade = Cascade(profile, encoder.eval(), Refiner(profile, upsampler, None, serving.eval()))

    source = torch.rand(1, 3, 13, 16, 32, generator=torch.Generator().manual_seed(3))
    _, served = run_stage(cascade, cascade.init_state(height=16, width=32), source.clone())
    shown = torch.cat([source[:, :, :1].expand(-1, -1, 3, -1, -1), source], dim=2)
    with torch.no_grad():
        latents = upsampler.upsample(roles.encode(shown), None)[0]
        wanted = roles.decode(latents, shown)[:, :, 3:]
    torch.testing.assert_close(served, wanted, rtol=0, atol=0.02)  # weights in half precision
    assert (served - roles.decode(latents)[:, :, 3:]).abs().max() > 0.1


def test_published_sizes_leave_as_the_one_file_that_weights_pull_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ULTRAFLASH_HOME", str(tmp_path / "home"))
    shapes = expected_shapes("tiny_decoder_lr")
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        role = "encoder" if name.startswith("encoder.") else "decoder"
        tensors[f"{role}.{name}"] = torch.zeros(shape)
    run = tmp_path / "run"
    run.mkdir()
    save_file(tensors, run / AVERAGE)
    record = '{{"recipe": "decoder", {}, "seed": 1, "steps": 2}}'
    rest = ", ".join(f'"{name}": ""' for name in ("recipe_hash", "config", "data_hash", "start_hash"))
    (run / RECORD).write_text(record.format(rest))

    (entry,) = export(ExportJob(run=run, folder=tmp_path / "mine", listing=tmp_path / "weights.toml"))
    assert (entry.name, entry.architecture) == ("mine/decoder", "tiny_decoder_lr")
    assert main(["weights", "pull", "--from", str(tmp_path / "mine" / "decoder.safetensors"), "--json"]) == 0
    assert '"name": "ultraflash/decoder"' in capsys.readouterr().out


def test_what_cannot_be_conditioned_says_so() -> None:
    config = decoder.configure(steps=1, seed=1, toy=True)
    with pytest.raises(ConfigError, match="without must be"):
        replace(config, without=2.0)
    from ultraflash_cli.engine.profiles import LITE, ULTRAFLASH

    with pytest.raises(ConfigError, match="no high-resolution decoder"):
        decoder.configure(
            steps=1,
            seed=1,
            profile=replace(LITE, decoder=None, upsampler=None, sr_dit=None, generator=None, text_encoder=None),
        )
    with pytest.raises(UsageError, match="encoder=FILE"), torch.device("cpu"):
        decoder.start(decoder.configure(steps=1, seed=1, profile=replace(ULTRAFLASH, encoder=TOY.encoder)), [], None)
