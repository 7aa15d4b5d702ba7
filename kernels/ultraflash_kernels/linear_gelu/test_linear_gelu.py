"""A linear layer with GELU: the reference, what is refused, and the epilogue on a
GPU."""

import math

import pytest
import torch

from ultraflash_kernels import dispatch
from ultraflash_kernels.dispatch import KernelUnsupportedError
from ultraflash_kernels.linear_gelu import linear_gelu, op


def example(
    dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    sizes = [(2, 5, 16), (24, 16), (24,)]
    x, weight, bias = (torch.randn(s, generator=draw).to(device, dtype) for s in sizes)
    return x, weight, bias


def test_the_definition_is_gelu_in_its_tanh_form_of_the_linear_layer() -> None:
    x, weight, bias = example()
    y = x.double() @ weight.double().T + bias.double()
    cubed = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    torch.testing.assert_close(
        linear_gelu(x, weight, bias).double(), y / 2 * (1 + cubed.tanh()), rtol=0, atol=1e-5
    )


def test_a_gpu_takes_one_operation_and_writes_nothing_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "prefers_kernels", lambda _device: True)
    given = [each.to("meta") for each in example(torch.bfloat16)]
    assert linear_gelu(*given, impl="epilogue").shape == (2, 5, 24)
    with pytest.raises(KernelUnsupportedError, match="must all be"):
        linear_gelu(given[0].float(), *given[1:], impl="epilogue")
    given[1].requires_grad_()
    with pytest.raises(KernelUnsupportedError, match="gradients"):
        linear_gelu(*given, impl="epilogue")


def test_compute_capability_12_keeps_gelu_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "prefers_kernels", lambda _device: True)
    for major, refused in ((9, False), (12, True)):
        monkeypatch.setattr(dispatch, "capability", lambda _device, major=major: (major, 0))
        assert (op.device_refusal(torch.device("cuda")) is not None) == refused


def test_the_cpu_has_the_definition_only() -> None:
    with pytest.raises(KernelUnsupportedError, match="NVIDIA"):
        linear_gelu(*example(torch.bfloat16), impl="epilogue")
    with pytest.raises(ValueError, match="bias"):
        x, weight, _ = example()
        linear_gelu(x, weight, torch.zeros(3))


@pytest.mark.gpu
def test_the_epilogue_equals_the_definition_but_for_a_rounding() -> None:
    x, weight, bias = example(torch.bfloat16, "cuda")
    got = linear_gelu(x, weight, bias, impl="epilogue")
    exact = linear_gelu(x.double(), weight.double(), bias.double(), impl="reference")
    torch.testing.assert_close(got.double(), exact, rtol=1e-2, atol=1e-2)
