"""Measurements on old footage: borders, head-switching lines, shifted colours, grain;
each on clips generated with the defect."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.video.old_clips import coloured, framed, grainy, head_switched, moment, write
from ultraflash_cli.errors import ConfigError, UsageError
from ultraflash_cli.video.asked import read_crop, read_shift
from ultraflash_cli.video.crop import Crop
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.encode import choose_spec
from ultraflash_cli.video.grain import Grain, GrainMaker, GrainMeter
from ultraflash_cli.video.mending import Mending, mend, mended
from ultraflash_cli.video.probe import ClipInfo, probe
from ultraflash_cli.video.samples import luma_of

SIZE = (320, 240)
PAL = Fraction(25)


def pictures(info: ClipInfo) -> list[np.ndarray]:
    return [frame.rgb_hwc for frame in read_frames(info, warn=lambda _: None)]


def scenes(count: int = 40) -> list[np.ndarray]:
    return [moment(number, size=SIZE) for number in range(count)]


# Crop


def test_borders_and_torn_lines_are_found_and_cut_away(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lumas = [framed(head_switched(each, 8, rng), left=8, right=6, top=10) for each in scenes()]
    info = probe(write(tmp_path / "a.mkv", lumas, rate=PAL))
    done = mend(info, crop="auto")
    assert done.crop == Crop(left_px=9, top_px=10, right_px=7, bottom_px=8) and done.head_lines == 8
    (note,) = done.notes
    assert note == "cropped to 304x222: 9 px left, 10 px top, 7 px right, 8 px bottom (8 lines of head switching)"
    shown = pictures(done.info)
    assert len(shown) == 40 and shown[0].shape == (222, 304, 3)
    assert (shown[3] == pictures(info)[3][10:-8, 9:-7]).all()


def test_bars_of_a_wide_film_are_cut_alike_on_both_sides(tmp_path: Path) -> None:
    lumas = [framed(each, top=30, bottom=30) for each in scenes()]
    done = mend(probe(write(tmp_path / "a.mkv", lumas, rate=PAL)), crop="auto")
    assert done.crop == Crop(top_px=30, bottom_px=30) and done.head_lines == 0


def test_dark_scenes_and_whole_pictures_lose_nothing(tmp_path: Path) -> None:
    lumas = scenes(20) + [np.full((240, 320), 16, np.uint8)] * 10
    lumas[5] = framed(lumas[5], left=60)  # a dark object on the left in one scene
    info = probe(write(tmp_path / "a.mkv", lumas, rate=PAL))
    done = mend(info, crop="auto")
    assert done.crop is None and done.info == info
    assert len(done.notes) == 1 and "nothing is cropped" in done.notes[0]


def test_a_crop_that_is_asked_for_adds_to_that_of_the_container(tmp_path: Path) -> None:
    info = probe(write(tmp_path / "a.mkv", scenes(3), rate=PAL))
    once = mend(info, crop="2,4,6,8").info
    again = mend(once, crop="1,1,1,1").info
    assert (once.width_px, once.height_px) == (312, 228) and again.stored_wh == (320, 240)
    assert again.crop == Crop(left_px=3, top_px=5, right_px=7, bottom_px=9)
    with pytest.raises(UsageError, match="--crop leaves"):
        mend(info, crop="160,0,150,0")
    with pytest.raises(ConfigError, match="LEFT,TOP,RIGHT,BOTTOM"):
        read_crop("1,2,3")


def test_a_cropped_pal_picture_is_still_one_of_pal(tmp_path: Path) -> None:
    lumas = [np.full((576, 720), 90, np.uint8)] * 2
    info = probe(write(tmp_path / "a.mkv", lumas, rate=PAL))
    cut = mend(info, crop="8,8,8,8").info
    colors = [choose_spec(each, width_px=64, height_px=64, threads=1).color for each in (info, cut)]
    assert colors[0] == colors[1]


# Colours


@pytest.mark.parametrize(
    ("shift", "pix_fmt", "suffix"),
    [
        pytest.param((4, 0), "yuv420p", ".mkv", id="right"),
        pytest.param((6, -4), "yuv420p", ".mkv", id="far right and up"),
        pytest.param((-3, 2), "yuv422p10le", ".mkv", id="left and down, 10 bits"),
        pytest.param((-3, 2), "rgb24", ".avi", id="left and down, RGB"),
    ],
)
def test_shifted_colours_are_measured_and_moved_back(
    tmp_path: Path, shift: tuple[int, int], pix_fmt: str, suffix: str
) -> None:
    codec = "rawvideo" if pix_fmt == "rgb24" else "ffv1"
    infos = [
        probe(write(tmp_path / f"{n}{suffix}", lumas, chroma=colours, rate=PAL, pix_fmt=pix_fmt, codec=codec))
        for n, (lumas, colours) in enumerate((coloured(12, shift=shift), coloured(12)))
    ]
    done = mend(infos[0], chroma_shift="auto")
    assert done.chroma_shift is not None
    assert np.abs(np.subtract(done.chroma_shift, shift)).max() <= 0.75
    infos.append(mend(infos[0], chroma_shift=f"{shift[0]},{shift[1]}").info)
    before, wanted, after = (np.stack(pictures(each))[:, 12:-12, 12:-12].astype(int) for each in infos)
    left = 0.45 if pix_fmt == "rgb24" else 0.2  # colours outside RGB at this brightness were clipped
    assert np.abs(after - wanted).mean() < left * np.abs(before - wanted).mean()
    assert mend(infos[1], chroma_shift="auto").chroma_shift is None


def test_a_shift_is_reported_in_words(tmp_path: Path) -> None:
    lumas, colours = coloured(12, shift=(4, -2))
    info = probe(write(tmp_path / "a.mkv", lumas, chroma=colours, rate=PAL, pix_fmt="yuv444p"))
    (note,) = mend(info, chroma_shift="auto").notes
    assert note == "the colours are shifted 4 px right and 2 px up; moved back"
    grey = probe(write(tmp_path / "b.mkv", lumas, rate=PAL))
    assert "nothing is moved" in mend(grey, chroma_shift="auto").notes[0]
    with pytest.raises(ConfigError, match="X,Y in pixels"):
        read_shift("4")


# Grain


def smooth(number: int) -> np.ndarray:
    """Return a picture with a dark and a bright half and a little structure, in slow
    motion."""
    y, x = np.mgrid[0:240, 0:320].astype(np.float64)
    waves = 20 * np.sin((x + number) / 40) * np.cos((y - number) / 50)
    return (np.where(x < 160, 60, 180) + waves).round().astype(np.uint8)


@pytest.fixture(scope="module")
def grainy_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    lumas = [grainy(smooth(number), rng) for number in range(12)]
    return write(tmp_path_factory.mktemp("grain") / "a.mkv", lumas, rate=PAL)


@pytest.fixture(scope="module")
def measured(grainy_clip: Path) -> Mending:
    return mend(probe(grainy_clip), grain="keep")


def strength_of(grain: Grain, level: float) -> float:
    return float(np.interp(level, grain.levels, grain.luma))


def test_grain_is_measured_by_brightness(measured: Mending) -> None:
    grain = measured.grain
    assert grain is not None and measured.grain_is_kept
    for luma in (60, 180):  # of limited range, as written
        true = (2 + 4 * (luma - 16) / 219) * 255 / 219
        assert strength_of(grain, (luma - 16) / 219 * 255) == pytest.approx(true, rel=0.12)
    assert max(grain.chroma) < 0.5
    assert len(measured.notes) == 1 and "similar new grain is added" in measured.notes[0]


def test_the_model_sees_little_of_the_grain_and_all_of_the_picture(grainy_clip: Path, measured: Mending) -> None:
    clean = [(smooth(number).astype(float) - 16) / 219 * 255 for number in range(12)]
    before, after = ([luma_of(each) for each in pictures(info)] for info in (probe(grainy_clip), measured.info))
    assert len(after) == 12

    def error(shown: list[np.ndarray]) -> float:
        return float(
            np.sqrt(np.mean([(s[8:-8, 8:-8] - c[8:-8, 8:-8]) ** 2 for s, c in zip(shown, clean, strict=True)]))
        )

    assert error(after) < 0.45 * error(before)


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
def test_new_grain_has_the_spectrum_and_the_strength_of_the_old(measured: Mending, deep: bool) -> None:
    grain = measured.grain
    assert grain is not None
    maker = GrainMaker(grain, seed=3, source_wh=SIZE, target_wh=SIZE)
    flat = np.repeat(((smooth(0).astype(float) - 16) / 219 * 255)[:, :, None], 3, axis=2)
    plain = (flat * 257).astype(np.uint16) if deep else flat.round().astype(np.uint8)
    meter = GrainMeter()
    for number in range(0, 16, 2):
        meter.push([maker.add(plain, number), maker.add(plain, number + 1)])
    again = meter.result()
    assert again is not None
    for level in grain.levels[1:-1]:
        assert strength_of(again, level) == pytest.approx(strength_of(grain, level), rel=0.15)
    old, new = (np.log(np.array(each.luma_spectrum)[:6, :6] + 0.02) for each in (grain, again))
    assert np.corrcoef(old.ravel(), new.ravel())[0, 1] > 0.97 and np.abs(old - new).mean() < 0.35


def test_new_grain_is_as_fine_in_the_picture_as_the_old_at_any_size(measured: Mending) -> None:
    grain = measured.grain
    assert grain is not None
    maker = GrainMaker(grain, seed=3, source_wh=SIZE, target_wh=(640, 480))
    plain = np.full((480, 640, 3), 150, np.uint8)
    large = maker.add(plain, 0).astype(float)[:, :, 1] - 150
    small = large.reshape(240, 2, 320, 2).mean((1, 3))
    assert large.std() == pytest.approx(strength_of(grain, 150), rel=0.1)
    assert small.std() > 0.8 * large.std()  # white noise would lose half


def test_grain_depends_on_seed_and_number_alone(measured: Mending) -> None:
    assert measured.grain is not None
    makers = [GrainMaker(measured.grain, seed=seed, source_wh=SIZE, target_wh=SIZE) for seed in (1, 1, 2)]
    plain = np.full((240, 320, 3), 100, np.uint8)
    one, same, other = (maker.add(plain, 7) for maker in makers)
    makers[1].add(plain, 3)
    assert (one == same).all() and (one == makers[1].add(plain, 7)).all()
    assert (one != other).any() and (one != makers[0].add(plain, 8)).any()


def test_a_clean_clip_gets_no_grain(tmp_path: Path) -> None:
    info = probe(write(tmp_path / "a.mkv", [smooth(number) for number in range(12)], rate=PAL))
    done = mend(info, grain="keep")
    assert done.grain is None and done.info.denoise is None and not done.grain_is_kept
    assert len(done.notes) == 1 and "hardly any grain" in done.notes[0]


def test_motion_is_not_taken_for_grain(tmp_path: Path) -> None:
    lumas = [moment(3 * number, size=SIZE) for number in range(12)]
    assert mend(probe(write(tmp_path / "a.mkv", lumas, rate=PAL)), grain="keep").grain is None


def test_an_edge_near_the_bottom_is_no_torn_line(tmp_path: Path) -> None:
    lumas = scenes()
    bars = np.random.default_rng(6).integers(20, 230, 80, dtype=np.uint8).repeat(4)
    for luma in lumas:
        luma[-10:] = bars
    assert mend(probe(write(tmp_path / "a.mkv", lumas, rate=PAL)), crop="auto").crop is None


def test_everything_can_be_measured_and_nothing_changed(grainy_clip: Path) -> None:
    found = mended(probe(grainy_clip))
    assert found.grain is not None and found.crop is None and found.info == probe(grainy_clip)
    facts = found.facts()
    assert facts["scan"] == "progressive" and facts["crop"] is None and isinstance(facts["grain"], dict)
