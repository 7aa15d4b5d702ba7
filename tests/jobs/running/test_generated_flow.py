"""Frames of a generated clip through the threads, and the lengths of its segments."""

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.fakes import FakeGenerator, TextSegment
from tests.jobs.running.flows import text
from ultraflash_cli.buffers import segment_length
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.running.generating import make_frames, segment_ends
from ultraflash_cli.jobs.running.segments import Busy
from ultraflash_cli.jobs.running.stop import Stop


def make(
    folder: Path,
    generator: FakeGenerator,
    *,
    frames: int | None = None,
    stop_at: int | None = None,
    show: Callable[[int], Iterator[tuple[int, int]]] = lambda number: iter([(number, 1)]),
    keep_states: bool = True,
    segment_frames: int = 8,
) -> tuple[Journal, dict[str, int]]:
    """Generate into `folder`, requesting a stop once `stop_at` frames are made."""
    folder.mkdir(exist_ok=True)
    journal, stop = Journal(folder, {"seed": 1}), Stop()

    def on_group(done: int) -> None:
        if stop_at is not None and done >= stop_at:
            stop.request()

    counters = make_frames(
        generator,
        journal,
        lambda path: [TextSegment(path)],
        output=folder / "out.mp4",
        frames=frames or sum(generator.group_frames),
        show=show,
        seed=1,
        clip=None,
        frame_bytes=1,
        stop=stop,
        busy=Busy(),
        on_group=on_group,
        keep_states=keep_states,
        segment_frames=segment_frames,
    )
    return journal, counters


GROUPS = (5, 6, 6, 6, 6, 3)


def test_every_group_is_made_once_and_cut_to_the_length_that_was_asked_for(tmp_path: Path) -> None:
    generator = FakeGenerator(GROUPS)
    journal, counters = make(tmp_path / "a", generator, frames=30)
    assert journal.complete
    assert [line.split()[0] for line in text(journal).splitlines()] == [str(number) for number in range(30)]
    assert [entry.end_frame for entry in journal.segments] == [11, 30]
    assert generator.steps == 6
    assert counters == {"generator_passes": 30}


@pytest.mark.parametrize("stops", [[1], [12], [17, 17], [30], [32], [5, 11, 17, 23, 29]], ids=str)
def test_interrupted_generation_produces_the_frames_of_an_uninterrupted_one(tmp_path: Path, stops: list[int]) -> None:
    whole, _ = make(tmp_path / "whole", FakeGenerator(GROUPS), segment_frames=6)
    for stop_at in stops:
        make(tmp_path / "broken", FakeGenerator(GROUPS), stop_at=stop_at, segment_frames=6)
    rest = FakeGenerator(GROUPS)
    broken, _ = make(tmp_path / "broken", rest, segment_frames=6)
    assert broken.complete
    assert text(broken) == text(whole)
    assert [entry.end_frame for entry in broken.segments] == [entry.end_frame for entry in whole.segments]
    assert rest.steps == {1: 5, 32: 0}.get(stops[0], rest.steps)


def test_no_state_is_saved_where_none_is_needed(tmp_path: Path) -> None:
    generator = FakeGenerator(GROUPS)
    make(tmp_path / "a", generator)
    assert generator.saved == 2, "the last of three segments needs none"
    unwanted = FakeGenerator(GROUPS)
    make(tmp_path / "b", unwanted, keep_states=False)
    assert unwanted.saved == 0


def test_frames_are_dropped_and_repeated_as_requested(tmp_path: Path) -> None:
    half, _ = make(tmp_path / "half", FakeGenerator(GROUPS), show=lambda n: iter([(n, 2)] if n % 2 == 0 else []))
    double, _ = make(tmp_path / "double", FakeGenerator(GROUPS), show=lambda n: iter([(2 * n, 1), (2 * n + 1, 1)]))
    plain, _ = make(tmp_path / "plain", FakeGenerator(GROUPS))
    values = [line.split()[2] for line in text(plain).splitlines()]
    assert [line.split()[2] for line in text(half).splitlines()] == values[::2]
    assert [line.split()[2] for line in text(double).splitlines()] == [value for value in values for _ in range(2)]


def test_a_failing_generator_ends_the_run_with_its_own_error_and_keeps_segments(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        make(tmp_path / "a", FakeGenerator(GROUPS, fails_at=4))
    assert Journal(tmp_path / "a", {"seed": 1}).frames == 23


@given(groups=st.lists(st.integers(1, 30), min_size=1, max_size=20), least=st.integers(1, 60))
def test_no_segment_of_a_generated_clip_is_too_short(groups: list[int], least: int) -> None:
    borders = list(accumulate(groups))
    ends = segment_ends(borders, least)
    assert ends[-1] == borders[-1]
    lengths = [end - start for start, end in pairwise([0, *ends])]
    assert all(length >= min(least, borders[-1]) for length in lengths)
    assert all(length < 3 * max(least, *groups) for length in lengths)


def test_the_length_of_a_segment_follows_from_sizes_alone() -> None:
    assert segment_length(72, 0) == 72
    assert segment_length(72, 17_000_000_000) == 676
