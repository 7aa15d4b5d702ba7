"""Times as users write them."""

from fractions import Fraction

import pytest

from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.planning.window import choose_window, parse_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("12.5", Fraction(25, 2), id="seconds"),
        pytest.param("3s", Fraction(3), id="with-unit"),
        pytest.param("1:02.250", Fraction(249, 4), id="minutes"),
        pytest.param("1:00:00", Fraction(3600), id="hours"),
        pytest.param("25%", Fraction(10), id="percent"),
    ],
)
def test_a_time_is_read_exactly(text: str, seconds: Fraction) -> None:
    assert parse_time(text, duration_s=Fraction(40)) == seconds


@pytest.mark.parametrize("text", ["", "-3", "nan", "1e3", "1:75", "half", "101%", "1:2:3:4"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_time(text, duration_s=Fraction(40))


def test_a_percentage_needs_a_length() -> None:
    with pytest.raises(UsageError, match="length of the input is unknown; use seconds"):
        parse_time("25%", duration_s=None)


def window(start: str | None = None, end: str | None = None, preview: str | None = None) -> object:
    return choose_window(start=start, end=end, preview=preview, clip_start_s=Fraction(1, 2), duration_s=40.0)


def test_a_window_counts_from_the_clips_own_start_exactly() -> None:
    assert window() is None
    assert window("1", "2.5") == (Fraction(3, 2), Fraction(3))
    assert window(preview="3s@25%") == (Fraction(21, 2), Fraction(27, 2))
    assert window(preview="3") == (Fraction(1, 2), Fraction(7, 2))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"start": "2", "end": "2"}, id="empty"),
        pytest.param({"start": "40"}, id="behind-the-end"),
        pytest.param({"start": "1", "preview": "3"}, id="both"),
    ],
)
def test_a_window_without_sense_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        window(**options)
