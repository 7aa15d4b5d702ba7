"""The spool: pictures in memory until a stop, on the disk afterwards."""

from pathlib import Path

import numpy as np
import pytest

from ultraflash_cli.jobs.resume import spool as module
from ultraflash_cli.jobs.resume.spool import Spool, Spooled, spooled
from ultraflash_cli.video.frame import Frame


def call(number: int, *, alpha: bool = False, deep: bool = False) -> Spooled:
    dtype = np.uint16 if deep else np.uint8
    rgb = np.full((4, 6, 3), number, dtype)
    frame = Frame(10 * number, 10, rgb, np.full((4, 6), number, dtype) if alpha else None)
    return Spooled(number % 2, frame)


def same(one: Spooled, other: Spooled) -> bool:
    def as_list(alpha: "np.ndarray | None") -> object:
        return None if alpha is None else alpha.tolist()

    def facts(call: Spooled) -> object:
        frame = call.frame
        return call.sink, frame.pts, frame.duration, frame.rgb_hwc.dtype, as_list(frame.alpha_hw)

    return facts(one) == facts(other) and np.array_equal(one.frame.rgb_hwc, other.frame.rgb_hwc)


def test_nothing_is_written_before_the_stop_and_everything_at_it(tmp_path: Path) -> None:
    path, calls = tmp_path / "begun", [call(0), call(1, deep=True), call(2, alpha=True)]
    with Spool(path) as spool:
        for each in calls:
            spool.record(each)
        assert not path.exists()
        size = spool.finish()
    assert size is not None and size == path.stat().st_size
    assert all(same(a, b) for a, b in zip(spooled(path, size), calls, strict=True))


def test_without_a_stop_nothing_is_left(tmp_path: Path) -> None:
    with Spool(tmp_path / "begun") as spool:
        spool.record(call(0))
    assert not list(tmp_path.iterdir())


def test_more_than_fits_in_memory_goes_to_the_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPOOL_BYTES", 3 * call(0).frame.nbytes)
    path, calls = tmp_path / "begun", [call(number) for number in range(6)]
    with Spool(path) as spool:
        for number, each in enumerate(calls):
            spool.record(each)
            assert path.exists() == (number >= 3)
        size = spool.finish()
    assert size is not None and all(same(a, b) for a, b in zip(spooled(path, size), calls, strict=True))


def test_what_an_earlier_stop_has_kept_stays_in_front(tmp_path: Path) -> None:
    path = tmp_path / "begun"
    with Spool(path) as spool:
        spool.record(call(0))
        size = spool.finish()
    assert size is not None
    with Spool(path, keep_bytes=size) as spool:
        spool.record(call(1))
    assert path.stat().st_size == size
    with Spool(path, keep_bytes=size) as spool:
        spool.record(call(2))
        whole = spool.finish()
    assert whole is not None and [each.frame.pts for each in spooled(path, whole)] == [0, 20]


def test_a_disk_that_refuses_keeps_nothing_and_fails_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path / "no folder" / "begun") as spool:
        spool.record(call(0))
        assert spool.finish() is None
        spool.record(call(1))
        assert spool.finish() is None
