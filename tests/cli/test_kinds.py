"""Every kind of file through the command, each result compared with its source by another program."""

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.cli.cases import (
    CASES,
    MATERIAL,
    MOVING,
    QUICK,
    REFUSED,
    X264,
    Case,
    made,
)
from tests.cli.independent import Seen, Track, look
from tests.jobs.doubler import builder
from tests.video.clips import SUBTITLES, ffmpeg
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main


@dataclass(frozen=True)
class Batch:
    """The results of one command for all cases."""

    source: Path
    reports: dict[str, dict[str, Any]]
    said: str
    code: int


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    (folder / "a.srt").write_text(SUBTITLES)
    parts = [f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={n * 200}\nEND={n * 200 + 200}\ntitle=Part {n}\n" for n in range(2)]
    (folder / "chapters").write_text(f";FFMETADATA1\ntitle=A title\nartist=Some\ncamera=Mine\n{''.join(parts)}")
    for name, arguments in MATERIAL.items():
        ffmpeg(*arguments.split(), str(folder / name))
    return folder


@pytest.fixture(scope="module")
def batch(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    folder = tmp_path_factory.mktemp("kinds")
    for case in CASES:
        case.make(folder / case.name, material)
    for name, (make, _) in REFUSED.items():
        make(folder / name, material)
    files = [str(folder / name) for name in (*(case.name for case in CASES), *REFUSED)]
    command = [sys.executable, "-m", "ultraflash_cli", "upscale", *files, "-o", str(folder / "out"), "--res", "2x"]
    done = subprocess.run(
        [*command, *QUICK, "--keep-going", "--json", "-q"], capture_output=True, text=True, timeout=600
    )
    reports = {Path(report["input"]).name: report for report in map(json.loads, done.stdout.splitlines())}
    return Batch(source=folder, reports=reports, said=done.stderr, code=done.returncode)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_comes_out_is_what_came_in(tmp_path: Path, batch: Batch, case: Case) -> None:
    report, source = batch.reports[case.name], batch.source / case.name
    assert "error" not in report, report["error"]
    output = Path(report["output"])
    decoder = {True: "libvpx-vp9"}
    before = look(
        source,
        tmp_path,
        decoder=decoder.get(case.alpha and source.suffix == ".webm", ""),
        before=case.before,
        scaling=case.scaling,
    )
    after = look(output, tmp_path, decoder=decoder.get(case.alpha and output.suffix == ".webm", ""))
    assert not case.suffix or output.suffix == case.suffix
    said = " ".join(report["warnings"])
    assert case.says in said
    same_picture(case, before, after)
    if case.times:
        moved = same_times(case, source, output, before, after, said)
        same_tracks(case, source, before, after, moved)
        assert before.tags.items() <= after.tags.items()
        assert [(start + moved, end + moved, title) for start, end, title in before.chapters] == list(after.chapters)


def same_picture(case: Case, before: Seen, after: Seen) -> None:
    assert after.size == (2 * before.size[0], 2 * before.size[1])
    assert (after.aspect, after.turn) == (before.aspect, before.turn)
    assert after.bits >= min(before.bits, 12)
    if not before.pix_fmt.startswith(("rgb", "bgr", "gbr", "argb", "xyz", "pal", "mono")):
        assert before.colors <= after.colors
    for words in case.keeps:
        assert words in before.picture
        assert words in after.picture
    # A different reader may drop fewer frames of a damaged file.
    assert case.times is False or len(before.pictures) == len(after.pictures)
    count = min(len(before.pictures), len(after.pictures))
    a, b = before.pictures[:count], after.pictures[:count]
    opaque = a[..., 3:] / 255 if case.alpha else np.ones(1)
    assert np.abs((a[..., :3] - b[..., :3]) * opaque).mean() < case.levels
    assert np.abs(a[..., 3] - b[..., 3]).mean() < (3 if case.alpha else 256)


def same_times(case: Case, source: Path, output: Path, before: Seen, after: Seen, said: str) -> Fraction:
    """Compare the times of frames; return the common delay."""
    exact = output.suffix not in (".mkv", ".webm") or source.suffix in (".mkv", ".webm")
    slack = Fraction(0) if exact else Fraction(1, 1000)
    moved = after.times[0] - before.times[0]
    assert abs(moved) <= slack or "later" in said or "clock" in said
    assert max(abs(b - a - moved) for a, b in zip(before.times, after.times, strict=True)) <= slack
    assert case.late_end or abs(after.end - before.end - moved) <= Fraction(2, 1000)
    return moved


def same_tracks(case: Case, source: Path, before: Seen, after: Seen, moved: Fraction) -> None:
    left = list(after.tracks)
    for track in before.tracks:
        if track.codec in case.left_out or track.kind == "Data":
            continue
        twin = twin_of(track, left, hashed=not (source.suffix == ".ts" and track.codec == "aac"))
        left.remove(twin)
        assert twin.language in (track.language, "und")
        if len(track.times) > 1:
            slack = Fraction(1, 1000) if source.suffix != Path(case.suffix or source).suffix else Fraction(1, 20000)
            assert max(abs(b - a - moved) for a, b in zip(track.times, twin.times, strict=True)) <= slack
            assert abs(twin.end - track.end - moved) <= Fraction(1, 20)


def twin_of(track: Track, tracks: Sequence[Track], *, hashed: bool) -> Track:
    found = [each for each in tracks if (each.hashes == track.hashes if hashed else each.codec == track.codec)]
    assert found, f"{track.kind} {track.codec} is not there as it was"
    return found[0]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(batch: Batch, name: str) -> None:
    report = batch.reports[name]
    assert report["exit_code"] == 3
    assert REFUSED[name][1] in report["error"].lower() and "\n" not in report["error"]
    assert not list((batch.source / "out").glob(f"{Path(name).stem}*"))


def test_the_batch_says_what_failed_and_leaves_nothing_unfinished(batch: Batch) -> None:
    assert batch.code == 9
    assert f"{len(REFUSED)} of {len(CASES) + len(REFUSED)} files failed" in batch.said.splitlines()[-1]
    assert "Traceback" not in batch.said
    assert not [path.name for path in (batch.source / "out").iterdir() if path.name.startswith(".")]


# Cases that need a separate command


def upscale(*arguments: object) -> int:
    return main(["upscale", *map(str, arguments), *QUICK, "-q"])


@pytest.mark.parametrize("suffix", [".y4m", ".mkv", ".ts"])
def test_a_pipe_gives_what_the_file_gives(
    tmp_path: Path, material: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    source, output = tmp_path / f"a{suffix}", tmp_path / "out.mkv"
    sound = "" if suffix == ".y4m" else "-f lavfi -i sine=r=48000:d=0.2 -c:a ac3"
    made(f"{MOVING.format('0.2')} {sound}{'' if suffix == '.y4m' else ' ' + X264} -pix_fmt yuv420p")(source, material)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(source.read_bytes())))
    assert upscale("-", "-o", output, "--res", "2x", "--temp-dir", tmp_path / "temp") == 0
    before, after = look(source, tmp_path), look(output, tmp_path)
    case = Case(name=source.name, make=made(""), suffix=".mkv")
    same_picture(case, before, after)
    moved = same_times(case, source, output, before, after, "")
    same_tracks(case, source, before, after, moved)
    assert len(after.tracks) == (suffix != ".y4m")


def test_pictures_are_a_clip_by_their_folder_and_by_their_names(tmp_path: Path, material: Path) -> None:
    folder = tmp_path / "shot"
    folder.mkdir()
    made(f"{MOVING.format('0.2')} -start_number 7")(folder / "%05d.png", material)
    for number, source in enumerate(([folder, "--images"], [folder / "%05d.png", "--fps", "10"])):
        output = tmp_path / f"{number}.mp4"
        assert upscale(*source, "-o", output, "--res", "2x") == 0
        after = look(output, tmp_path)
        assert after.times == tuple(Fraction(n, (24, 10)[number]) for n in range(5))
        assert after.size == (128, 96)
    assert upscale(folder, "--images", "-o", tmp_path / "new" / "%03d.png", "--res", "2x") == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"{n:03d}.png" for n in range(7, 12)]
    (folder / "00009.png").unlink()
    assert upscale(folder, "--images", "-o", tmp_path / "gap.mp4", "--res", "2x") == 3


def test_a_damaged_tail_is_refused_where_that_is_asked_for(
    batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mkv"
    assert upscale(batch.source / "a tail cut.mkv", "-o", output, "--res", "2x", "--strict") == 3
    assert "--strict" in capsys.readouterr().err.splitlines()[-1]
    assert not output.exists()


def test_transparency_that_the_output_cannot_hold_is_named(
    batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mp4"
    for extra in ("--dry-run", "--quiet"):
        assert upscale(batch.source / "clear vp9.webm", "-o", output, "--res", "2x", extra) == 0
        assert "transparency is not kept" in capsys.readouterr().err
    assert len(look(output, tmp_path).times) == 5


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "h264"), (".mov", "prores"), (".webm", "vp9"), (".y4m", "y4m")])
def test_every_container_and_codec_can_be_asked_for(batch: Batch, tmp_path: Path, suffix: str, codec: str) -> None:
    source, output = batch.source / "everything.mkv", tmp_path / f"out{suffix}"
    assert upscale(source, "-o", output, "--res", "2x", "--codec", codec) == 0
    before, after = look(source, tmp_path), look(output, tmp_path)
    case = Case(name=source.name, make=made(""))
    same_picture(case, before, after)
    same_times(case, source, output, before, after, "")
    kinds = sorted(track.codec for track in after.tracks if track.kind != "Data")  # chapters are data to FFmpeg
    assert (
        kinds
        == {
            ".mp4": ["aac", "mjpeg", "mov_text", "opus"],
            ".mov": ["aac", "mov_text"],
            ".webm": ["opus", "webvtt"],
            ".y4m": [],
        }[suffix]
    )


def test_a_shape_of_pixels_that_is_not_kept_is_named(
    batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = batch.source / "narrow pixels.mkv"
    for suffix, kept in ((".mp4", True), (".webm", False)):
        assert upscale(source, "-o", tmp_path / f"out{suffix}", "--res", "2x", "--codec", "vp9") == 0
        assert ("cannot be stored" in capsys.readouterr().err) != kept
        assert (look(tmp_path / f"out{suffix}", tmp_path).aspect == Fraction(8, 9)) == kept


def test_a_picture_larger_than_the_target_is_refused_or_reduced_by_a_flag(
    tmp_path: Path, material: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "large.mp4"
    made(f"-f lavfi -i color=gray:size=1280x720:rate=25:duration=0.04 {X264}")(source, material)
    assert upscale(source, "--res", "480p", "--dry-run") == 2
    assert "--downscale" in capsys.readouterr().err
    assert upscale(source, "--res", "480p", "--downscale", "--dry-run") == 0


REAL = "r{:02d}_*"


@pytest.mark.parametrize("number", range(1, 18))
def test_a_part_of_a_real_file_keeps_its_frames_and_tracks(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))
    (source,) = (shared_data / "real").glob(REAL.format(number))
    output = tmp_path / "out.mkv"
    code = upscale(source, "-o", output, "--res", "2x", "--end", "0.2")
    if source.name == "r17_no_moov.mp4":
        assert code == 3 and not output.exists()
        return
    assert code == 0
    after = look(output, tmp_path)
    if source.name == "r13_truncated.mp4":  # the other program reports an error for a truncated file
        assert len(after.times) == 5
        return
    before = look(source, tmp_path, before="bwdif=mode=send_frame:deint=all," if "interlaced" in source.name else "")
    first = before.times[0]
    expected = [time - first for time in before.times if time - first < Fraction(1, 5)]
    shown = [time - after.times[0] for time in after.times]
    assert max(abs(a - b) for a, b in zip(expected, shown, strict=True)) <= Fraction(1, 1000)
    count = len(expected)
    assert (after.aspect, after.turn) == (before.aspect, before.turn)
    assert after.bits >= before.bits and before.colors <= after.colors
    assert np.abs(before.pictures[:count, :, :, :3] - after.pictures[..., :3]).mean() < 4
    assert [track.kind for track in after.tracks] == [track.kind for track in before.tracks if track.kind != "Data"]
    for track in after.tracks:
        assert any(set(track.hashes) <= set(each.hashes) for each in before.tracks)
