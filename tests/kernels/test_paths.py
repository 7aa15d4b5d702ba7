"""The kernel report of doctor: every operation, its implementation, and why it is not
the fastest."""

import pytest
import torch

from ultraflash_cli.bench.kernels import OPERATIONS
from ultraflash_cli.jobs import doctor
from ultraflash_kernels import dispatch
from ultraflash_kernels.memory_conv import library
from ultraflash_kernels.paths import kernel_paths

GPU = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A GPU of the compute capability given by the test, with Triton as a compiler."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dispatch, "_interprets", lambda: False)
    monkeypatch.setattr(library, "_found_wrong", lambda *_: None)


def test_every_operation_has_a_path_on_every_device() -> None:
    found = kernel_paths(torch.device("cpu"))
    assert {each.operation for each in found} == set(OPERATIONS)
    assert all(each.path == "PyTorch" and each.reason for each in found)


@pytest.mark.parametrize("gpu", [(9, 0)], indirect=True)
def test_hopper_takes_the_fastest_of_everything(gpu: None) -> None:
    found = {each.operation: each for each in kernel_paths(GPU)}
    assert all(each.reason is None for each in found.values())
    assert found["linear_gelu"].path == "cuBLASLt with GELU in its product"
    assert found["memory_conv"].path == "cuDNN with bias, sum and ReLU in its convolutions"


@pytest.mark.parametrize(
    ("gpu", "slow"),
    [((12, 0), {"linear_gelu"}), ((8, 6), {"fp8_linear"}), ((7, 5), set(OPERATIONS) - {"memory_conv"})],
    indirect=["gpu"],
    ids=["GELU is slow on 12.0", "no 8 bits on 8.6", "no kernels on 7.5"],
)
def test_what_a_gpu_lacks_is_named_with_the_reason(gpu: None, slow: set[str]) -> None:
    found = kernel_paths(GPU)
    assert {each.operation for each in found if each.reason} == slow
    lines = [each.found for each in doctor._kernels()]
    assert any("Triton kernel: " in line for line in lines) == (len(slow) == 1)
    assert all(any(name in line and ", because " in line for line in lines) for name in slow)


def test_without_a_gpu_one_line_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (line,) = doctor._kernels()
    assert line.found.startswith("PyTorch, because there is no GPU: adaln_modulate, ")
