"""Damaged inputs through the command: each results in a correct file or a one-line
error, nothing else."""

import json
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests.video.clips import ffmpeg
from tests.video.mutants import mutated
from ultraflash_cli.main import main

PICTURE = ("-f", "lavfi", "-i", "testsrc2=size=32x24:rate=25:duration=0.2")
SOUND = ("-f", "lavfi", "-i", "sine=sample_rate=48000:duration=0.2")
SOURCES = {
    "a.mp4": "-c:v libx264 -preset ultrafast -g 3 -c:a aac",
    "b.mkv": "-c:v libx264 -preset veryfast -bf 2 -c:a libopus",
    "c.webm": "-c:v libvpx-vp9 -cpu-used 8 -c:a libopus",
    "d.ts": "-c:v mpeg2video -q:v 4 -c:a mp2",
    "e.avi": "-c:v mpeg4 -q:v 4 -c:a libmp3lame",
    "f.mov": "-c:v prores_ks -c:a pcm_s16le",
    "g.gif": "-an",
    "h.mpg": "-c:v mpeg1video -c:a mp2",
    "i.nut": "-c:v ffv1 -c:a flac -strict -2",
    "j.mp4": "-c:v libx265 -preset ultrafast -x265-params log-level=none -movflags frag_keyframe+empty_moov -c:a aac",
    "k.y4m": "-an -pix_fmt yuv420p",
    "l.mkv": "-c:v mjpeg -c:a flac",
    "m.flv": "-c:v flv -c:a libmp3lame -ar 44100",
    "n.wmv": "-c:v wmv2 -c:a wmav2",
    "o.3gp": "-c:v h263 -s 128x96 -an",
}
"""File names, and the FFmpeg arguments that make the files to damage."""
COUNT, BATCHES = 300, 5
REFUSALS = {3, 5}
"""Exit codes for an unreadable file and for a size too large for the memory."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("originals")
    for name, arguments in SOURCES.items():
        ffmpeg(*PICTURE, *SOUND, "-shortest", *arguments.split(), str(folder / name))
    return sorted(folder.iterdir())


def mutants(originals: list[Path], folder: Path, seeds: range) -> None:
    """Write a damaged file for each seed; every kind of file meets every kind of damage."""
    for seed in seeds:
        source = originals[seed % len(originals)]
        damage = seed + seed // len(originals)
        (folder / f"{seed:03d}{source.suffix}").write_bytes(mutated(source.read_bytes(), damage))


def frames_shown(path: Path) -> tuple[int, str]:
    """Return the number of frames that the independent reader finds, and its error
    messages."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-xerror", "-i", str(path)]
    arguments = ["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "-"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    return len(lines), done.stderr if done.returncode else ""


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_damaged_file_results_in_a_correct_file_or_one_line(
    originals: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: int
) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    each = COUNT // BATCHES
    mutants(originals, films, range(batch * each, (batch + 1) * each))
    arguments = ["upscale", films, "-o", out, "--res", "2x", "--model", "lite", "--device", "cpu", "--threads", "1"]
    # A damaged GIF with a single picture left counts as a photo and would become a PNG.
    more = ["--codec", "h264", "--keep-going", "--json", "--max-memory", "600M", "--enc-opt", "preset=ultrafast"]
    code, said = main([*map(str, arguments), *more]), capsys.readouterr()
    assert "Traceback" not in said.err, said.err[-3000:]
    reports = [json.loads(line) for line in said.out.splitlines()]
    assert len(reports) == each, "every file has its object"
    failed = [report for report in reports if "error" in report]
    assert code == (9 if failed else 0), said.err[-3000:]
    assert {report["exit_code"] for report in failed} <= REFUSALS, failed
    assert not [report for report in failed if "\n" in report["error"]], "one line"
    written: set[Path] = set()
    for report in reports:
        if "error" in report:
            continue
        path = Path(report["output"])
        written.add(path)
        assert frames_shown(path) == (report["frames_out"], ""), report
        assert report["frames_out"] == report["frames_in"] > 0
    assert {path for path in out.rglob("*") if path.is_file()} == written, "nothing is left of the others"
    assert {path.name for path in out.iterdir()} == {path.name for path in written}
    assert 5 < len(failed) < each - 5, "some damage is fatal and some is not"
    assert all(re.match(r"\d{3}\.", path.name) for path in films.iterdir()), "nor beside the inputs"
