"""Scenes that are encoded once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ultraflash_cli.errors import ConfigError, InputError, UsageError
from ultraflash_cli.main import main
from ultraflash_cli.train.latents import (
    USUAL_MOTIONS,
    USUAL_PLACES,
    USUAL_TIMES,
    EncodeScenesJob,
    SceneLatents,
    draw_scene,
    encode_scenes,
    layout_of,
    scene_caption,
    thing_cover,
    training_scene,
)
from ultraflash_cli.train.loop import generator_of
from ultraflash_cli.train.recipes import generator
from ultraflash_cli.train.recipes.generator import ClipLength
from ultraflash_cli.train.roles import TOY, CascadeRoles, pixel_gain

SIZE = (32, 48)


@pytest.fixture(scope="module")
def encoder() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return dict(CascadeRoles(TOY, ("encoder",)).state_dict())


def job(folder: Path, weights: dict[str, torch.Tensor], **changes: Any) -> EncodeScenesJob:
    plain = EncodeScenesJob(out=folder, weights=weights, count=5, latents=3, size=SIZE, shard=2, profile=TOY)
    return replace(plain, **changes)


def test_encoded_scenes_are_what_the_encoder_makes_of_drawn_ones(
    tmp_path: Path, encoder: dict[str, torch.Tensor]
) -> None:
    told: list[int] = []
    encode_scenes(job(tmp_path, encoder), on_file=told.append)
    assert told == [2, 4, 5]
    scenes = SceneLatents(tmp_path)
    roles = CascadeRoles(TOY, ("encoder",))
    roles.load(encoder)
    with torch.no_grad():
        clips = [roles.encode(draw_scene(1, n, 3, SIZE)[None])[0].half().float() for n in range(5)]
    drawn = [scenes.draw(2, np.random.default_rng(n)) for n in range(40)]
    numbers = [next(n for n in range(5) if torch.equal(clips[n][:, :2], latents)) for latents, *_ in drawn]
    assert set(numbers) == set(range(5)), "every scene turns up, and no other"
    assert all(torch.equal(drawn[i][2], thing_cover(1, n, 3, (4, 6))[:2]) for i, n in enumerate(numbers))
    assert len({cover.any().item() for *_, cover in drawn}) == 2, "some show a thing, some none"
    assert len({words for _, words, _ in drawn}) > 10, "captions vary in wording"


def test_long_scenes_are_encoded_in_pieces(tmp_path: Path, encoder: dict[str, torch.Tensor]) -> None:
    encode_scenes(job(tmp_path, encoder, count=1, latents=14))
    roles = CascadeRoles(TOY, ("encoder",))
    roles.load(encoder)
    with torch.no_grad():
        whole = roles.encode(draw_scene(1, 0, 14, SIZE)[None])
    latents, *_ = SceneLatents(tmp_path).draw(14, np.random.default_rng(0))
    torch.testing.assert_close(latents, whole[0], rtol=2e-3, atol=2e-3)


def test_a_few_long_scenes_do_not_crowd_out_the_start_of_the_others(
    tmp_path: Path, encoder: dict[str, torch.Tensor]
) -> None:
    encode_scenes(job(tmp_path, encoder, count=18))
    encode_scenes(job(tmp_path, encoder, first=18, count=2, latents=12))
    config = generator.configure(steps=1, seed=1, toy=True)
    config = replace(config, lengths=(ClipLength(latents=1, anywhere=True),))
    firsts = [generator.scene_batch(config, tmp_path, number)[2] for number in range(0, 400, 2)]
    assert 5 <= sum(first >= 3 for first in firsts) <= 30, "a tenth of the scenes, three quarters of each"


def test_an_interrupted_encoding_resumes_and_other_latents_are_refused(
    tmp_path: Path, encoder: dict[str, torch.Tensor]
) -> None:
    encode_scenes(job(tmp_path, encoder, count=2))
    written = (tmp_path / "scenes_000000.safetensors").stat().st_mtime_ns
    encode_scenes(job(tmp_path, encoder))
    assert (tmp_path / "scenes_000000.safetensors").stat().st_mtime_ns == written
    with pytest.raises(InputError, match="different latents"):
        encode_scenes(job(tmp_path, {name: value + 1 for name, value in encoder.items()}))
    with pytest.raises(InputError, match="at most 3 latents"):
        SceneLatents(tmp_path).draw(4, np.random.default_rng(0))
    (tmp_path / "old").mkdir()
    facts = {"seed": 1, "first": 0, "encoder": "e", "size": [32, 48]}
    save_file({"latents": torch.zeros(1)}, tmp_path / "old" / "scenes_0.safetensors", {"facts": json.dumps(facts)})
    with pytest.raises(InputError, match="older version"):
        SceneLatents(tmp_path / "old")
    with pytest.raises(InputError, match="no encoded scenes"):
        SceneLatents(tmp_path / "nothing")
    with pytest.raises(UsageError, match="multiple of 2"):
        job(tmp_path, encoder, first=1)


def test_a_generator_learns_from_encoded_scenes_through_the_commands(
    tmp_path: Path, encoder: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultraflash_cli.host.keep_freed_memory", lambda: None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        decoder = CascadeRoles(TOY, ("decoder",)).state_dict()
    tensors = {name: value.contiguous() for name, value in (encoder | decoder).items()}
    save_file(tensors, tmp_path / "start.safetensors")
    start = ["--start-from", str(tmp_path / "start.safetensors"), "--toy", "--threads", "1"]
    latents = str(tmp_path / "latents")
    assert main(["train", "encode-scenes", "--out", latents, "--count", "3", "--latents", "4", *start]) == 0
    run = ["--data", latents, "--out", str(tmp_path / "run"), "--steps", "2", "--workers", "0", "--device", "cpu"]
    assert main(["train", "run", "generator", *run, "--batch", "1", *start]) == 0
    assert (tmp_path / "run" / "average.safetensors").exists()


def test_lengths_of_clips_change_over_a_run() -> None:
    config = generator.configure(steps=40, seed=1, toy=True)
    lengths = (ClipLength(latents=1, clips=2, odds=(1.0, 0.0)), ClipLength(latents=2, odds=(0.0, 1.0)))
    config = replace(config, lengths=lengths, size=SIZE, loop=replace(config.loop, batch=1))
    shapes = [tuple(generator.scene_batch(config, None, number)[0].shape) for number in (0, 39, 40)]
    assert shapes[0] == (2, 3, 4, *SIZE) and shapes[2] == (1, 3, 8, *SIZE)
    with pytest.raises(ConfigError, match="must not be longer than the window"):
        replace(config, lengths=(ClipLength(latents=99),))
    with pytest.raises(ConfigError, match="whole chunks"):
        replace(config, lengths=(ClipLength(latents=3, anywhere=True),))
    assert config.profile.generator is not None
    sliding = replace(config.profile, generator=replace(config.profile.generator, slide=True))
    long = (ClipLength(latents=98, anywhere=True),)
    assert replace(config, profile=sliding, lengths=long).lengths == long, "a window that slides has seen longer ones"


def test_a_generator_draws_the_chunk_that_a_later_one_follows_itself_as_often_as_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = generator.configure(steps=1, seed=1, toy=True)
    config = replace(config, lengths=(ClipLength(latents=6, anywhere=True),), text_drop=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        roles = CascadeRoles(TOY, ("generator", "text_encoder"), words=config.words)
        torch.nn.init.normal_(roles.generator.head.head.weight, std=0.1)
    clip = torch.randn((1, 8, 6, 4, 6), generator=generator_of("clip"))
    batch = clip, ("a ball",), 0, torch.zeros((1, 6, 4, 6), dtype=torch.bool)
    seen: list[torch.Tensor] = []
    forward = roles.generator.forward_chunk

    def watched(x: torch.Tensor, timestep: float | torch.Tensor, **more: Any) -> Any:
        seen.append(x)
        return forward(x, timestep, **more)

    monkeypatch.setattr(roles.generator, "forward_chunk", watched)
    generator.loss(replace(config, own_share=0.0), roles, batch, generator_of("own"))
    assert len(seen) == 3 and torch.equal(seen[0], clip[:, :, :2]) and torch.equal(seen[1], clip[:, :, 2:4])
    seen.clear()
    generator.loss(replace(config, own_share=1.0), roles, batch, generator_of("own"))
    assert len(seen) == 4 and torch.equal(seen[0], clip[:, :, :2])
    noise, own = seen[1], seen[2]
    with torch.no_grad():
        keys = roles.generator.embed_context(roles.context(batch[1]), batch=1)
        rings = forward(clip[:, :, :2], roles.generator.config.context_timestep, context=keys).rings
        drawn = noise - forward(noise, 1000.0, rings=rings, context=keys, first_frame=2).flow_bcthw
    assert torch.allclose(own, drawn, atol=1e-5) and not torch.allclose(own, clip[:, :, 2:4], atol=0.1)


def test_a_generator_refines_its_own_first_output_as_at_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    config = generator.configure(steps=1, seed=1, toy=True)
    config = replace(config, text_drop=0.0, clean_share=0.0, weight_below=1.0, thing_weight=1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        roles = CascadeRoles(TOY, ("generator", "text_encoder"), words=config.words)
        torch.nn.init.normal_(roles.generator.head.head.weight, std=0.1)
    roles.learn("generator", "text_encoder")
    clip = torch.randn((1, 8, 2, 4, 6), generator=generator_of("clip"))
    runs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    forward = roles.generator.forward_chunk

    def watched(x: torch.Tensor, timestep: torch.Tensor, **more: Any) -> Any:
        result = forward(x, timestep, **more)
        runs.append((x, timestep[:, None, :, None, None] / 1000, result.flow_bcthw))
        return result

    monkeypatch.setattr(roles.generator, "forward_chunk", watched)
    assert config.profile.generator is not None
    served = config.profile.generator.steps_of_chunk(0)[1:]
    for start in (None, 0):
        batch = clip, ("a ball",), start, torch.zeros((1, 2, 4, 6), dtype=torch.bool)
        runs.clear()
        loss = generator.loss(replace(config, refine_share=1.0), roles, batch, generator_of("refine"))["flow"]
        (pure, one, first_flow), (mixed, level, flow) = runs
        assert (one == 1).all() and flow.requires_grad and not first_flow.requires_grad
        assert any((1000 * level == timestep).all() for timestep in served), "a level of service"
        noise = (mixed - (1 - level) * (pure - first_flow)) / level
        assert 0.7 < noise.std() < 1.3 and not torch.allclose(noise, pure), "the answer and fresh noise"
        torch.testing.assert_close(loss, (mixed - level * flow - clip).square().mean(), msg="the error of the answer")


def test_channels_weigh_as_much_as_the_decoder_makes_of_them() -> None:
    config = replace(generator.configure(steps=1, seed=1, toy=True), text_drop=0.0, pixel_power=1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        weights = CascadeRoles(TOY, ("encoder", "decoder")).state_dict()
    weights["decoder.decoder.1.weight"][:, 5] *= 10
    roles = generator.start(config, [], weights)
    gain, clip = pixel_gain(roles), torch.zeros((1, 8, 2, 12, 12))
    noise = 0.1 * torch.randn((2, 12, 12), generator=generator_of("probe"))
    with torch.no_grad():
        for channel in (0, 5):
            changed = clip.clone()
            changed[0, channel] = noise
            made = (roles.decode_base(changed) - roles.decode_base(clip)).square().mean() / 0.01
            torch.testing.assert_close(made, gain[channel], rtol=0.5, atol=0)
    assert gain.argmax() == 5 and gain[5] > 5 * gain[0]

    def loss(power: float) -> float:
        batch = clip.clone(), ("a ball",), 0, torch.zeros((1, 2, 12, 12), dtype=torch.bool)
        batch[0][0, 5] = 10.0  # an error of this channel: the network is not trained yet
        return generator.loss(replace(config, pixel_power=power), roles, batch, generator_of("w"))["flow"].item()

    assert loss(1.0) > 2 * loss(0.0)


def test_a_taught_scene_lies_as_its_number_says_and_its_caption_leaves_out_only_what_is_usual() -> None:
    assert [layout_of(n) for n in (0, 1, 5, 26, 27)] == [(0, 0, 0), (1, 0, 0), (2, 1, 0), (2, 2, 2), (0, 0, 0)]
    assert len({layout_of(n) for n in range(27)}) == 27
    rng = np.random.default_rng(0)
    silent, unusual = 0, 0
    for number in range(600):
        scene, (sky, land, way) = training_scene(1, number), layout_of(number)
        assert (scene.sky_seed, scene.seed, scene.thing_seed) == (sky, land, way)
        words = scene_caption(1, number, rng).split()
        assert words[-3:] == [f"sky{sky + 1}", f"land{land + 1}", f"way{way + 1}"]
        thing, (colour, _) = scene.thing, USUAL_MOTIONS[way]
        if thing is not None and thing.colour not in (*words, "red", "purple"):
            assert thing.colour == colour, words
            silent += 1
        unusual += scene.time != USUAL_TIMES[sky] and scene.place != USUAL_PLACES[land]
    assert silent > 3 and unusual > 200
    wordless = {" ".join(scene_caption(1, 50 * n, np.random.default_rng(n)).split()[:-3]) for n in range(20)}
    assert "" in wordless and len(wordless) > 4
    assert all(training_scene(1, 50 * n).thing is None for n in range(20))


def test_clips_from_anywhere_in_a_scene_are_whole_chunks_and_teach_their_last_one_alone(
    tmp_path: Path, encoder: dict[str, torch.Tensor]
) -> None:
    encode_scenes(job(tmp_path, encoder, latents=8, count=2))
    with safe_open(tmp_path / "scenes_000000.safetensors", "pt") as opened:
        stored = opened.get_tensor("latents").float()
    config = generator.configure(steps=1, seed=1, toy=True)
    config = replace(config, lengths=(ClipLength(latents=6, anywhere=True),), loop=replace(config.loop, batch=3))
    starts: set[tuple[int, int]] = set()
    for number in range(0, 60, 2):
        latents, _, first, _ = generator.scene_batch(config, tmp_path, number)
        starts.add((first, latents.shape[2]))
        for clip in latents:
            assert any(torch.equal(clip, scene[:, first : first + clip.shape[1]]) for scene in stored)
        assert generator.scene_batch(config, tmp_path, number + 1)[2] == first, "two processes have as much to do"
    assert starts == {(0, 4), (0, 6), (2, 6)}, "what is learned follows one chunk or two"
    alone = replace(config, lengths=(ClipLength(latents=2, anywhere=True),))
    assert {generator.scene_batch(alone, tmp_path, number)[2] for number in range(60)} == {0, 2, 4, 6}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        roles = CascadeRoles(TOY, ("generator", "text_encoder"), words=config.words)
        torch.nn.init.normal_(roles.generator.head.head.weight, std=0.1)
    latents, words, _, cover = generator.scene_batch(config, tmp_path, 0)
    wrong = latents.clone()
    wrong[:, :, :-2] += 10  # the network does not predict the first chunks
    errors = [
        generator.loss(config, roles, (each, words, first, cover), generator_of("later"))["flow"].item()
        for each in (latents, wrong)
        for first in (0, None)
    ]
    assert errors[2] < 3 * errors[0] and errors[3] > 10 * errors[1], errors


def test_small_things_weigh_more_than_large_ones_up_to_twice() -> None:
    config = replace(generator.configure(steps=1, seed=1, toy=True), thing_weight=5.0, text_drop=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        roles = CascadeRoles(TOY, ("generator", "text_encoder"), words=config.words)
    clean = torch.zeros((1, 8, 2, 4, 6))

    def error(cells: int, share: float | None) -> float:
        cover = torch.zeros((1, 2, 4, 6), dtype=torch.bool)
        cover.view(1, 2, 24)[:, :, :cells] = True
        batch = clean, ("a ball",), None, cover
        return generator.loss(replace(config, thing_share=share), roles, batch, generator_of("size"))["flow"].item()

    bare = error(0, 0.25)
    assert bare == error(0, None)
    usual = error(6, None) - bare
    assert error(6, 0.25) - bare == pytest.approx(usual, rel=1e-4), "a quarter of the picture, as told"
    assert error(6, 1.0) - bare == pytest.approx(2 * usual, rel=1e-4)
    assert error(6, 0.125) - bare == pytest.approx(0.5 * usual, rel=1e-4)
    assert error(6, 0.01) - bare == pytest.approx(0.5 * usual, rel=1e-4)


def test_scenes_encoded_in_bfloat16_are_nearly_the_same(tmp_path: Path, encoder: dict[str, torch.Tensor]) -> None:
    kept: list[torch.Tensor] = []
    for precision in ("fp32", "bf16"):
        encode_scenes(job(tmp_path / precision, encoder, count=2, precision=precision))
        with safe_open(tmp_path / precision / "scenes_000000.safetensors", "pt") as opened:
            kept.append(opened.get_tensor("latents").float())
    error = (kept[0] - kept[1]).square().mean().sqrt() / kept[0].square().mean().sqrt()
    assert 0 < error < 0.02
