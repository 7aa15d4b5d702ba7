"""What every test shares: exactly one tier each, the Triton interpreter where there is no GPU, the shared data."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from ultraflash_cli.settings import wait_passively

# As the command does it, before torch is imported: the processes of a test run share the cores, and a thread that waits
# busily for one of another process takes seconds for what takes milliseconds.
wait_passively()

import torch  # noqa: E402

HAS_CUDA = torch.cuda.is_available()

if not HAS_CUDA:  # before anything imports triton, as the engine does
    os.environ.setdefault("TRITON_INTERPRET", "1")
else:
    # Deterministic algorithms raise without the first; without the second, float32 convolutions have 10 bits.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.allow_tf32 = False

from ultraflash_cli.engine import foretell  # noqa: E402
from ultraflash_cli.host import keep_scheduling  # noqa: E402

TIERS = ("cpu", "gpu", "weights")
LONGEST = (
    "test_kinds.py",
    "test_aot.py",
    "test_stages_earn_their_place.py",
    "test_hostile.py",
    "test_fuzz.py",
    "test_paper_recipes.py",
    "test_soak.py",
    "test_killed.py",
    "test_loop.py",
    "test_recipes_in_processes.py",
    "test_docker.py",
    "test_wheel.py",
)
"""Files that take longest. Where several processes share the files, these come first: one that came last would leave
the other processes idle."""
# No wall clock in tests, and the same examples on every run.
settings.register_profile("ultraflash", deadline=None, derandomize=True, database=None)
settings.load_profile("ultraflash")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the tier ``cpu`` unless it names another one; put the longest files first."""
    for item in items:
        tiers = [tier for tier in TIERS if item.get_closest_marker(tier)]
        if len(tiers) > 1:
            raise pytest.UsageError(f"{item.nodeid} has the tiers {' and '.join(tiers)}, expected exactly one")
        if not tiers:
            item.add_marker(pytest.mark.cpu)
        elif tiers == ["gpu"] and not HAS_CUDA:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        ranks = {name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Undo what SVT-AV1 does to a test run of root's that encodes with it, real-time scheduling of everything, and
    what a command does to torch: a test has as many threads wherever it runs."""
    threads = torch.get_num_threads()
    with keep_scheduling():
        try:
            return (yield)
        finally:
            torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def without_waiting_for_the_disk() -> Generator[None]:
    """Let `os.fsync` only check its descriptor: a disk takes 10 ms for each of tens of thousands of calls, and no
    test reads what a power failure leaves. Commands in processes of their own do wait."""

    def check(descriptor: int) -> None:
        os.fstat(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", check)
        yield


@pytest.fixture(scope="session", autouse=True)
def foretelling_from_a_few_pixels() -> Generator[None]:
    """Time the model on a smaller corner than for users: every dry run and `probe` would compute for seconds. Commands
    in processes of their own time the large one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foretell, "LOOK_PX", 64 * 48)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).parent


@pytest.fixture(scope="session")
def shared_data(repository: Path) -> Path:
    """The folder of evaluation and real clips beside the repository; tests over it skip where it is absent."""
    folder = repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared clips are not on this machine")
    return folder
