"""Convolutions over doubled pictures: every implementation against the doubled picture
in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_kernels.dispatch import KernelUnsupportedError
from ultraflash_kernels.memory_conv import (
    head_taps,
    library,
    phase_taps,
    upsampled_conv,
    upsampled_head,
)
from ultraflash_kernels.memory_conv.op import ConvImpl
from ultraflash_kernels.testing import DEVICE, DTYPES, TOLERANCE

SIZES = [
    pytest.param(1, 1, 1, 1, 1, 1, id="one of everything"),
    pytest.param(2, 2, 5, 7, 4, 6, id="two frames of each picture"),
    pytest.param(3, 1, 17, 3, 3, 37, id="odd sizes"),
    pytest.param(1, 2, 63, 20, 11, 13, id="more than one tile"),
]
IMPLS: list[ConvImpl] = ["reference", "library", "triton"]


def example(
    pictures: int, frames: int, channels: int, outs: int, height: int, width: int
) -> dict[str, Tensor]:
    """x, a growth to ``frames`` pictures of one channel more, a convolution of it, and
    a second one of three channels, in float64."""
    draw = torch.Generator().manual_seed(channels)
    inner = channels + 1
    shapes = {
        "x": (pictures, channels, height, width),
        "growth": (frames * inner, channels, 1, 1),
        "weight": (outs, inner, 3, 3),
        "bias": (outs,),
        "head": (3, outs, 3, 3),
        "head_bias": (3,),
    }
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        each = torch.randn(shape, generator=draw, dtype=torch.float64)
        made[name] = (
            each / math.sqrt(each[0].numel()) if len(shape) == 4 and name != "x" else each
        )
    return made


def doubled(given: dict[str, Tensor], slope: float) -> tuple[Tensor, Tensor]:
    """Both convolutions over pictures whose pixels are repeated, frame after frame."""
    inner = given["weight"].shape[1]
    grown = F.conv2d(given["x"], given["growth"]).unflatten(1, (-1, inner)).flatten(0, 1)
    grown = grown.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    first = F.leaky_relu(F.conv2d(grown, given["weight"], given["bias"], padding=1), slope)
    return first, F.conv2d(first, given["head"], given["head_bias"], padding=1)


def computed(
    given: dict[str, Tensor], slope: float, impl: ConvImpl, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both by the operations, in ``dtype``."""
    x, growth, weight, bias, head, head_bias = (
        each.to(DEVICE, dtype) for each in given.values()
    )
    first = upsampled_conv(x, weight, bias, growth=growth, negative_slope=slope, impl=impl)
    assert first.is_contiguous(memory_format=torch.channels_last)
    if impl == "triton" and DEVICE == "cpu":
        # Its second convolution is PyTorch's; the interpreter takes seconds.
        second = F.conv2d(first, head, head_bias, padding=1)
    else:
        second = upsampled_head(
            x, weight, bias, head, head_bias, growth=growth, negative_slope=slope, impl=impl
        )
    assert first.dtype == second.dtype == dtype
    return first, second


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("pictures", "frames", "channels", "outs", "height", "width"), SIZES
)
def test_phases_equal_the_convolution_of_repeated_pixels(
    pictures: int,
    frames: int,
    channels: int,
    outs: int,
    height: int,
    width: int,
    impl: ConvImpl,
    dtype: torch.dtype,
) -> None:
    if impl == "triton" and dtype not in DTYPES:
        pytest.skip("no kernel, or none that the interpreter computes")
    given = example(pictures, frames, channels, outs, height, width)
    slope = 1.0 if dtype == torch.float16 else 0.0
    found, expected = computed(given, slope, impl, dtype), doubled(given, slope)
    for got, wanted in zip(found, expected, strict=True):
        off = (got.cpu().double() - wanted).abs()
        assert (off <= 6 * TOLERANCE[dtype] * (1 + wanted.abs())).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_around_the_picture_is_read_the_picture_is_read(impl: ConvImpl) -> None:
    given = example(2, 1, 5, 7, 4, 6)
    x = torch.randn(2, 6, 4, 6, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    weight, bias = given["weight"].to(DEVICE).float(), given["bias"].to(DEVICE).float()
    around = torch.full((2, 6, 8, 9), math.nan, device=DEVICE)  # [N, H, W, C]
    inside = around[:, 1:5, 1:7, 2:8].permute(0, 3, 1, 2)
    inside.copy_(x)
    made = upsampled_conv(inside, weight, bias, impl=impl)
    pixels = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(made, F.conv2d(pixels, weight, bias, padding=1))


def test_a_head_after_the_kernel_reads_its_pictures() -> None:
    given = example(1, 1, 2, 3, 2, 3)
    x, growth, weight, bias, head, _ = (each.to(DEVICE).float() for each in given.values())
    made = upsampled_head(x, weight, bias, head, None, growth=growth, impl="triton")
    expected = doubled(given | {"head_bias": torch.zeros(3, dtype=torch.float64)}, 0.0)[1]
    torch.testing.assert_close(made.cpu(), expected.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_summed_and_composed_taps_round_about_as_much_as_the_doubled_picture(
    dtype: torch.dtype,
) -> None:
    """Each tap is rounded once, but nothing between the two convolutions is."""
    given = {
        name: each.to(dtype).double() for name, each in example(1, 2, 64, 64, 6, 8).items()
    }
    expected = doubled(given, 0.0)
    errors = [
        [
            ((got.double() - wanted).norm() / wanted.norm()).item()
            for got, wanted in zip(computed(given, 0.0, impl, dtype), expected, strict=True)
        ]
        for impl in ("reference", "library")
    ]
    for plain, phases in zip(*errors, strict=True):
        assert 0 < phases < 1.25 * plain


def test_taps_that_read_the_same_pixel_are_summed() -> None:
    weight = torch.arange(9.0).reshape(1, 1, 3, 3)
    taps = phase_taps(weight)
    assert taps.shape == (1, 4, 1, 2, 2)
    # Rows 2i - 1 and 2i by columns 2j - 1 and 2j, each on pixels i - 1 and i by j - 1
    # and j.
    assert taps.flatten(2).tolist() == [
        [[8, 7, 13, 8], [3, 12, 6, 15], [1, 2, 20, 13], [0, 3, 9, 24]]
    ]
    assert taps.sum((2, 3, 4)).tolist() == [[36.0] * 4], "each phase has all nine taps"
    second = head_taps(weight)
    assert second.shape == (4, 4, 2, 2) and second.count_nonzero() == 4 * 8


@pytest.fixture
def cudnn_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A stand-in for cuDNN's convolution with ReLU, and the kernels that it was asked
    for."""
    asked: list[tuple[int, ...]] = []

    def relu(x: Tensor, w: Tensor, b: Tensor | None, *_: object) -> Tensor:
        asked.append(tuple(w.shape))
        return F.conv2d(x, w, b, padding=1).relu_()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(library, "library_refusal", lambda *_: None)
    return asked


def test_on_a_gpu_the_activation_of_phases_is_in_their_convolution(
    cudnn_on_a_cpu: list[tuple[int, ...]],
) -> None:
    given = example(2, 2, 15, 16, 3, 5)
    found = computed(given, 0.0, "auto", torch.bfloat16)
    for got, wanted in zip(found, doubled(given, 0.0), strict=True):
        off = (got.double() - wanted).abs()
        assert (off <= 6 * TOLERANCE[torch.bfloat16] * (1 + wanted.abs())).all()
    assert cudnn_on_a_cpu == [(64, 15, 2, 2)] * 4, "two frames, twice"
    computed(given, 1.0, "auto", torch.bfloat16)
    computed(given, 0.0, "auto", torch.float32)
    assert len(cudnn_on_a_cpu) == 4


def test_gradients_go_through_the_doubled_picture() -> None:
    given = example(1, 2, 3, 4, 3, 3)
    tensors = [each.requires_grad_() for each in given.values()]
    x, growth, weight, bias, head, head_bias = tensors
    made = upsampled_head(x, weight, bias, head, head_bias, growth=growth)
    torch.testing.assert_close(made, doubled(given, 0.0)[1])
    made.sum().backward()
    assert all(each.grad is not None for each in tensors)
    with pytest.raises(KernelUnsupportedError, match="upsampled_conv: a tensor requires"):
        upsampled_conv(x, weight, bias, growth=growth, impl="library")
    with pytest.raises(KernelUnsupportedError, match="upsampled_head: a tensor requires"):
        upsampled_head(x, weight, bias, head, None, growth=growth, impl="library")


def test_arguments_that_do_not_fit_are_refused() -> None:
    x, growth, weight, bias, head, _ = example(1, 2, 5, 7, 4, 6).values()
    with pytest.raises(ValueError, match=r"upsampled_conv: weight must be \[O, 5, 3, 3\]"):
        upsampled_conv(x, weight, bias)
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\]"):
        upsampled_conv(x[None], weight, bias, growth=growth)
    with pytest.raises(ValueError, match=r"growth must be \[F \* 6, 5, 1, 1\]"):
        upsampled_conv(x, weight, bias, growth=growth[1:])
    with pytest.raises(ValueError, match="same dtype"):
        upsampled_conv(x, weight, bias, growth=growth.float())
    with pytest.raises(ValueError, match=r"upsampled_head: weight must be \[O, 7, 3, 3\]"):
        upsampled_head(x, weight, bias, head[:, 1:], None, growth=growth)
