"""How far long generated clips depart from their scenes."""

from pathlib import Path

import av
import pytest
import torch

from benchmarks import drift
from benchmarks.likeness import is_there
from ultraflash_cli.engine.profiles import TINY_LITE
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.latents import training_scene


@pytest.mark.parametrize("scale", [1, 2])
def test_every_second_has_a_generated_frame_and_the_scene_s(scale: int) -> None:
    height, width = (scale * side for side in TINY_LITE.base_size)
    [clip] = drift.followed(Shelf(), TINY_LITE, [1003], seconds=3, scale=scale)
    renderer = Renderer(training_scene(0, 1003), height_px=height, width_px=width)
    assert len(clip) == 3
    for second, (made, drawn) in enumerate(clip):
        assert made.shape == drawn.shape == (3, height, width)
        expected = torch.from_numpy(renderer.frame(second + 0.5)).permute(2, 0, 1) / 255
        torch.testing.assert_close(drawn, expected)
    assert not torch.equal(clip[0][0], clip[2][0])


def test_means_are_those_of_five_seconds_and_of_what_remains() -> None:
    assert drift.means_of([1.0] * 5 + [2.0] * 5 + [4.0, 6.0]) == [1.0, 2.0, 5.0]


@pytest.mark.skipif(not is_there(), reason="needs stlpips-pytorch")
def test_the_table_has_a_row_for_every_scene_and_the_sheet_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(drift, "taken_from", lambda _: (Shelf(), TINY_LITE))
    sheet = tmp_path / "sheet.png"
    assert drift.main(["--scenes", "1001", "1002", "--seconds", "6", "--sheet", str(sheet)]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head == "| scene | 0 to 5 s | 5 to 6 s | last / first |" and rule == "|---|---:|---:|---:|"
    assert [row.split(":")[0] for row in rows] == ["| 1001", "| 1002", rows[-1]] and rows[-1].startswith("| mean |")
    height, width = TINY_LITE.base_size
    with av.open(str(sheet)) as opened:
        frame = next(opened.decode(video=0))
    assert (frame.height, frame.width) == (4 * height // 2, 2 * width // 2)
