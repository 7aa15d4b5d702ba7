"""The view of a job in a browser: pictures upright and in the right aspect ratio, each
in a playable fragment."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from ultraflash_cli.video.color import ColorInfo, Picture, as_picture, resolve_color
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.fragments import Fragment, FragmentWriter


def spec(**changes: object) -> EncodeSpec:
    color = resolve_color(ColorInfo(), width_px=64, height_px=48, rgb=False)
    settings: dict[str, object] = {
        "codec": "h264", "crf": 20, "pix_fmt": "yuv420p", "preset": "ultrafast", "threads": 1, "options": (),
        "width_px": 64, "height_px": 48, "time_base": Fraction(1, 25), "rate": Fraction(25), "color": color,
        "sample_aspect_ratio": Fraction(1), "rotation_deg": 0,
    }  # fmt: skip
    return EncodeSpec(**(settings | changes))  # pyright: ignore[reportArgumentType]


def picture(dtype: type = np.uint8) -> Picture:
    """Return a grey picture with a red corner at the top left as coded."""
    top = np.iinfo(dtype).max
    rgb_hwc = np.full((48, 64, 3), top // 2, dtype)
    rgb_hwc[:20, :28] = (top, 0, 0)
    return rgb_hwc


def shown(made: EncodeSpec, pictures: list[Picture], times: list[int]) -> tuple[list[np.ndarray], list[Fraction]]:
    writer = FragmentWriter(made)
    parts: list[Fragment] = []
    for each, pts in zip(pictures, times, strict=True):
        parts += writer.write(each, pts)
    parts += writer.close()
    assert parts[0].starts and writer.codec.startswith("avc1.42")
    with av.open(io.BytesIO(writer.head + b"".join(part.content for part in parts)), "r") as container:
        frames = [(frame.to_ndarray(format="rgb24"), frame.pts * frame.time_base) for frame in container.decode(video=0)
                  if frame.pts is not None and frame.time_base is not None]  # fmt: skip
    return [each for each, _ in frames], [time for _, time in frames]


def is_red(pixel: np.ndarray) -> bool:
    return bool(pixel[0] > 180 and pixel[1] < 80 and pixel[2] < 80)


@pytest.mark.parametrize(
    ("changes", "size", "corner"),
    [
        pytest.param({}, (48, 64), (0, 0), id="as coded"),
        pytest.param({"rotation_deg": 90}, (64, 48), (0, 1), id="a quarter turn"),
        pytest.param({"rotation_deg": 180}, (48, 64), (1, 1), id="upside down"),
        pytest.param({"rotation_deg": 270}, (64, 48), (1, 0), id="the other quarter turn"),
        pytest.param({"mirrored": True}, (48, 64), (0, 1), id="mirrored"),
        pytest.param({"sample_aspect_ratio": Fraction(2)}, (48, 128), (0, 0), id="wide pixels"),
        pytest.param({"sample_aspect_ratio": Fraction(40)}, (18, 960), (0, 0), id="too wide for the window"),
    ],
)
def test_pictures_are_shown_upright_and_in_their_shape(
    changes: dict[str, object], size: tuple[int, int], corner: tuple[int, int]
) -> None:
    frames, _ = shown(spec(**changes), [picture()] * 2, [0, 1])
    height, width = frames[0].shape[:2]
    assert (height, width) == size
    quarters = {(down, across): frames[0][height * (1 + 4 * down) // 6, width * (1 + 4 * across) // 6]
                for down in (0, 1) for across in (0, 1)}  # fmt: skip
    assert [place for place, pixel in quarters.items() if is_red(pixel)] == [corner]


def test_deep_pictures_and_planes_are_shown_as_well() -> None:
    deep, _ = shown(spec(), [picture(np.uint16)], [0])
    assert is_red(deep[0][8, 10])
    yuv = av.VideoFrame.from_ndarray(picture(), format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
    planes, _ = shown(spec(), [as_picture(yuv.to_ndarray())], [0])
    assert is_red(planes[0][8, 10])


def test_times_count_from_the_first_picture_and_one_that_is_not_later_is_passed_over() -> None:
    _, times = shown(spec(), [picture()] * 5, [100, 103, 103, 90, 110])
    assert times == [0, Fraction(3, 25), Fraction(10, 25)]
