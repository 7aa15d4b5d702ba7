"""The Python interface: files, and streams of frames whose state is a value."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ultraflash_cli
from tests.jobs.clips import make_clip
from ultraflash_cli import generate, open_stream, upscale
from ultraflash_cli.errors import ConfigError, InputError, UsageError
from ultraflash_cli.main import main
from ultraflash_cli.video.plain import read_plain_frames

TINY: dict[str, Any] = {"model": "tiny-lite", "device": "cpu", "threads": 1}
SIZE = (32, 48)
"""Height and width of the streams' frames."""


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3)).astype(np.uint8)


def stream(**options: Any) -> ultraflash_cli.FrameStream:
    return open_stream((SIZE[1], SIZE[0]), **TINY | options)


def whole(clip: np.ndarray, **options: Any) -> np.ndarray:
    with stream(**options) as opened:
        return np.concatenate([opened.step(clip), opened.flush()])


def test_a_call_writes_what_the_command_writes_and_says_so(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=6, width=48, height=32)
    heard: list[str] = []
    report = upscale(
        clip,
        tmp_path / "called.mkv",
        res="2x",
        crf=1,
        temp_dir=tmp_path,
        enc_opt={"preset": "ultrafast"},
        on_event=lambda event: heard.append(type(event).__name__),
        **TINY,
    )
    assert (report.frames_in, report.frames_out, report.width, report.height) == (6, 6, 96, 64)
    assert Path(report.output) == tmp_path / "called.mkv"
    assert heard[0] == "Planned" and heard[-1] == "Done"
    told = ["--res", "2x", "--crf", "1", "--enc-opt", "preset=ultrafast", "--model", "tiny-lite"]
    out = tmp_path / "told.mkv"
    assert main(["upscale", str(clip), "-o", str(out), *told, "--device", "cpu", "--threads", "1"]) == 0
    same = [np.stack(list(read_plain_frames(path))) for path in (tmp_path / "called.mkv", out)]
    assert np.array_equal(same[0], same[1])


def test_a_folder_and_no_output_give_made_names(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=2, width=48, height=32)
    (tmp_path / "out").mkdir()
    beside, inside = upscale(clip, res="2x", **TINY), upscale(str(clip), str(tmp_path / "out"), res="2x", **TINY)
    assert Path(beside.output).parent == tmp_path and Path(inside.output).parent == tmp_path / "out"
    made = generate("a red ball", tmp_path / "out", res="480p", seconds=0.2, **TINY)
    assert Path(made.output).parent == tmp_path / "out" and made.frames_out >= 4


def test_none_is_the_default_of_an_option(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=2, width=48, height=32)
    none: dict[str, Any] = dict.fromkeys(("device", "precision", "codec", "crf", "temp_dir", "enc_opt", "fps", "seed"))
    assert upscale(clip, res="2x", **TINY | none).frames_out == 2
    assert generate("a ball", tmp_path / "a.mp4", res="480p", seconds=0.2, init_clip=None, **TINY | none).frames_out
    same = [whole(frames(3), device=device) for device in (None, "auto")]
    assert np.array_equal(same[0], same[1])


def test_wrong_options_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"no option 'sharpness'; it has .*strength"):
        upscale(tmp_path / "in.mp4", sharpness=1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigError, match="strength"):
        upscale(tmp_path / "in.mp4", strength=2)
    with pytest.raises(InputError):
        upscale(tmp_path / "nothing.mp4")
    for wrong in ({"detail": 2.0}, {"seed": -1}, {"threads": 0}, {"guard": 0.5}):
        with pytest.raises(ConfigError):
            stream(**wrong)
    with pytest.raises(UsageError, match="unknown model"):
        stream(model="best")


def test_pushes_of_any_length_give_the_same_frames() -> None:
    clip = frames(11)
    expected = whole(clip)
    assert expected.shape == (11, 2 * SIZE[0], 2 * SIZE[1], 3) and expected.dtype == np.uint8
    with stream() as opened:
        out = [opened.step(clip[i : i + 1]) for i in range(11)]
        out.append(opened.flush())
        assert (opened.frames_in, opened.frames_out) == (11, 11)
    assert np.array_equal(np.concatenate(out), expected)


def test_a_stream_gives_what_a_file_gives(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mkv", frames=9, width=48, height=32)
    report = upscale(clip, tmp_path / "out.mkv", res="2x", codec="ffv1", pix_fmt="bgr0", cuts=False, **TINY)
    assert report.frames_out == 9
    source = np.stack([np.asarray(frame) for frame in read_plain_frames(clip)])
    made = np.stack([np.asarray(frame) for frame in read_plain_frames(tmp_path / "out.mkv")])
    near = np.abs(whole(source).astype(int) - made.astype(int))
    assert np.quantile(near, 0.99) <= 3, "but for the way that a file's colours take"


@pytest.mark.parametrize("at", [1, 4, 7, 11])
def test_a_saved_state_resumes_with_the_same_frames(at: int) -> None:
    clip = frames(11)
    expected = whole(clip)
    first = stream()
    out = [first.step(clip[:at])]
    saved = first.save()
    second = stream(state=saved)
    assert second.frames_in == at
    out += [second.step(clip[at:]), second.flush()]
    assert np.array_equal(np.concatenate(out), expected)


def test_a_state_of_another_stream_is_refused() -> None:
    opened = stream()
    opened.step(frames(3))
    saved = opened.save()
    with pytest.raises(UsageError, match="a different detail, seed"):
        stream(state=saved, detail=0.5, seed=3)
    for wrong in (b"", b"nonsense" * 9, saved[:-7]):
        with pytest.raises(UsageError, match=r"not returned by FrameStream\.save"):
            stream(state=wrong)


def test_an_open_stream_goes_back_to_a_state_or_to_a_scene() -> None:
    clip = frames(11)
    expected = whole(clip)
    opened = stream()
    begun = opened.step(clip[:7])
    saved = opened.save()
    opened.step(clip[7:9])
    opened.load(saved)
    assert (opened.frames_in, opened.frames_out) == (7, len(begun))
    assert np.array_equal(np.concatenate([begun, opened.step(clip[7:]), opened.flush()]), expected)
    opened.step(clip[:2])
    opened.begin_scene(0)
    assert (opened.frames_in, opened.frames_out) == (0, 0)
    assert np.array_equal(np.concatenate([opened.step(clip), opened.flush()]), expected)
    with pytest.raises(UsageError, match="frame numbers start at 0, got -1"):
        opened.begin_scene(-1)


def test_a_flush_ends_a_scene() -> None:
    clip = frames(6)
    opened = stream()
    twice = [np.concatenate([opened.step(clip), opened.flush()]) for _ in range(2)]
    assert np.array_equal(twice[0], twice[1]), "a model without noise draws an equal scene alike"


def test_frames_come_back_in_the_form_they_came_in() -> None:
    clip = frames(5)
    expected = whole(clip)
    opened = stream()
    parts = [opened.step(torch.from_numpy(clip)), opened.flush()]
    assert all(isinstance(part, torch.Tensor) and part.dtype == torch.uint8 for part in parts)
    assert np.array_equal(torch.cat(parts).numpy(), expected)  # pyright: ignore[reportArgumentType]

    opened = stream()
    deep = clip.astype(np.uint16) * 257
    out = np.concatenate([opened.step(deep), opened.flush()])
    assert out.dtype == np.uint16 and np.abs(out / 257 - expected).max() <= 1

    opened = stream()
    floats = np.concatenate([opened.step(deep / 65535), opened.flush()])
    assert floats.dtype == np.float32 and np.abs(floats - out / 65535).max() < 1e-4

    class Spoken:
        """An object that supports DLPack and nothing else."""

        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **options: Any) -> Any:
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.tensor.__dlpack_device__()

    spoken: Any = Spoken(torch.from_numpy(clip))
    opened = stream()
    assert np.array_equal(torch.cat([opened.step(spoken), opened.flush()]).numpy(), expected)  # pyright: ignore


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((2, 32, 47, 3), np.uint8), r"frames must be \[T, 32, 48, 3\], got \[2, 32, 47, 3\]"),
        (np.zeros((32, 48, 3), np.uint8), "frames must be"),
        (np.zeros((1, 32, 48, 3), np.int32), "uint8, uint16 or floats"),
        (np.full((1, 32, 48, 3), 1.5), r"within 0\.\.1"),
        (np.full((1, 32, 48, 3), np.nan), r"within 0\.\.1"),
        ([[1]], "support DLPack, got list"),
    ],
)
def test_other_frames_are_refused(wrong: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stream().step(wrong)


def test_a_scene_has_one_form() -> None:
    opened = stream()
    opened.step(frames(2))
    with pytest.raises(UsageError, match=r"began with uint8 .*frames, got uint16"):
        opened.step(frames(2).astype(np.uint16))
    opened.flush()
    assert opened.step(frames(2).astype(np.uint16)).dtype in (np.uint16, torch.uint16)


def test_importing_the_package_imports_no_torch_and_no_av() -> None:
    code = "import sys, ultraflash_cli; assert not {'torch', 'av', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_options_are_those_of_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    from ultraflash_cli import api

    only_here = {"tag", "cuda_graphs"}
    flags_only = {
        "--output", "--json", "--dry-run", "--keep-going", "--recursive", "--no-tag", "--help", "--quiet",
        "--verbose", "--progress", "--log-file", "--no-color", "--version", "--prompt", "--html", "--serve",
        "--count", "--prompts", "--cuda-graphs", "--no-audio", "--no-cuda-graphs", "--no-cuts",
        "--no-match-colors", "--no-resume", "--no-subs",
        "--executor", "--workers", "--address", "--work-dir", "--unit-frames",
    }  # fmt: skip
    for command, options in (("upscale", api.UpscaleOptions), ("generate", api.GenerateOptions)):
        assert main([command, "--help"]) == 0
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
        names = options.__annotations__ | api._SharedOptions.__annotations__
        known = {"--" + name.replace("_", "-") for name in names if name not in only_here}
        assert known <= flags, f"{command} has no {known - flags}"
        assert {flag for flag in flags - known if flag not in flags_only} == set(), command


def test_every_example_of_the_guide_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (repository / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) >= 5
    make_clip(tmp_path / "in.mp4", frames=6, width=48, height=32)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert {path.name for path in tmp_path.glob("*.mp4")} >= {"in.mp4", "large.mp4"}
