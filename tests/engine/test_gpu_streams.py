"""The order of work on streams, and of copies of pictures."""

import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine import upscalers
from tests.engine.standins import LazyCopyEngine, logged_streams
from tests.engine.upscalers import pictures, upscaler
from tests.engine.videos import frames_of, run, start, video
from ultraflash_cli.engine.gpu_streams import BufferedCopier, HostCopier, copier_for, cuda_streams, to_device, to_host
from ultraflash_cli.engine.pictures import as_picture, put_frames, quantise, to_tensor, widen
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.schedule import plan_generation
from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors


def test_generating_ahead_changes_no_pixel_and_works_in_order() -> None:
    plan = plan_generation(9)
    streams, log = logged_streams()
    assert torch.equal(frames_of(run(video(plan, streams=streams))), frames_of(run(video(plan))))
    first, second = (
        entry for entry in [log[: log.index("caller records 3")], log[log.index("caller records 3") + 1 :]]
    )
    assert first == [
        "generate waits for caller",
        "generate works",
        "refine waits for caller",
        "refine waits for generate",
        "refine works",
        "refine records 1",
        "generate works",  # the second group, during the refinement of the first
        "caller waits for refine",
    ]
    assert second == [
        "generate waits for caller",
        "refine waits for caller",
        "refine waits for generate",
        "refine works",
        "refine records 1",
        "caller waits for refine",
        "caller records 3",
    ]


def test_a_state_with_a_group_generated_ahead_is_saved_and_continues_with_and_without_streams() -> None:
    plan = plan_generation(9)
    streams, log = logged_streams()
    model, plain = video(plan, streams=streams), video(plan)
    whole = run(plain, seed=4)
    state, _ = model.step(start(model, seed=4))
    assert state.ahead == plan.groups[1]
    log.clear()
    model.settle()
    assert log == ["caller waits for generate", "caller waits for refine"]
    saved = state_to_tensors(state)
    for goes_on in (model, plain):
        _, group = goes_on.step(state_from_tensors(start(goes_on, seed=4), saved))
        assert group.frames_bcthw is not None and whole[1].frames_bcthw is not None
        assert torch.equal(group.frames_bcthw, whole[1].frames_bcthw)


def test_a_parked_generator_does_not_work_ahead() -> None:
    with pytest.raises(AssertionError, match="parked"):
        video(plan_generation(9), streams=logged_streams()[0], park=torch.device("cpu"))


def test_warming_up_leaves_nothing_behind() -> None:
    plan = plan_generation(9)
    model = video(plan)
    model.warm_up(height=4, width=4)
    assert torch.equal(frames_of(run(model)), frames_of(run(video(plan))))


def groups_of(count: int) -> list[list[Tensor]]:
    values = torch.arange(count * 2, dtype=torch.uint8)
    return [[torch.full((2, 3, 3), int(v), dtype=torch.uint8) for v in pair] for pair in values.split(2)]


def test_pictures_wait_in_two_buffers_and_arrive_whole_in_any_order() -> None:
    engine = LazyCopyEngine()
    copier = BufferedCopier(engine)
    groups = [copier.copy(group) for group in groups_of(5)]
    assert len(engine.buffers) == 2 and engine.waits == 3, "the sender waits for no more than the buffer it needs"
    for number, group in reversed(list(enumerate(groups))):
        assert [int(each.result()[0, 0, 0]) for each in group] == [2 * number, 2 * number + 1]
    assert engine.waits == 5
    assert groups[0][0].result() is groups[0][0].result(), "it can be asked for again"


def test_a_picture_is_waited_for_by_the_thread_that_needs_it() -> None:
    engine = LazyCopyEngine()
    (group,) = [BufferedCopier(engine).copy(group) for group in groups_of(1)]
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(int(group[1].result()[0, 0, 0])))
    assert engine.waits == 0
    thread.start()
    thread.join()
    assert seen == [1] and engine.waits == 1


def test_buffers_follow_the_size_of_the_pictures() -> None:
    engine = LazyCopyEngine()
    copier = BufferedCopier(engine, slots=1)
    small, large = torch.ones((2, 3, 3), dtype=torch.uint8), torch.full((4, 3, 3), 7, dtype=torch.uint8)
    sent = [copier.copy(group) for group in ([small], [small, small], [large], [])]
    assert [picture.result().shape for group in sent for picture in group] == [(2, 3, 3)] * 3 + [(4, 3, 3)]
    assert len(engine.buffers) == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16], ids=["8 bits", "16 bits"])
def test_the_upscaler_sends_the_same_pictures_through_buffers(dtype: type) -> None:
    frames = pictures(19, dtype=dtype)
    plain, buffered = upscaler(), upscaler(copier=BufferedCopier(LazyCopyEngine()))
    state, done = buffered.launch(buffered.init_state(), frames[:5])
    done = list(done)
    for group in (frames[5:13], frames[13:]):
        state, more = buffered.launch(state, group)
        done += more
    expected = upscalers.run(plain, frames)
    assert len(done) == len(expected) == 19
    for one, other in zip(done, expected, strict=True):
        np.testing.assert_array_equal(one.result(), other)
        assert one.result().dtype == dtype


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
def test_every_integer_survives_conversion_to_the_device_and_back(deep: bool) -> None:
    top, dtype = (65535, np.uint16) if deep else (255, np.uint8)
    whole = np.arange(0, top + 1, dtype=dtype)[: (top + 1) // 3 * 3].reshape(1, 1, -1, 3)
    bits = torch.from_numpy(whole.view(np.int16) if deep else whole)
    wide = widen(bits, deep=deep)
    assert torch.equal(wide[0], to_tensor(whole[0])) and float(wide.max()) <= 1
    np.testing.assert_array_equal(as_picture(quantise(wide[0], deep=deep)), whole[0])
    into = torch.zeros_like(wide)
    put_frames(into, [whole[0]])
    assert torch.equal(into, wide)


def test_on_a_cpu_nothing_is_copied_twice() -> None:
    cpu = torch.device("cpu")
    tensor = torch.ones(3)
    assert to_device(tensor, cpu) is tensor and to_host(tensor).result() is tensor
    assert isinstance(copier_for(cpu), HostCopier)


@pytest.mark.gpu
def test_on_a_gpu_lanes_give_the_frames_of_one_lane() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    plan = plan_generation(9)
    plain, ahead = video(plan), video(plan, streams=cuda_streams(device))
    for model in (plain, ahead):
        assert isinstance(model.refiner, Refiner) and model.refiner.sr_dit is not None
        for network in (model.sampler.network, model.refiner.upsampler, model.refiner.sr_dit, model.refiner.decoder):
            network.to(device)
        model.device = device
    for seed in (0, 1):
        assert torch.equal(frames_of(run(ahead, seed=seed)), frames_of(run(plain, seed=seed)))


@pytest.mark.gpu
def test_on_a_gpu_pictures_cross_in_pinned_buffers() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    copier = copier_for(device)
    assert isinstance(copier, BufferedCopier)
    sent = [copier.copy([picture.to(device) for picture in group]) for group in groups_of(5)]
    assert [int(picture.result()[0, 0, 0]) for group in sent for picture in group] == list(range(10))
    bits = np.arange(3 * 64, dtype=np.uint16).reshape(8, 8, 3) * 341
    into = torch.zeros((1, 3, 8, 8), device=device)
    put_frames(into, [bits])
    np.testing.assert_array_equal(as_picture(quantise(into[0], deep=True)), bits)
