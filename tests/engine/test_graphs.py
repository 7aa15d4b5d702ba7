"""Recorded steps return the same results as plain steps, which replace them where
recording is impossible."""

from collections.abc import Generator as Turns
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts.stages import randomise
from tests.engine.standins import LateRecorder
from ultraflash_cli.engine import regroup
from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.graphs import CudaRecorder, Graphs
from ultraflash_cli.engine.profiles import LITE, TINY_RANDOM, Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.regroup import Regrouped
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.schedule import kv_lengths
from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.sr_dit import SrDit

HEIGHT, WIDTH = 16, 32


def cascade(profile: Profile, graphs: Graphs) -> Cascade:
    assert profile.sr_dit is not None and isinstance(profile.encoder, EncoderConfig)
    encoder, upsampler = Encoder(profile.encoder), LatentUpsampler(profile.latent_stages[0])
    sr_dit, decoder = SrDit(profile.sr_dit), Decoder(profile.latent_stages[1])
    for seed, network in enumerate((encoder, upsampler, sr_dit, decoder)):
        randomise(network, seed)
    return Cascade(profile, encoder, Refiner(profile, upsampler, sr_dit, decoder, graphs=graphs))


def clip(frames: int, seed: int = 3) -> Tensor:
    return torch.rand((1, 3, frames, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(seed))


def upscaled(model: Cascade, frames: Tensor, **options: Any) -> Tensor:
    state = model.init_state(height=HEIGHT, width=WIDTH, **options)
    return regroup.run(model, state, frames)[1]


def shrunk(profile: Profile) -> Profile:
    """Return a profile with groups of two latents, so that a short clip has many of
    them, the first ones with a growing memory."""
    assert profile.sr_dit is not None
    return replace(profile, group_latents=2, sr_dit=replace(profile.sr_dit, group_latents=2))


@pytest.mark.parametrize("profile", [shrunk(TINY_RANDOM), LITE], ids=lambda profile: profile.name)
def test_a_clip_through_recorded_steps_is_the_same_bit_for_bit(profile: Profile) -> None:
    graphs = Graphs(LateRecorder())
    with_graphs, plain = cascade(profile, graphs), cascade(profile, Graphs(None))
    frames = clip(5 + 6 * 8 + 3)
    assert torch.equal(upscaled(with_graphs, frames), upscaled(plain, frames))
    assert graphs.counts.keys() == {"encoder", "upsampler", "sr_dit", "decoder"} and not graphs.refusals
    for name, (recorded, replayed, eager) in graphs.counts.items():
        assert recorded >= 1 and replayed >= 2 and eager >= 2, name
    # A second scene, then the state of a third one saved and loaded, in the same buffers.
    assert torch.equal(upscaled(with_graphs, frames, seed=2), upscaled(plain, frames, seed=2))
    begun = Regrouped(with_graphs.init_state(height=HEIGHT, width=WIDTH))
    begun, first = regroup.push(with_graphs, begun, frames[:, :, :29])
    fresh = with_graphs.init_state(height=HEIGHT, width=WIDTH)
    state = state_from_tensors(fresh, state_to_tensors(begun.state))
    del fresh, begun
    _, second = regroup.run(with_graphs, state, frames[:, :, 29:])
    assert torch.equal(torch.cat([*first, second], dim=2), upscaled(plain, frames))


def test_two_streams_at_once_do_not_touch_each_other() -> None:
    profile = shrunk(TINY_RANDOM)
    graphs = Graphs(LateRecorder())
    model, plain = cascade(profile, graphs), cascade(profile, Graphs(None))
    pieces = [(a, b) for a, b in zip(clip(53).split(8, dim=2), clip(53, seed=4).split(8, dim=2), strict=True)]
    states = [model.init_state(height=HEIGHT, width=WIDTH, seed=seed) for seed in (0, 1)]
    streams = [Regrouped(state) for state in states]
    del states
    out: list[list[Tensor]] = [[], []]
    for pair in pieces:
        for i, piece in enumerate(pair):
            streams[i], parts = regroup.push(model, streams[i], piece)
            out[i] += parts
    for i, seed in enumerate((3, 4)):
        whole = torch.cat([*out[i], *regroup.end(model, streams[i])[1]], dim=2)
        assert torch.equal(whole, upscaled(plain, clip(53, seed=seed), seed=i))
    assert graphs.counts["sr_dit"].replayed > 0


def test_a_memory_that_shrinks_by_schedule_is_recorded_by_its_length() -> None:
    profile = shrunk(TINY_RANDOM)
    assert profile.sr_dit is not None
    profile = replace(profile, sr_dit=replace(profile.sr_dit, kv_schedule=kv_lengths(5)))
    model, plain = cascade(profile, Graphs(LateRecorder())), cascade(profile, Graphs(None))
    for _ in range(2):
        assert torch.equal(upscaled(model, clip(53)), upscaled(plain, clip(53)))


def test_after_a_recording_that_failed_everything_runs_eagerly_and_is_reported_once() -> None:
    recorder = LateRecorder(refuses="a host copy")
    graphs = Graphs(recorder)
    model, plain = cascade(LITE, graphs), cascade(LITE, Graphs(None))
    with pytest.warns(RuntimeWarning, match="cannot be recorded as a CUDA graph, runs eagerly") as said:
        sharp = upscaled(model, clip(45))
    assert torch.equal(sharp, upscaled(plain, clip(45)))
    assert (recorder.recordings, len(said), len(graphs.refusals)) == (1, 1, 1)
    (refusal,) = graphs.refusals.values()
    assert "a host copy" in refusal and "second line" not in refusal
    assert all(counts.recorded == counts.replayed == 0 for counts in graphs.counts.values())


class FakeCuda:
    """Streams and captures as torch has them: a capture that fails leaves its stream the current one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.current: object = "the caller's stream"
        self.captured_on: list[object] = []
        self.ended_pools: list[object] = []
        self.device = 0
        self.ended_on: list[int] = []
        self.fails = fails
        self.pools = 0
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "Stream", lambda _device: object())
        monkeypatch.setattr(cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(cuda, "graph_pool_handle", self.pool)
        monkeypatch.setattr(cuda, "current_stream", lambda _device: self.current)
        monkeypatch.setattr(cuda, "set_stream", lambda stream: setattr(self, "current", stream))
        monkeypatch.setattr(cuda, "device", self.on)
        monkeypatch.setattr(cuda, "current_device", lambda: self.device)
        monkeypatch.setattr(cuda, "graph", self.capture)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.ended, raising=False)

    @contextmanager
    def on(self, device: torch.device) -> Turns[None]:
        before, self.device = self.device, device.index
        yield
        self.device = before

    def ended(self, index: int, pool: object) -> None:
        self.ended_on.append(index)
        self.ended_pools.append(pool)

    def pool(self) -> object:
        self.pools += 1
        return self.pools

    @contextmanager
    def capture(self, _graph: object, *, pool: object, stream: object, **_: object) -> Turns[None]:
        before, self.current = self.current, stream
        self.captured_on.append(stream)
        yield
        if self.fails:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.current = before

    def replay(self) -> None:
        pass


def test_two_recorders_capture_on_two_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, device = FakeCuda(monkeypatch), torch.device("cuda", 0)
    one, other = CudaRecorder(device), CudaRecorder(device)
    for recorder in (one, other, one):
        recorder.record(lambda: {}).replay()
    first, second, again = fake.captured_on
    assert first is again and first is not second
    assert fake.current == "the caller's stream"


def test_a_capture_that_fails_gives_stream_and_allocator_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch, fails=True)
    recorder = CudaRecorder(torch.device("cuda", 1))
    with pytest.raises(RuntimeError, match="previous error"):
        recorder.record(lambda: {})
    assert fake.ended_on == [1], "its own device's, whichever is the current one"
    assert fake.current == "the caller's stream"
    assert fake.ended_pools == [1] and fake.pools == 2, "the pool that was being filled is used again"


def test_paused_graphs_run_everything_eagerly() -> None:
    graphs = Graphs(LateRecorder())
    model = cascade(LITE, graphs)
    with graphs.paused():
        upscaled(model, clip(45))
    assert graphs.counts == {} and graphs.on and not Graphs(None).on


def drawn(generator: Sampler, chunks: int, seed: int) -> Iterator[Tensor]:
    config = generator.config
    draw = torch.Generator().manual_seed(seed)
    context = torch.randn((1, 5, config.text_dim), generator=draw)
    state = generator.init_state(batch=1, height=4, width=4, context=context)
    for _ in range(chunks):
        count = config.chunk_after(state.frames)
        noise = torch.randn((1, config.latent_channels, count, 4, 4), generator=draw)
        more = torch.randn((1, config.draws_per_chunk, config.latent_channels, count, 4, 4), generator=draw)
        state, clean = generator.step(state, GeneratorInputs(noise, more))
        yield clean


@pytest.mark.parametrize(
    ("kind", "fp8"), [("generator", False), ("long_generator", False), ("long_generator", True)], ids=str
)
def test_a_generator_draws_the_same_latents_by_recorded_passes(kind: str, fp8: bool) -> None:
    config = getattr(TINY_RANDOM, kind)
    assert isinstance(config, GeneratorConfig)
    network = Generator(config)
    randomise(network, 5)
    network = network.to_fp8() if fp8 else network
    plain, graphed = Sampler(network), Sampler(network, graphs=Graphs(LateRecorder()))
    chunks = 3 if kind == "generator" else 6
    for seed in (1, 2):  # two clips one after the other
        for one, other in zip(drawn(plain, chunks, seed), drawn(graphed, chunks, seed), strict=True):
            assert torch.equal(one, other)
    counts = graphed.graphs.counts["generator"]
    assert counts.replayed > counts.eager > 0 and not graphed.graphs.refusals


@pytest.mark.gpu
@pytest.mark.parametrize("profile", [shrunk(TINY_RANDOM), LITE], ids=lambda profile: profile.name)
def test_on_a_gpu_graphs_replay_the_same_pixels(profile: Profile) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    graphs = Graphs(CudaRecorder(device))
    with_graphs, plain = cascade(profile, graphs), cascade(profile, Graphs(None))
    for model in (with_graphs, plain):
        assert isinstance(model.refiner, Refiner)
        for network in (model.encoder, model.refiner.upsampler, model.refiner.sr_dit, model.refiner.decoder):
            assert network is not None
            network.to(device)
    frames = clip(5 + 6 * 8 + 3).to(device)
    for seed in (0, 1):
        assert torch.equal(upscaled(with_graphs, frames, seed=seed), upscaled(plain, frames, seed=seed))
    assert not graphs.refusals and all(counts.replayed > 2 for counts in graphs.counts.values())
