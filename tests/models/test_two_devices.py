"""One clip generated on two devices: the choice of devices, a memory plan for each, what
happens when one of them is full, and the same file as on one."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.published import DTYPES
from tests.jobs.clips import decoded
from tests.jobs.generating import builder, fake, generate, job
from ultraflash_cli.engine.bridge import HostStream
from ultraflash_cli.engine.footprint.plan import PairedPlan
from ultraflash_cli.engine.gpu_streams import CudaStream
from ultraflash_cli.engine.profiles import LITE, ULTRAFLASH
from ultraflash_cli.errors import ConfigError, DeviceError, Interrupted, OutOfMemory, UsageError
from ultraflash_cli.jobs import doctor
from ultraflash_cli.jobs.events import Event, Retrying, Started
from ultraflash_cli.jobs.planning.generate import GenerateJob, PreparedGeneration
from ultraflash_cli.jobs.running import loader, report
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.jobs.running.prepare import prepare_generation
from ultraflash_cli.models import memory
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.device import choose_device, choose_devices
from ultraflash_cli.models.frames import FrameGenerator
from ultraflash_cli.models.memory import describe_memory, plan_generation_memory, plan_paired_memory
from ultraflash_cli.models.oom import oom_errors

CPU = torch.device("cpu")
GPUS = (torch.device("cuda", 0), torch.device("cuda", 1))
GIGABYTE = 10**9


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs that can be named; returns the devices that became the current one."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.fixture
def one_cpu_as_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``cuda:0,cuda:1`` mean the CPU, twice."""
    monkeypatch.setattr(loader, "choose_devices", lambda name: (CPU,) * len(name.split(",")))


@pytest.mark.parametrize("name", ["cuda:0,cuda:1", "cuda,cuda:1"])
def test_the_first_of_two_gpus_becomes_the_current_one(name: str, two_gpus: list[torch.device]) -> None:
    assert choose_devices(name) == GPUS
    assert two_gpus[-1].index in (0, None) and choose_devices("cpu") == (CPU,)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        pytest.param("cuda,cuda:0", UsageError, "one device, named twice", id="a GPU twice"),
        pytest.param("cpu,cpu", UsageError, "one device, named twice", id="a CPU twice"),
        pytest.param("cpu,cuda:1", UsageError, "only one kind", id="two kinds"),
        pytest.param("cuda:0,cuda:1,cuda:2", UsageError, "one device or two, got 3", id="three"),
        pytest.param("cuda:0,cuda:2", DeviceError, "cuda:2: 2 usable CUDA devices", id="not there"),
        pytest.param("xpu:0,xpu:1", DeviceError, "xpu:1: runs `upscale` with lite only", id="cannot generate"),
    ],
)
def test_pairs_that_cannot_be_are_refused(
    name: str, error: type[Exception], message: str, two_gpus: list[torch.device]
) -> None:
    with pytest.raises(error, match=message) as refused:
        choose_devices(name)
    assert "\n" not in str(refused.value) and not str(refused.value).endswith(".")


def test_an_upscale_takes_one_device_in_one_process(two_gpus: list[torch.device]) -> None:
    with pytest.raises(UsageError, match="only a clip to generate can use two devices"):
        choose_device("cuda:0,cuda:1", model="lite")


def paired(scale: int = 3, **options: Any) -> PairedPlan:
    own = dict(ULTRAFLASH.precisions)
    options = {"devices": GPUS, "dtype_of": lambda part: DTYPES[own[part]], **options}
    return plan_paired_memory(ULTRAFLASH, scale=scale, **options)


def test_each_device_has_a_plan_of_what_it_holds() -> None:
    plan = paired(low_frames=True)
    first, second = ({part.name for phase in each.phases for part in phase.parts} for each in plan.plans)
    assert {"text encoder weights", "generator weights", "generator KV ring", "latents generated ahead"} <= first
    assert {"SR transformer weights", "decoder weights", "low-resolution decoder activations"} <= second
    assert first & second == {"latents of the group", "reserve"}
    whole = plan_generation_memory(
        ULTRAFLASH, scale=3, device=GPUS[0], dtype_of=lambda part: DTYPES[dict(ULTRAFLASH.precisions)[part]]
    )
    assert max(plan.totals.values()) < 0.7 * whole.total
    assert abs(plan.state_bytes / whole.state_bytes - 1) < 0.01


def test_each_budget_is_that_of_its_device() -> None:
    roomy = 80 * GIGABYTE
    plan = paired(budgets=(16 * GIGABYTE, roomy))
    assert plan.settings.offload_text and plan.warnings == () and plan.settings.kv_len == 3
    plan = paired(budgets=(roomy, 24 * GIGABYTE))
    assert not plan.settings.offload_text and plan.settings.decode_latents is None
    assert plan.warnings == ("for lack of memory: SR transformer remembers 2 of 3 blocks",)
    assert not plan.settings.offload_generator, "it is not in the way"


@pytest.mark.parametrize("full", [0, 1])
def test_a_device_that_is_too_small_is_named(full: int) -> None:
    budgets = [80 * GIGABYTE] * 2
    budgets[full] = 5 * GIGABYTE
    with pytest.raises(OutOfMemory, match=rf"^cuda:{full}: the smallest plan needs .* 5\.00 GB may be used") as refused:
        paired(budgets=budgets)
    assert refused.value.exit_code == 5


def test_a_plan_for_two_names_both_devices_for_people_and_programs() -> None:
    plan = paired(budgets=(24 * GIGABYTE, 80 * GIGABYTE))
    lines = describe_memory(plan)
    assert lines[0].startswith("memory of cuda:0: 21.83 GB of 24.00 GB at the peak")
    assert any(line.startswith("memory of cuda:1: 27.") and "of 80.00 GB" in line for line in lines)
    told = plan.as_json()
    assert told["device"] == "cuda:0" and told["total_bytes"] == plan.totals["cuda:0"]
    assert told["second"]["device"] == "cuda:1" and told["second"]["total_bytes"] == plan.totals["cuda:1"]


def test_a_limit_is_for_every_device_or_one_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((40 - 10 * device.index) * GIGABYTE, 0))
    for text, expected in ((None, [40, 30]), ("35G", [35, 30]), ("20G,25G", [20, 25])):
        assert memory.memory_budgets(GPUS, text) == [count * GIGABYTE for count in expected]
    job = GenerateJob(prompt="a corgi", device="cuda:0,cuda:1", max_memory="20G,25G")
    for device, limit in (("cuda:0", "20G,25G"), ("cuda:0,cuda:1", "1G,2G,3G"), ("cuda:0,cuda:1", "20G,much")):
        with pytest.raises(UsageError, match="--max-memory"):
            replace(job, device=device, max_memory=limit)


def test_memory_that_runs_out_on_one_device_is_named_and_only_that_one_gets_less() -> None:
    sizes = {"cuda:0": 20 * GIGABYTE, "cuda:1": 10 * GIGABYTE}
    torch_says = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 9.00 GiB"
    words = r"^out of memory on cuda:1; close other programs"
    with pytest.raises(OutOfMemory, match=words) as full, oom_errors(20 * GIGABYTE, by_device=sizes):
        raise torch.OutOfMemoryError(torch_says)
    assert full.value.planned_bytes == sizes["cuda:1"]
    assert full.value.retry_within == f"{sizes['cuda:0']},{sizes['cuda:1'] - 1}"
    words = r"^out of memory; close"
    with pytest.raises(OutOfMemory, match=words) as unknown, oom_errors(20 * GIGABYTE, by_device=sizes):
        raise torch.OutOfMemoryError("an allocation failed")
    assert unknown.value.retry_within == f"{sizes['cuda:0'] - 1},{sizes['cuda:1']}"
    with pytest.raises(OutOfMemory, match="on cuda:1") as last, oom_errors(None, by_device=sizes):
        raise torch.OutOfMemoryError(torch_says)
    assert last.value.planned_bytes is None


def test_a_job_tries_again_with_less_on_the_device_that_was_full(tmp_path: Path) -> None:
    asked: list[str | None] = []
    events: list[Event] = []

    def build(prepared: PreparedGeneration) -> Built[FrameGenerator]:
        asked.append(prepared.job.max_memory)

        class Full:
            group_frames = fake(prepared).group_frames

            def init_state(self, **_: object) -> None:
                raise torch.OutOfMemoryError("CUDA out of memory. GPU 1 has a total capacity of 9.00 GiB")

        plan: dict[str, Any] = {"planned_bytes": 9000, "planned_by_device": {"cuda:0": 9000, "cuda:1": 7000}}
        made = replace(builder()(prepared), **plan)
        return made if len(asked) > 1 else replace(made, model=Full())

    generate(job(tmp_path, seconds=1, device="cuda:0,cuda:1"), build=build, events=events)
    assert asked == [None, "9000,6999"]
    (retry,) = [event for event in events if isinstance(event, Retrying)]
    assert "memory ran out on cuda:1 under a plan" in retry.message and retry.planned_bytes == 7000


def made(folder: Path, **options: Any) -> GenerateJob:
    settings: dict[str, Any] = {"prompt": "a corgi", "model": "tiny-random", "threads": 1, "seconds": 2, "res": "1k"}
    return GenerateJob(output=folder / "out.mkv", codec="ffv1", overwrite=True, **(settings | options))


@pytest.mark.usefixtures("one_cpu_as_two")
def test_a_file_made_on_two_devices_is_that_of_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_lr": True, "tag": False, "output": tmp_path / "two.mkv"}
    one = replace(made(tmp_path, device="cpu"), **options)
    two = replace(one, device="cuda:0,cuda:1")
    build = Models().generator
    told = generate(two, build=build)
    assert told.device == "cpu,cpu" and told.seconds_by_stage is not None
    assert told.seconds_by_stage.keys() >= {"generator", "upsampler", "sr_dit", "decoder", "finish"}
    files = [tmp_path / "two.mkv", tmp_path / "two_480p.mkv"]
    contents = [file.read_bytes() for file in files]
    assert generate(one, build=build).device == "cpu"
    assert [file.read_bytes() for file in files] == contents


@pytest.mark.usefixtures("one_cpu_as_two")
def test_a_job_on_two_devices_goes_on_after_an_interruption_and_begins_again_on_other_devices(tmp_path: Path) -> None:
    two = made(tmp_path, seconds=4, device="cuda:0,cuda:1")
    build = Models().generator
    with pytest.raises(Interrupted):
        generate(two, build=build, stop_at=20)
    assert generate(two, build=build).frames_resumed > 0
    whole = decoded(tmp_path / "out.mkv")
    with pytest.raises(Interrupted):
        generate(two, build=build, stop_at=20)
    events: list[Event] = []
    generate(replace(two, device="cpu"), build=build, events=events)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.frames_resumed == 0 and "--device was cpu,cpu and is cpu" in str(started.note)
    again = decoded(tmp_path / "out.mkv")
    assert len(whole) == len(again) and all((a == b).all() for a, b in zip(whole, again, strict=True))


def test_generator_and_text_encoder_are_on_the_first_device_and_the_rest_on_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, set[torch.device]] = {}
    job = made(tmp_path, device="cuda:0,cuda:1", save_lr=True)
    prepared = prepare_generation(job, to_write=False)
    models = Models()
    shelf = models._shelf(None)
    take = shelf.take

    def on_cpu(profile: Any, part: str, config: Any, *, device: torch.device, **options: Any) -> Any:
        taken.setdefault(part, set()).add(device)
        return take(profile, part, config, device=CPU, **options)

    monkeypatch.setattr(loader, "choose_devices", lambda _name: GPUS)
    monkeypatch.setattr(memory, "memory_budget", lambda *_: None)
    monkeypatch.setattr(shelf, "take", on_cpu)
    monkeypatch.setattr(loader, "embed_prompts", lambda *_, device, **__: [torch.zeros(1, 1, 24) if device else None])
    warmed: list[str] = []
    monkeypatch.setattr(
        "ultraflash_cli.engine.text_to_video.TextToVideo.warm_up", lambda *_, **__: warmed.append("warm")
    )
    monkeypatch.setattr("ultraflash_cli.engine.clock.wait_for", lambda device: warmed.append(str(device)))
    for name in ("Stream", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments: arguments)
    built = models.generator(prepared)
    video: Any = built.model
    video = video._video
    assert built.device == "cuda:0,cuda:1" and built.planned_by_device.keys() == {"cuda:0", "cuda:1"}
    later = ("upsampler", "sr_dit", "decoder")
    assert taken == {"generator": {GPUS[0]}} | {part: {GPUS[1]} for part in later}
    assert (video.frames_device, video.streams, video.park) == (GPUS[1], None, None)
    assert isinstance(video.bridge.source, CudaStream) and isinstance(video.bridge.target, CudaStream)
    recorders = [graphs._recorder._device for graphs in (video.sampler.graphs, video.refiner.graphs)]
    assert recorders == list(GPUS)
    assert warmed == ["warm", "cuda:0", "cuda:1"]


def test_the_peak_of_two_devices_is_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {"cuda:0": 3, "cuda:1": 4}.__getitem__)
    assert [report._peak_vram_bytes(device) for device in ("cuda:1", "cuda:0,cuda:1", "cpu")] == [4, 7, None]


def test_a_plan_on_the_host_needs_no_streams() -> None:
    plan = plan_paired_memory(LITE, scale=2, devices=(CPU, CPU), dtype_of=lambda _: torch.float32)
    assert asdict(plan.settings)["kv_len"] is not None
    stream = HostStream()
    with stream.as_current():
        stream.wait_for(stream)
        stream.record_use([])


def test_the_options_of_a_job_take_two_devices_and_no_other_list() -> None:
    assert GenerateJob(prompt="a corgi", device="cuda:0,cuda:1").device == "cuda:0,cuda:1"
    for device in ("cuda:0,tpu", "cuda:0,", "auto,cuda:1"):
        with pytest.raises(ConfigError, match="--device must be"):
            GenerateJob(prompt="a corgi", device=device)


def test_doctor_tells_that_two_gpus_can_generate_one_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 140 * GIGABYTE

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: Properties)
    for count, ending in ((1, "cuda:0 GPU 0 (140 GB)"), (2, "on two (--device cuda:0,cuda:1)")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        found = doctor._gpu().found
        assert found.endswith(ending), found
