"""Queries of the machine's resources."""

import os
import sys
import threading
from pathlib import Path

import pytest

from ultraflash_cli.host import (
    free_bytes,
    keep_freed_memory,
    keep_scheduling,
    peak_rss_bytes,
    running_threads,
    shortage,
    usable_cores,
)


def test_cores_and_memory_are_counted() -> None:
    assert usable_cores() >= 1
    assert peak_rss_bytes() > 10_000_000


def test_no_more_threads_run_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert [running_threads(wanted) for wanted in (1, 4, 999)] == [1, 4, 4]
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert running_threads(3) == 3


def group_files(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


V1 = "11:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        pytest.param({}, 8, id="no groups"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8, id="no limit"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2, id="two"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2, id="one and a half"
        ),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "5000 50000\n"}, 1, id="a tenth"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 8, id="sixteen"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/user.slice/a.scope\n",
                "sys/fs/cgroup/user.slice/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/user.slice/a.scope/cpu.max": "max 100000\n",
            },
            3,
            id="of the group around",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000\n",
            },
            4,
            id="version 1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
            id="version 1 from inside",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
            id="version 1 without a limit",
        ),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "\xff 0\n"}, 8, id="nonsense"),
    ],
)
def test_a_container_s_share_of_processor_time_bounds_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores(group_files(tmp_path, files)) == cores


def test_free_space_is_reported_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.1)


@pytest.mark.parametrize(
    ("free", "needed", "said"),
    [
        (120_400_000, 900_000_000, "120 MB free, about 900 MB are needed"),
        (399_600_000, 400_000_000, "399.6 MB free, about 400.0 MB are needed"),
        (20_480, 61_300, "20 kB free, about 61 kB are needed"),
        (0, 512, "0 bytes free, about 512 bytes are needed"),
        (9_800_000_000, 31_000_000_000, "10 GB free, about 31 GB are needed"),
    ],
)
def test_free_and_needed_space_are_told_apart(free: int, needed: int, said: str) -> None:
    assert shortage(free, needed) == said


def test_the_allocator_is_set_where_it_is_glibcs_and_left_alone_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux":
        assert keep_freed_memory()
    monkeypatch.setattr("sys.platform", "darwin")
    assert not keep_freed_memory()


def test_every_thread_gets_its_scheduling_back() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux schedules threads by policy")
    changed, done = threading.Event(), threading.Event()

    def work() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        changed.set()
        done.wait()

    with keep_scheduling():
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        thread = threading.Thread(target=work)
        thread.start()
        changed.wait()
    found = {os.sched_getscheduler(int(each)) for each in os.listdir("/proc/self/task")}
    done.set()
    thread.join()
    assert found == {os.SCHED_OTHER}
