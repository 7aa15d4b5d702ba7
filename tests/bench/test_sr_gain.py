"""What the SR transformer adds to whole clips."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import sr_gain
from benchmarks.cascade import held_out_scenes
from benchmarks.likeness import is_there
from ultraflash_cli.engine.profiles import TINY_LITE
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.latents import training_scene
from ultraflash_cli.train.validation import scores_of

SIZE = 96, 160
needs_distance = pytest.mark.skipif(not is_there(), reason="needs stlpips-pytorch")


def drawn(number: int, frames: int) -> torch.Tensor:
    renderer = Renderer(training_scene(0, number), height_px=SIZE[0], width_px=SIZE[1])
    shown = np.stack([renderer.frame(i / 16) for i in range(frames)])
    return torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255


def blurred(frames: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(frames, 3, 1, 1, count_include_pad=False)


def in_groups(truth: torch.Tensor, *lengths: int) -> Iterator[sr_gain.Group]:
    for part in truth.split(lengths):
        yield part, {"without": blurred(part), "with": part.clone()}


def test_both_arms_and_the_renderer_show_the_same_moments() -> None:
    height, width = (2 * side for side in TINY_LITE.base_size)
    groups = list(sr_gain.groups_of(Shelf(), TINY_LITE, 1003, seconds=1))
    truth = torch.cat([group[0] for group in groups])
    made = {name: torch.cat([group[1][name] for group in groups]) for name in sr_gain.ARMS}
    assert truth.shape == made["with"].shape == made["without"].shape == (21, 3, height, width)
    renderer = Renderer(training_scene(0, 1003), height_px=height, width_px=width)
    for frame in (0, 20):
        expected = torch.from_numpy(renderer.frame(frame / 16)).permute(2, 0, 1) / 255
        torch.testing.assert_close(truth[frame], expected)
    assert not torch.equal(made["with"], made["without"])


@needs_distance
def test_the_renderer_s_own_frames_are_perfect_and_blurred_ones_are_not() -> None:
    number = held_out_scenes(1)[0]
    clips = sr_gain.measured(number, in_groups(drawn(number, 33), 17, 16), torch.float32)
    exact, soft = clips["with"], clips["without"]
    assert exact.alex == exact.vgg == exact.change == 0 and exact.edges == 1
    assert exact.unsteady == exact.unsteady_drawn == soft.unsteady_drawn
    assert soft.alex > 0 and soft.vgg > 0 and soft.change > 0 and soft.edges < 0.5


@needs_distance
def test_numbers_do_not_depend_on_the_groups() -> None:
    number = held_out_scenes(1)[0]
    truth = drawn(number, 17)
    whole, parts = (
        sr_gain.measured(number, in_groups(truth, *lengths), torch.float32)["without"] for lengths in ([17], [5, 8, 4])
    )
    scores = scores_of(blurred(truth).transpose(0, 1)[None], truth.transpose(0, 1)[None])
    for clip in (whole, parts):
        found = clip.psnr, clip.edges, clip.change
        assert found == pytest.approx((scores.psnr, scores.edges, scores.change), rel=1e-4)
    assert parts.alex == pytest.approx(whole.alex, rel=1e-4) and parts.right == whole.right
    assert parts.unsteady == pytest.approx(whole.unsteady, rel=1e-6)


@needs_distance
def test_a_second_run_takes_kept_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    measured: list[int] = []

    def groups(shelf: object, profile: object, number: int, *, seconds: float) -> Iterator[sr_gain.Group]:
        measured.append(number)
        return in_groups(drawn(number, 9), 9)

    monkeypatch.setattr(sr_gain, "groups_of", groups)
    monkeypatch.setattr(sr_gain, "taken_from", lambda _: (Shelf(), TINY_LITE))
    options = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "gain.json")]
    assert sr_gain.main(["--count", "1", *options]) == 0
    assert sr_gain.main(["--count", "2", *options]) == 0
    assert measured == held_out_scenes(2)
    *_, without, with_it = capsys.readouterr().out.splitlines()
    assert without.startswith("| without |") and with_it.startswith("| with |")
    found = json.loads((tmp_path / "gain.json").read_text())
    assert found["settings"]["scenes"] == measured and len(found["clips"]) == 2
    assert found["lower_with"] == {"alex": 2, "vgg": 2}
    assert found["summary"]["with"]["edges"] == 1 and found["summary"]["with"]["unsteady_ratio"] == 1
