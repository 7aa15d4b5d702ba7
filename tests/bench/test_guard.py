"""What `--guard` does to upscaled clips."""

from pathlib import Path

import pytest
import torch

from benchmarks import guard
from benchmarks.quality import prepare
from ultraflash_cli.engine.layers.resample import lanczos_upscale
from ultraflash_cli.metrics.ffmpeg import run_ffmpeg


def test_a_limit_counts_departures_and_takes_them_back() -> None:
    grid = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25
    source = torch.nn.functional.interpolate(grid, size=(24, 24), mode="bilinear")
    truth = lanczos_upscale(source, 2)
    picture = truth.clone()
    picture[..., 16:32, 16:32] += 0.2
    loose, strict = (guard.effect(picture, source, truth, levels) for levels in (255, 8))
    assert loose == guard.Effect(beyond=0, after=0, psnr_change=0)
    assert 0.05 < strict.beyond < 0.2 and strict.after < strict.beyond / 4 and strict.psnr_change > 10


def test_parts_of_all_three_show_the_same_place(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    pattern = ["-f", "lavfi", "-i", "testsrc2=size=176x120:rate=25:duration=0.2"]
    run_ffmpeg([*pattern, "-pix_fmt", "yuv420p", "-c:v", "ffv1", str(clip)], what="pattern")
    [case] = prepare(clip, tmp_path, scale=2, frames=2, kinds=["clean"])
    made, source, truth = guard.frames_of(case, (96, 64), 1)
    assert made.shape == truth.shape == (2, 3, 64, 96) and source.shape == (2, 3, 32, 48)
    plain = lanczos_upscale(source, 2)
    aligned, shifted = ((plain - moved).square().mean() for moved in (truth, truth.roll(2, dims=3)))
    assert aligned < 0.5 * shifted
    assert (made - truth).square().mean() < aligned


def test_the_table_has_a_row_for_every_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "clip.mkv"
    pattern = ["-f", "lavfi", "-i", "testsrc2=size=128x96:rate=25:duration=0.2"]
    run_ffmpeg([*pattern, "-pix_fmt", "yuv420p", "-c:v", "ffv1", str(clip)], what="pattern")
    assert guard.main(["--clips", str(tmp_path), "--frames", "2", "--size", "96", "64"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| `--guard` | clean: beyond, after, PSNR | deg: beyond, after, PSNR |"
    assert [row.split("|")[1].strip() for row in rows] == [str(levels) for levels in guard.LEVELS]
