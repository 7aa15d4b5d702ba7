"""`--codec h264_nvenc` as a command: refused in a line where no GPU encodes, named in
reports where one does; encoders in software play the GPU's."""

import json
from pathlib import Path

import av
import pytest

from tests.cli.in_process import replace_model
from tests.jobs.clips import make_clip, timestamps
from tests.jobs.doubler import builder, job, upscale
from tests.video.fake_nvenc import play_nvenc
from ultraflash_cli.errors import DeviceError, Interrupted
from ultraflash_cli.jobs.doctor import Finding, examine
from ultraflash_cli.jobs.events import Event, Started
from ultraflash_cli.main import main
from ultraflash_cli.weights.store import WeightStore

OPTIONS = ("--res", "2x", "--threads", "1")


@pytest.fixture(autouse=True)
def doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_model(monkeypatch, builder())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=30, cut_at=14, uneven=True)


def test_a_machine_without_the_encoder_is_refused_before_any_work(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    play_nvenc(monkeypatch, refusal="Cannot load libcuda.so.1")
    for more in ((), ("--dry-run",)):
        assert main(["upscale", str(source), "--codec", "H264_NVENC", *OPTIONS, *more]) == 4
        out, err = capsys.readouterr()
        assert out == "" and err.splitlines()[-1] == (
            "error: --codec h264_nvenc: the encoder does not open here (Cannot load libcuda.so.1), expected an NVIDIA "
            "GPU with NVENC and its driver; use --codec h264"
        )
    assert [path.name for path in source.parent.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize(
    ("wrong", "meant"), [("h264-nvenc", "h264_nvenc"), ("nvenc_hevc", "hevc_nvenc"), ("nvenc", "h264_nvenc")]
)
def test_other_spellings_are_answered_with_the_right_one(
    source: Path, capsys: pytest.CaptureFixture[str], wrong: str, meant: str
) -> None:
    assert main(["upscale", str(source), "--codec", wrong]) == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_plan_and_result_name_the_encoder_and_the_times_are_kept(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = play_nvenc(monkeypatch)
    played_by = "libx264"  # FFmpeg's name of what plays the encoder
    output = tmp_path / "out.mkv"
    arguments = ["upscale", str(source), "-o", str(output), "--codec", "h264_nvenc", "--crf", "4", *OPTIONS]
    assert main([*arguments, "--json", "--progress", "json"]) == 0
    out, err = capsys.readouterr()
    plan = next(event for event in map(json.loads, err.splitlines()) if event["event"] == "plan")
    assert (plan["codec"], plan["encoder"]) == ("h264", played_by)
    expected = {"name": played_by, "codec": "h264", "crf": 4, "pix_fmt": "yuv444p", "preset": "p5"}
    assert json.loads(out)["encoder"] == expected
    assert timestamps(output) == timestamps(source)
    assert asked and {each["cq"] for each in asked} == {"4"}

    assert main(["explain", str(output)]) == 0
    assert "--codec h264_nvenc" in capsys.readouterr().out


def test_work_of_the_gpu_is_resumed_by_the_gpu_only(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_nvenc(monkeypatch)
    on_gpu = {"codec": "h264_nvenc", "crf": 4}
    with pytest.raises(Interrupted):
        upscale(job(source, tmp_path / "out.mkv", **on_gpu), stop_at=20)

    with monkeypatch.context() as elsewhere:
        play_nvenc(elsewhere, refusal="No capable devices found")
        with pytest.raises(DeviceError, match="No capable devices found"):
            upscale(job(source, tmp_path / "out.mkv", **on_gpu))
    assert upscale(job(source, tmp_path / "out.mkv", **on_gpu)).frames_resumed > 0

    with pytest.raises(Interrupted):
        upscale(job(source, tmp_path / "other.mkv", **on_gpu), stop_at=20)
    events: list[Event] = []
    report = upscale(job(source, tmp_path / "other.mkv", codec="h264", crf=4), events=events)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert report.frames_resumed == 0
    assert "--codec was h264_nvenc and is h264" in str(started.note)


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, object]]:
    """Run a command that must succeed, and return its JSON output."""
    ended = main([*map(str, arguments), "--json"])
    shown = capsys.readouterr()
    assert ended == 0, shown.err
    return [json.loads(line) for line in shown.out.splitlines()]


def test_only_workers_need_the_encoder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, output = tmp_path / "work", tmp_path / "out.mkv"
    with monkeypatch.context() as without:
        play_nvenc(without, refusal="No capable devices found")
        _json(capsys, "plan", source, "-o", output, "--work-dir", work, "--codec", "h264_nvenc", *OPTIONS)
        assert main(["worker", str(work)]) == 4
        assert "the encoder does not open here" in capsys.readouterr().err
    with monkeypatch.context() as with_gpu:
        play_nvenc(with_gpu)
        (unit,) = _json(capsys, "worker", work)
        assert (unit["state"], unit["frames"]) == ("done", 30)
    play_nvenc(monkeypatch, refusal="No capable devices found")
    _json(capsys, "join", work)
    with av.open(str(output)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 30


@pytest.mark.parametrize("refusal", [None, "No capable devices found"])
def test_doctor_says_which_encoders_of_the_gpu_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str | None
) -> None:
    play_nvenc(monkeypatch, refusal=refusal)
    found = {each.name: each for each in examine(tmp_path, WeightStore(tmp_path), waiting="passive")}
    fix = None if refusal is None else "none needed; --codec h264, hevc and av1 are encoded by the CPU"
    assert found["nvenc"] == Finding(
        name="nvenc",
        state="ok" if refusal is None else "note",
        found="h264_nvenc, hevc_nvenc, av1_nvenc open" if refusal is None else f"no encoder of a GPU opens ({refusal})",
        fix=fix,
    )
