"""What a job asks of the machine."""

import sys
from pathlib import Path

import pytest

from ultraflash_cli.jobs.host import free_bytes, keep_freed_memory, peak_rss_bytes, usable_cores


def test_cores_and_memory_are_counted() -> None:
    assert usable_cores() >= 1
    assert peak_rss_bytes() > 10_000_000


def test_free_space_is_told_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.1)


def test_the_allocator_is_set_where_it_is_glibcs_and_left_alone_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux":
        assert keep_freed_memory()
    monkeypatch.setattr("sys.platform", "darwin")
    assert not keep_freed_memory()
