"""Film on tapes and discs: repeated fields are detected and removed, and every frame
keeps an exact time."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.video.old_clips import (
    FILM,
    Luma,
    film_pictures,
    interlaced,
    moment,
    telecined,
    telecined_pal,
    woven,
    write,
    write_soft_telecine,
)
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.deinterlacing import times_of, with_deinterlacing
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.probe import ClipInfo, probe


def read(path: Path, choice: str = "auto") -> tuple[ClipInfo, list[Frame], list[str]]:
    """Read a clip with this ``--deinterlace``; return it, its frames and the
    messages."""
    info = with_deinterlacing(probe(path), choice)  # pyright: ignore[reportArgumentType]
    warnings: list[str] = []
    return info, list(read_frames(info, warn=warnings.append)), warnings


PAL = Fraction(25)


def levels(frame: Frame) -> np.ndarray:
    """Return the luma of a grey frame in 8-bit limited range, as it was written."""
    most = 255 if frame.rgb_hwc.dtype == np.uint8 else 65535
    return frame.rgb_hwc[:, :, 1] / most * 219 + 16


def errors(frames: Sequence[Frame], wanted: Sequence[Luma]) -> list[float]:
    """Return the mean absolute difference of each frame from the expected picture."""
    return [float(np.abs(levels(f) - w).mean()) for f, w in zip(frames, wanted, strict=True)]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le"])
@pytest.mark.parametrize("top_first", [True, False], ids=["top first", "bottom first"])
def test_telecined_film_gives_its_own_frames_at_its_own_times(tmp_path: Path, top_first: bool, pix_fmt: str) -> None:
    film = film_pictures(40)
    path = write(tmp_path / "a.mkv", telecined(film, top_first=top_first), pix_fmt=pix_fmt)
    info, frames, warnings = read(path)
    assert info.scan == "telecined" and info.first_field == ("tff" if top_first else "bff") and info.film
    assert info.average_rate == FILM and info.frame_count_estimate == 40
    assert max(errors(frames, film)) < 1.0
    assert frames[0].rgb_hwc.dtype == (np.uint8 if pix_fmt == "yuv420p" else np.uint16)
    # Matroska has rounded the times of the 50 frames to milliseconds; each group of five is split evenly.
    times = [frame.pts * info.time_base for frame in frames]
    assert all(abs(time - number / FILM) < Fraction(1, 1000) for number, time in enumerate(times))
    assert len(warnings) == 1 and "4 for every 5 (23.976 fps)" in warnings[0]


def test_the_frames_of_film_have_exact_times_where_the_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", telecined(film_pictures(40)), codec="libx264", options={"crf": "4"})
    info, frames, _ = read(path)
    assert [frame.pts * info.time_base for frame in frames] == [number / FILM for number in range(40)]
    assert {frame.duration * info.time_base for frame in frames} == {1 / FILM}


def test_a_last_group_that_is_not_whole_keeps_its_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", telecined(film_pictures(40))[:48])
    info, frames, _ = read(path)
    assert len(frames) == 9 * 4 + 3
    assert abs((frames[-1].pts + frames[-1].duration) * info.time_base - 48 / Fraction(30000, 1001)) < Fraction(1, 500)


@pytest.mark.parametrize("skipped", [0, 5, 13, 20])
def test_film_of_24_frames_in_25_gives_its_own_frames(tmp_path: Path, skipped: int) -> None:
    film = [moment(2.08 * number) for number in range(120)]
    path = write(tmp_path / "a.mp4", telecined_pal(film)[skipped:], rate=PAL, codec="libx264", options={"crf": "4"})
    info, frames, warnings = read(path)
    assert info.scan == "telecined25" and info.film and info.average_rate == 24
    first = min(range(120), key=lambda number: float(np.abs(levels(frames[1]) - film[number]).mean())) - 1
    whole = 24 * ((125 - skipped) // 25)
    shown = errors(frames[1 : whole - 1], film[first + 1 : first + whole - 1])
    assert max(shown) < 1.5, "whole pictures, none missing or doubled"
    assert [frame.pts * info.time_base for frame in frames[:whole]] == [Fraction(number, 24) for number in range(whole)]
    assert len(warnings) == 1 and "24 for every 25 (24.000 fps)" in warnings[0]


def test_a_clip_that_becomes_interlaced_where_it_was_not_sampled_is_reported(tmp_path: Path) -> None:
    clean = [moment(number) for number in range(130)]
    path = write(tmp_path / "a.mkv", [*clean, *interlaced(240)], codec="mpeg4", options={"qmin": "2", "qmax": "2"})
    info, frames, warnings = read(path)
    assert info.scan == "progressive" and len(frames) == 370
    (warning,) = warnings
    assert "from about 5.00 s on" in warning and "--deinterlace frame" in warning
    assert read(path, "off")[2] == []
    assert not [line for line in read(path, "frame")[2] if "not detected" in line]


@pytest.mark.parametrize("film_first", [True, False])
def test_where_only_parts_are_film_every_frame_is_kept(tmp_path: Path, film_first: bool) -> None:
    film, video = film_pictures(48), interlaced(60)
    parts = [*telecined(film), *video] if film_first else [*video, *telecined(film)]
    info, frames, warnings = read(write(tmp_path / "a.mkv", parts))
    assert info.scan == "mixed" and not info.film and len(frames) == 120
    assert len(warnings) == 1 and "in parts of the clip only" in warnings[0]
    of_film = frames[:58] if film_first else frames[62:]
    found = [min(float(np.abs(levels(frame) - picture).mean()) for picture in film) for frame in of_film]
    assert max(found) < 1.0


@pytest.mark.parametrize("top_first", [True, False], ids=["top first", "bottom first"])
def test_film_that_is_a_field_late_gives_its_own_frames(tmp_path: Path, top_first: bool) -> None:
    pictures = [moment(2 * number) for number in range(41)]
    fields = [picture for picture in pictures for _ in range(2)][1:]
    info, frames, warnings = read(write(tmp_path / "a.mkv", woven(fields, top_first=top_first), rate=Fraction(25)))
    assert info.scan == "shifted" and len(frames) == 40
    assert len(warnings) == 1 and "two neighbouring pictures" in warnings[0]
    assert max(errors(frames[1:-1], pictures[1:39])) < 1.0


def test_film_is_left_alone_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", telecined(film_pictures(40)))
    info, frames, warnings = read(path, "off")
    assert len(frames) == 50 and not info.film and warnings == []
    assert len(read(path, "frame")[1]) == 50 and len(read(path, "field")[1]) == 100


@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=23), cuts=st.lists(st.integers(0, 22), max_size=2))
def test_times_of_film_grow_and_cover_the_clip(lengths: list[int], cuts: list[int]) -> None:
    info = ClipInfo.__new__(ClipInfo)
    object.__setattr__(info, "film", True)
    object.__setattr__(info, "scan", "telecined")
    times, found, pts, held = times_of(info), list[tuple[int, int]](), 0, 0
    for number, duration in enumerate(lengths):
        if number in cuts:  # the filters restart and return what they hold
            found += times.take(held)
            held = 0
        times.push(pts, duration)
        pts, held = pts + duration, held + 1
        if held == 5:
            found += times.take(4)
            held = 0
    found += times.take(held)
    assert found[0][0] == 0 and sum(found[-1]) == 4 * pts and times.frames == 0
    assert all(start + lasts == following for (start, lasts), (following, _) in pairwise(found))
    assert all(lasts > 0 for _, lasts in found)


# Discs


@pytest.mark.parametrize("suffix", [".m2v", ".vob", ".ts", ".mkv"])
def test_frames_of_a_disc_have_the_times_of_their_flags(tmp_path: Path, suffix: str) -> None:
    info, frames, warnings = read(write_soft_telecine(tmp_path / f"a{suffix}", film_pictures(48)))
    assert info.average_rate == FILM and info.scan == "progressive"
    field = Fraction(1001, 60000)
    start = frames[0].pts * info.time_base
    rounding = Fraction(1, 900) if suffix == ".mkv" else info.time_base
    shown = [sum((3, 2)[n % 2] for n in range(number)) for number in range(49)]
    times = [frame.pts * info.time_base - start for frame in frames]
    assert len(times) == 48
    assert all(abs(time - fields * field) <= rounding for time, fields in zip(times, shown, strict=False))
    assert abs((frames[-1].pts + frames[-1].duration) * info.time_base - start - 120 * field) <= 2 * rounding
    assert len(warnings) == 1 and "soft telecine" in warnings[0]
