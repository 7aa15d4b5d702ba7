"""RGB to YUV: reference against a loop over samples in exact numbers and against
libswscale, kernel against it."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ultraflash_kernels.dispatch import Impl
from ultraflash_kernels.frames_to_yuv import Matrix, frames_to_yuv
from ultraflash_kernels.testing import DEVICE, DTYPES

WEIGHTS = {
    "bt601": ("0.299", "0.114"),
    "bt709": ("0.2126", "0.0722"),
    "bt2020nc": ("0.2627", "0.0593"),
}
SIZES = [(1, 1), (2, 2), (1, 37), (9, 63), (3, 1000)]


def frames(
    count: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Noise beyond both ends of the range."""
    draw = torch.Generator().manual_seed(height + width)
    return (1.4 * torch.rand(count, 3, height, width, generator=draw) - 0.2).to(
        DEVICE, dtype
    )


def exact_levels(
    pictures: Tensor, matrix: Matrix, full: bool, bits: int
) -> tuple[Tensor, ...]:
    """Levels of y, u, v before rounding, a sample at a time in float64, from the
    formulas of the standards."""
    kr, kb = (float(Fraction(weight)) for weight in WEIGHTS[matrix])
    rgb = pictures.double().clamp(0, 1).cpu().numpy()
    count, _, height, width = rgb.shape
    white, black = (
        (2**bits - 1, 0) if full else (219 * 2 ** (bits - 8), 16 * 2 ** (bits - 8))
    )
    span = 2**bits - 1 if full else 224 * 2 ** (bits - 8)
    rows, cols = math.ceil(height / 2), math.ceil(width / 2)
    y, u, v = (
        np.empty((count, height, width)),
        np.empty((count, rows, cols)),
        np.empty((count, rows, cols)),
    )
    luma = kr * rgb[:, 0] + (1 - kr - kb) * rgb[:, 1] + kb * rgb[:, 2]
    y[:] = luma * white + black
    blue, red = (rgb[:, 2] - luma) / (2 * (1 - kb)), (rgb[:, 0] - luma) / (2 * (1 - kr))
    taps = [(-1, 0.25), (0, 0.5), (1, 0.25)]
    for row, col in itertools.product(range(rows), range(cols)):
        for plane, difference in ((u, blue), (v, red)):
            level = sum(
                weight
                / 2
                * difference[
                    :, min(2 * row + dy, height - 1), min(max(2 * col + dx, 0), width - 1)
                ]
                for dy in (0, 1)
                for dx, weight in taps
            )
            plane[:, row, col] = level * span + 2 ** (bits - 1)
    return tuple(torch.from_numpy(plane) for plane in (y, u, v))


@pytest.mark.parametrize("bits", [8, 10], ids=lambda bits: f"{bits} bits")
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_samples_are_those_of_the_standards_formulas(
    matrix: Matrix, full: bool, bits: int
) -> None:
    for height, width in ((1, 1), (5, 7), (4, 37)):
        pictures = frames(2, height, width)
        made = frames_to_yuv(
            pictures,
            matrix=matrix,
            full_range=full,
            bits=bits,
            impl="reference",
        )
        for plane, level in zip(
            (made.y, made.u, made.v),
            exact_levels(pictures, matrix, full, bits),
            strict=True,
        ):
            assert plane.dtype == (torch.uint8 if bits == 8 else torch.uint16)
            got = plane.cpu().to(torch.int32).double()
            # Half a level, and what float32 adds to it.
            assert (
                (got - level.clamp(0, 2**bits - 1)).abs() <= 0.5 + 2.0 ** (bits - 20)
            ).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [8, 10])
def test_the_kernel_equals_the_definition(bits: int, dtype: torch.dtype) -> None:
    for height, width in SIZES:
        pictures = frames(2, height, width, dtype)
        got, expected = (
            frames_to_yuv(pictures, bits=bits, impl=impl)
            for impl in ("triton", "reference")
        )
        assert torch.equal(got.packed.int(), expected.packed.int()), (height, width)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_frames_need_not_be_contiguous_and_nothing_around_them_is_read(impl: Impl) -> None:
    pictures = frames(2, 9, 13)
    around = torch.full((4, 5, 11, 30), math.nan, device=DEVICE)
    inside = around[1:3, 1:4, 1:10, 2:28:2]
    inside.copy_(pictures)
    alone = frames_to_yuv(pictures, impl=impl).packed
    assert torch.equal(frames_to_yuv(inside, impl=impl).packed, alone)
    last = pictures.contiguous(memory_format=torch.channels_last)
    assert torch.equal(frames_to_yuv(last, impl=impl).packed, alone)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_what_is_no_number_is_dark_and_stays_where_it_is(impl: Impl) -> None:
    pictures = frames(1, 8, 8)
    pictures[0, :, 2, 2] = math.nan
    dark = torch.nan_to_num(pictures, nan=0.0)
    assert torch.equal(
        frames_to_yuv(pictures, impl=impl).packed, frames_to_yuv(dark, impl=impl).packed
    )
    pictures[0, :, 2, 2] = math.inf
    bright = frames_to_yuv(pictures, impl=impl)
    assert int(bright.y[0, 2, 2]) == 235


@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize(("bits", "full"), [(8, False), (8, True), (10, False), (10, True)])
def test_black_white_and_grey_have_the_levels_of_the_standards(
    matrix: Matrix, bits: int, full: bool
) -> None:
    light = (
        torch.tensor([0.0, 0.25, 1.0], device=DEVICE).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    )
    made = frames_to_yuv(light, matrix=matrix, bits=bits, full_range=full)
    step, top = 2 ** (bits - 8), 2**bits - 1
    expected = [0, 64 * step, top] if full else [16 * step, round(70.75 * step), 235 * step]
    assert made.y[:, 0, 0].tolist() == expected
    assert (made.u.int() == 128 * step).all() and (made.v.int() == 128 * step).all()


@pytest.mark.parametrize(("bits", "full"), [(8, False), (8, True), (10, False)])
@pytest.mark.parametrize(
    ("matrix", "theirs"),
    [("bt601", "smpte170m"), ("bt709", "bt709"), ("bt2020nc", "bt2020")],
)
def test_libswscale_agrees_within_its_rounding(
    matrix: Matrix, theirs: str, bits: int, full: bool
) -> None:
    """On ramps every symmetric chroma filter gives the same, if it stands in the right
    place."""
    pytest.importorskip("av", reason="libswscale comes with PyAV")
    height, width = 48, 64
    row, col = np.mgrid[0:height, 0:width]
    rgb = np.stack(
        [20 + 3 * col + 0 * row, 230 - 2 * col - row, 10 + 2 * row + col], axis=-1
    ).astype(np.uint8)
    ours = frames_to_yuv(
        torch.from_numpy(rgb).permute(2, 0, 1)[None].to(DEVICE).float() / 255,
        matrix=matrix,
        bits=bits,
        full_range=full,
    )
    levels = "full" if full else "limited"
    target = f"out_color_matrix={theirs}:out_range={levels}:out_chroma_loc=left"
    pix_fmt = "yuv420p" if bits == 8 else "yuv420p10le"
    flags = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    converted = through_swscale(rgb, f"flags={flags}:in_range=full:{target}", pix_fmt)
    planes = converted.to_ndarray().astype(np.int64)
    split = np.split(planes.reshape(-1), [height * width, height * width * 5 // 4])
    for mine, plane, edge in zip((ours.y, ours.u, ours.v), split, (0, 4, 4), strict=True):
        got = mine[0].cpu().to(torch.int64).numpy()
        apart = np.abs(got - plane.reshape(got.shape))
        inner = apart[edge : got.shape[0] - edge, edge : got.shape[1] - edge]
        # libswscale works with 15-bit numbers and rounds more than once.
        assert inner.max() <= (1 if bits == 8 else 2), f"{inner.max()} levels apart"


def through_swscale(rgb_hwc: np.ndarray, scale: str, pix_fmt: str) -> Any:
    import av
    import av.filter

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb_hwc), format="rgb24")
    graph = av.filter.Graph()
    size = f"{frame.width}x{frame.height}"
    source = graph.add(
        "buffer", video_size=size, pix_fmt="rgb24", time_base="1/1000", pixel_aspect="1/1"
    )
    sink = graph.add("buffersink")
    graph.link_nodes(
        source, graph.add("scale", scale), graph.add("format", f"pix_fmts={pix_fmt}"), sink
    ).configure()
    graph.vpush(frame)
    return graph.vpull()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_it_compiles_into_one_graph(impl: Impl) -> None:
    pictures = frames(1, 4, 6)

    def convert(pictures: Tensor) -> Tensor:
        return frames_to_yuv(pictures, impl=impl).packed

    assert torch.equal(
        torch.compile(convert, backend="eager", fullgraph=True)(pictures), convert(pictures)
    )


def test_arguments_that_do_not_fit_are_refused() -> None:
    pictures = frames(1, 4, 6)
    with pytest.raises(ValueError, match="frames must be"):
        frames_to_yuv(pictures[0])
    with pytest.raises(ValueError, match="8 or 10 bits"):
        frames_to_yuv(pictures, bits=12)
    with pytest.raises(ValueError, match="8 or 10 bits"):
        frames_to_yuv(torch.zeros(1, 3, 4, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match="unknown matrix"):
        frames_to_yuv(pictures, matrix="ycgco")  # pyright: ignore[reportArgumentType]
