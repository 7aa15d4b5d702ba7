"""Convolutions of the memory block: reference against the concatenation in float64,
kernel against reference."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_kernels.dispatch import Impl, KernelUnsupportedError
from ultraflash_kernels.memory_conv import (
    activated_conv,
    library,
    memory_conv,
    residual_conv,
)
from ultraflash_kernels.testing import DEVICE, DTYPES, TOLERANCE

SIZES = [
    pytest.param(1, 1, 1, 1, 1, 1, id="one of everything"),
    pytest.param(2, 2, 5, 7, 4, 6, id="several frames of several clips"),
    pytest.param(1, 1, 17, 3, 3, 37, id="odd sizes"),
    pytest.param(1, 1, 63, 20, 11, 13, id="more than one tile"),
]


def example(
    batch: int,
    frames: int,
    channels: int,
    outs: int,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """x, past, a kernel for both, a kernel for one, a bias and a residual."""
    draw = torch.Generator().manual_seed(channels)
    shapes = [
        (batch, frames, channels, height, width),
        (batch, channels, height, width),
        (outs, 2 * channels, 3, 3),
        (outs, channels, 3, 3),
        (outs,),
        (batch * frames, outs, height, width),
    ]
    made = [torch.randn(shape, generator=draw) for shape in shapes]
    made[2], made[3] = made[2] / math.sqrt(18 * channels), made[3] / math.sqrt(9 * channels)
    return tuple(x.to(DEVICE, dtype) for x in made)


def concatenated(
    x: Tensor, past: Tensor, weight: Tensor, bias: Tensor | None, slope: float
) -> Tensor:
    """As the published block does it: current and past as one picture of twice the
    channels."""
    before = torch.cat([past.unsqueeze(1), x[:, :-1]], dim=1)
    both = torch.cat([x, before], dim=2).flatten(0, 1).double()
    return F.leaky_relu(
        F.conv2d(both, weight.double(), None if bias is None else bias.double(), padding=1),
        slope,
    )


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    expected = expected.double()
    assert (
        (got.double() - expected).abs() <= 4 * TOLERANCE[dtype] * (1 + expected.abs())
    ).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.2], ids=["relu", "leaky"])
@pytest.mark.parametrize(("batch", "frames", "channels", "outs", "height", "width"), SIZES)
def test_the_definition_equals_the_concatenation(
    batch: int,
    frames: int,
    channels: int,
    outs: int,
    height: int,
    width: int,
    slope: float,
    dtype: torch.dtype,
) -> None:
    x, past, both, one, bias, residual = example(
        batch, frames, channels, outs, height, width, dtype
    )
    got = memory_conv(x, past, both, bias, negative_slope=slope, impl="reference")
    assert_near(got, concatenated(x, past, both, bias, slope), dtype)
    got = residual_conv(
        x.flatten(0, 1), residual, one, bias, negative_slope=slope, impl="reference"
    )
    plain = F.conv2d(x.flatten(0, 1).double(), one.double(), bias.double(), padding=1)
    assert_near(got, F.leaky_relu(plain + residual.double(), slope), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.2], ids=["relu", "leaky"])
@pytest.mark.parametrize(("batch", "frames", "channels", "outs", "height", "width"), SIZES)
def test_the_kernel_equals_the_definition(
    batch: int,
    frames: int,
    channels: int,
    outs: int,
    height: int,
    width: int,
    slope: float,
    dtype: torch.dtype,
) -> None:
    x, past, both, one, bias, residual = example(
        batch, frames, channels, outs, height, width, dtype
    )
    given = None if slope else bias
    got = memory_conv(x, past, both, given, negative_slope=slope, impl="triton")
    assert_near(
        got,
        memory_conv(x, past, both, given, negative_slope=slope, impl="reference"),
        dtype,
    )
    inputs = (x.flatten(0, 1), residual, one, given)
    got = residual_conv(*inputs, negative_slope=slope, impl="triton")
    assert_near(got, residual_conv(*inputs, negative_slope=slope, impl="reference"), dtype)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_layouts_do_not_matter_and_nothing_around_the_pictures_is_read(impl: Impl) -> None:
    x, past, both, one, bias, residual = example(2, 2, 5, 7, 4, 6, torch.float32)
    first = memory_conv(x, past, both, bias, impl=impl)
    second = residual_conv(x.flatten(0, 1), residual, one, bias, impl=impl)
    around = torch.full((2, 4, 7, 9, 8), math.nan, device=DEVICE)  # [B, T, H, W, C]
    inside = around[:, 1:3, 2:6, 1:7, 2:7].permute(0, 1, 4, 2, 3)
    inside.copy_(x)
    memory = around[:, 3, 2:6, 1:7, 2:7].permute(0, 3, 1, 2)
    memory.copy_(past)
    last = both.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(memory_conv(inside, memory, last, bias, impl=impl), first)
    wide = torch.full((4, 6, 8, 9), math.nan, device=DEVICE)
    skip = wide[:, 1:5, 1:7, 1:8].permute(0, 3, 1, 2)
    skip.copy_(residual)
    torch.testing.assert_close(
        residual_conv(x.flatten(0, 1), skip, one, bias, impl=impl), second
    )


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_any_split_of_a_clip_produces_the_same_pictures(impl: Impl) -> None:
    x, past, both, _, bias, _ = example(2, 4, 3, 4, 3, 5, torch.float32)
    whole = memory_conv(x, past, both, bias, impl=impl).unflatten(0, (2, 4))
    done: list[Tensor] = []
    for start, stop in ((0, 1), (1, 4)):
        done.append(
            memory_conv(x[:, start:stop], past, both, bias, impl=impl).unflatten(0, (2, -1))
        )
        past = x[:, stop - 1]
    torch.testing.assert_close(torch.cat(done, dim=1), whole)


def test_a_pixel_of_nan_reaches_its_neighbours_in_space_and_the_next_frame_only() -> None:
    x, past, both, _, bias, _ = example(1, 3, 2, 3, 5, 5, torch.float32)
    x[0, 0, :, 0, 0] = math.nan
    made = memory_conv(x, past, both, bias, negative_slope=0.1, impl="triton")
    touched = made.isnan().any(dim=1)
    expected = torch.zeros(3, 5, 5, dtype=torch.bool, device=DEVICE)
    expected[:2, :2, :2] = True
    assert torch.equal(touched, expected)


def test_inputs_stay_as_they_are_and_gradients_flow_through_the_definition() -> None:
    tensors = example(1, 2, 3, 3, 4, 4, torch.float64)
    x, past, both, one, bias, residual = (tensor.requires_grad_() for tensor in tensors)
    kept = [tensor.detach().clone() for tensor in tensors]
    made = residual_conv(memory_conv(x, past, both, bias), residual, one, bias)
    made.sum().backward()
    assert all(
        torch.equal(tensor, copy) for tensor, copy in zip(tensors, kept, strict=True)
    )
    assert all(tensor.grad is not None for tensor in tensors)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_it_compiles_into_one_graph(impl: Impl) -> None:
    x, past, both, one, bias, residual = example(1, 2, 3, 3, 4, 4, torch.float32)

    def block(x: Tensor) -> Tensor:
        return residual_conv(
            memory_conv(x, past, both, bias, impl=impl), residual, one, bias, impl=impl
        )

    assert torch.equal(torch.compile(block, backend="eager", fullgraph=True)(x), block(x))


def test_arguments_that_do_not_fit_are_refused() -> None:
    x, past, both, one, bias, residual = example(1, 2, 3, 4, 4, 4, torch.float32)
    with pytest.raises(ValueError, match="past"):
        memory_conv(x, past[:, :2], both, bias)
    with pytest.raises(ValueError, match="past"):
        memory_conv(x[0], past, both, bias)
    with pytest.raises(ValueError, match="weight must be"):
        memory_conv(x, past, one, bias)
    with pytest.raises(ValueError, match="bias"):
        residual_conv(x[0], residual, one, bias[1:])
    with pytest.raises(ValueError, match="the residual"):
        residual_conv(x[0], residual[:, 1:], one, bias)
    with pytest.raises(ValueError, match="same dtype"):
        residual_conv(x[0], residual.half(), one, bias)


@pytest.fixture
def cudnn_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for the fused convolutions of cuDNN, and what they were asked for."""
    asked: list[str] = []

    def relu(x: Tensor, w: Tensor, b: Tensor | None, *_: object) -> Tensor:
        asked.append("relu")
        return F.conv2d(x, w, b, padding=1).relu_()

    def add_relu(
        x: Tensor, w: Tensor, z: Tensor, alpha: float, b: Tensor | None, *_: object
    ) -> Tensor:
        asked.append("add, relu")
        assert z.is_contiguous(memory_format=torch.channels_last)
        return (F.conv2d(x, w, b, padding=1) + alpha * z).relu_()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    monkeypatch.setattr(library, "library_refusal", lambda *_: None)
    return asked


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 4), (2, 3)], ids=str)
def test_the_library_computes_what_follows_a_convolution_in_it(
    cudnn_on_a_cpu: list[str], batch: int, frames: int
) -> None:
    x, past, both, weight, bias, residual = example(
        batch, frames, 16, 16, 5, 4, torch.bfloat16
    )
    with torch.inference_mode():
        got = memory_conv(x, past, both, bias, impl="library")
        assert_near(got, memory_conv(x, past, both, bias, impl="reference"), torch.bfloat16)
        flat = x.flatten(0, 1)
        for ours, given in (
            (residual_conv, (flat, residual, weight, bias)),
            (activated_conv, (flat, weight, bias)),
        ):
            expected = ours(*given, impl="reference")
            assert_near(ours(*given), expected, torch.bfloat16)
    assert cudnn_on_a_cpu == ["add, relu", "add, relu", "relu"]


def test_a_library_that_writes_into_a_tensor_copies_no_frames(
    cudnn_on_a_cpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, past, both, _, bias, _ = example(2, 3, 16, 16, 5, 4, torch.bfloat16)
    with torch.inference_mode():
        copied = memory_conv(x, past, both, bias, impl="library")
        library.writes_into.cache_clear()

        def into(out: Tensor, x: Tensor, weight: Tensor) -> None:
            out.copy_(F.conv2d(x, weight, padding=1))

        monkeypatch.setattr(library, "_into", into)
        assert library.writes_into(x.device, x.dtype)
        monkeypatch.setattr(torch, "cat", lambda *_: pytest.fail("frames were copied"))
        torch.testing.assert_close(memory_conv(x, past, both, bias, impl="library"), copied)
        monkeypatch.undo()
        library.writes_into.cache_clear()
        monkeypatch.setattr(library, "_into", lambda out, *_: out.zero_())
        assert not library.writes_into(x.device, x.dtype), "it computes something else"
    library.writes_into.cache_clear()


def test_a_size_without_a_fused_convolution_runs_in_several_passes(
    cudnn_on_a_cpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small pictures found that cuDNN fuses; it has no engine for this one."""
    x, past, both, weight, bias, _ = example(1, 3, 16, 16, 5, 4, torch.bfloat16)

    def refuses(*_: object) -> Tensor:
        raise RuntimeError("unable to find an engine to execute this computation")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuses)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", refuses)
    with torch.inference_mode(), pytest.warns(RuntimeWarning, match="unable to find"):
        for ours, given in (
            (memory_conv, (x, past, both, bias)),
            (activated_conv, (x[0], weight, bias)),
        ):
            expected = ours(*given, impl="reference")
            assert_near(ours(*given), expected, torch.bfloat16)


def test_a_library_that_reads_the_memory_of_its_result_is_not_trusted(
    cudnn_on_a_cpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call without a sum passes its result as one, times zero; NaN that was there
    before must not come through."""
    before: list[Tensor] = []
    full_like, relu = torch.full_like, torch.cudnn_convolution_relu

    def poison(*given: Any) -> Tensor:
        before.append(full_like(*given))
        return before[-1]

    monkeypatch.setattr(torch, "full_like", poison)
    monkeypatch.setattr(
        torch, "cudnn_convolution_relu", lambda *given: relu(*given) + 0 * before[-1]
    )
    check = library._found_wrong.__wrapped__  # pyright: ignore[reportPrivateUsage]
    found = check(torch.device("cpu"), torch.bfloat16)
    assert found == "its fused convolutions compute wrong results."


def test_what_the_library_cannot_fuse_is_left_to_the_definition(
    cudnn_on_a_cpu: list[str],
) -> None:
    x, past, both, weight, bias, _ = example(1, 2, 16, 16, 3, 3, torch.bfloat16)
    memory_conv(x, past, both, bias, negative_slope=0.2)
    memory_conv(x.float(), past.float(), both.float(), bias.float())
    activated_conv(x[0], weight.clone().requires_grad_(), bias)
    assert not cudnn_on_a_cpu
    with pytest.raises(KernelUnsupportedError, match="only supports ReLU"):
        activated_conv(x[0], weight, bias, negative_slope=0.2, impl="library")


def test_a_library_that_refuses_or_computes_something_else_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object) -> Tensor:
        raise RuntimeError("No valid execution plans built.")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuses)
    library._found_wrong.cache_clear()  # pyright: ignore[reportPrivateUsage]
    found = library._found_wrong(torch.device("cpu"), torch.bfloat16)  # pyright: ignore[reportPrivateUsage]
    assert found == "it refuses: No valid execution plans built."
    library._found_wrong.cache_clear()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(torch, "cudnn_convolution_relu", lambda x, *_: x.clone())
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", lambda x, *_: x.clone())
    found = library._found_wrong(torch.device("cpu"), torch.bfloat16)  # pyright: ignore[reportPrivateUsage]
    assert found == "its fused convolutions compute wrong results."
    library._found_wrong.cache_clear()  # pyright: ignore[reportPrivateUsage]
