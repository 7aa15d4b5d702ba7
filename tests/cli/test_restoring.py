"""Old footage through the command: measurements are reported once, and change times and
pixels exactly."""

import json
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from tests.cli.doubled import doubled
from tests.cli.independent import look
from tests.jobs.doubler import job, upscale
from tests.video.old_clips import (
    FILM,
    coloured,
    film_pictures,
    framed,
    grainy,
    head_switched,
    interlaced,
    moment,
    telecined,
    write,
)
from ultraflash_cli.errors import Interrupted
from ultraflash_cli.main import main
from ultraflash_cli.video.grain import Grain, GrainMeter

__all__ = ["doubled"]

PAL = Fraction(25)


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def run(source: Path, output: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """Run the real command without the effect of the built-in model's weights; return
    its JSON."""
    given = ["--strength", "0", "--guard", "off", "--codec", "ffv1", "--threads", "1", "-y", "-q", "--json"]
    assert main(["upscale", str(source), "-o", str(output), *given, *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_telecined_film_is_written_at_its_own_rate(tmp_path: Path, doubled: Callable[..., list[str]]) -> None:
    source, output = tmp_path / "a.mp4", tmp_path / "out.mp4"
    write(source, telecined(film_pictures(40)), codec="libx264", options={"crf": "4"})
    warnings = doubled(source, output, "--codec", "h264", "--crf", "1")
    assert len(warnings) == 1 and "4 for every 5 (23.976 fps)" in warnings[0]
    assert look(output, tmp_path).times == tuple(number / FILM for number in range(40))
    doubled(source, output, "--codec", "h264", "--start", "0.5", "--end", "1")
    times = look(output, tmp_path).times
    assert len(times) == 12 and times == tuple(number / FILM for number in range(12))
    doubled(source, output, "--codec", "h264", "--deinterlace", "off")
    assert len(look(output, tmp_path).times) == 50


def test_every_decision_is_in_the_json_and_in_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    lumas, colours = coloured(40, shift=(4, 0))
    lumas = [framed(head_switched(grainy(luma, rng), 8, rng), left=8, top=10) for luma in lumas]
    colours = [(framed(b, left=8, top=10, black=128), framed(r, left=8, top=10, black=128)) for b, r in colours]
    source = write(tmp_path / "a.mkv", lumas, chroma=colours, rate=PAL, pix_fmt="yuv444p")
    asked = ("--crop", "auto", "--chroma-shift", "auto", "--grain", "keep", "--res", "1x", "--end", "0.4")
    report = run(source, tmp_path / "out.mkv", *asked, capsys=capsys)
    reading, warnings = report["reading"], report["warnings"]
    assert isinstance(reading, dict) and isinstance(warnings, list)
    assert reading["head_switching_lines"] == 8 and reading["chroma_shift"] == [pytest.approx(4, abs=0.5), 0]
    assert reading["crop"]["top_px"] == 10 and reading["grain"]["kept"] is True
    for words in ("cropped to", "the colours are shifted", "grain of"):
        assert sum(words in warning for warning in warnings) == 1
    assert main(["probe", str(source), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"].keys() == {"scan", "first_field", "soft_telecine", "frames"}
    assert main(["probe", str(source), "--measure", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert found["crop"] == reading["crop"] and found["grain"]["strength"] > 2 and found["chroma_shift"]


def test_grain_comes_back_like_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    y, x = np.mgrid[0:240, 0:320].astype(np.float64)
    lumas = [
        grainy((120 + 70 * np.sin((x + n) / 60) * np.cos(y / 50)).round().astype(np.uint8), rng) for n in range(10)
    ]
    source = write(tmp_path / "a.mkv", lumas, rate=PAL)
    made: dict[str, Grain | None] = {}
    for choice in ("none", "keep", "remove"):
        run(source, tmp_path / "out.mkv", "--res", "1x", "--grain", choice, capsys=capsys)
        meter = GrainMeter()
        frames = decoded(tmp_path / "out.mkv")
        for first, second in zip(frames[::2], frames[1::2], strict=True):
            meter.push([first, second])
        made[choice] = meter.result()
    before, after = made["none"], made["keep"]
    assert before is not None and after is not None
    inside = np.linspace(before.levels[0], before.levels[-1], 5)
    strengths = [np.interp(inside, each.levels, each.luma) for each in (before, after)]
    np.testing.assert_allclose(strengths[1], strengths[0], rtol=0.2)
    spectra = [np.array(each.luma_spectrum)[:6, :6].ravel() for each in (before, after)]
    assert np.corrcoef(spectra[0], spectra[1])[0, 1] > 0.95
    gone = made["remove"]
    assert gone is None or gone.strength < 0.4 * before.strength


@pytest.mark.parametrize("name", ["r05_city_mpeg2.mpg", "r06_old_video_360p_aac.mp4"])
def test_real_footage_is_restored_at_its_size_and_keeps_the_grain_put_on_it(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rng = np.random.default_rng(1)
    with av.open(str(shared_data / "real" / name)) as container:
        frames = islice(container.decode(video=0), 24)
        clean = [frame.reformat(format="gray").to_ndarray()[:352, :640].astype(np.uint8) for frame in frames]
    grains: list[float] = []
    for lumas in (clean, [grainy(luma, rng, dark=4, bright=8) for luma in clean]):
        source = write(tmp_path / "a.mkv", lumas, rate=PAL)
        report = run(source, tmp_path / "out.mkv", "--res", "1x", "--grain", "keep", capsys=capsys)
        assert (report["width"], report["height"], report["frames_out"]) == (640, 352, 24)
        reading = report["reading"]
        assert isinstance(reading, dict)
        grains.append(reading["grain"]["strength"] if reading["grain"] else 0)
    assert grains[0] == 0 and 4 < grains[1] < 9, "levels of 255"
    shown = [
        np.stack(frames).astype(float).mean(axis=3)
        for frames in (decoded(tmp_path / "a.mkv"), decoded(tmp_path / "out.mkv"))
    ]
    flat = np.stack(clean).std(axis=0) < 6
    noise = [np.diff(frames, axis=0)[:, flat].std() for frames in shown]
    assert noise[1] == pytest.approx(noise[0], rel=0.35), "as much grain as before where nothing moves"


def test_a_resumed_run_produces_the_same_file_whatever_was_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    film = [framed(grainy(picture, rng), left=8) for picture in film_pictures(40)]
    source = write(tmp_path / "a.mkv", telecined(film))
    asked = {"crop": "auto", "grain": "keep", "codec": "ffv1", "crf": None}
    upscale(job(source, tmp_path / "whole.mkv", **asked))
    with pytest.raises(Interrupted):
        upscale(job(source, tmp_path / "broken.mkv", **asked), stop_at=20)
    report = upscale(job(source, tmp_path / "broken.mkv", **asked))
    assert report.frames_resumed >= 12 and report.frames_out == 40
    whole, broken = (decoded(tmp_path / name) for name in ("whole.mkv", "broken.mkv"))
    assert len(whole) == 40 and all((a == b).all() for a, b in zip(whole, broken, strict=True))
    with pytest.raises(Interrupted):
        upscale(job(source, tmp_path / "broken.mkv", **asked, overwrite=True), stop_at=20)
    changed = upscale(job(source, tmp_path / "broken.mkv", **asked | {"crop": "none"}, overwrite=True))
    assert changed.frames_resumed == 0


# The same size


@pytest.mark.parametrize("size", [(64, 48), (65, 47)], ids=["even", "odd"])
def test_a_clip_is_restored_at_its_own_size(
    tmp_path: Path, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    lumas = [moment(number, size=size) for number in range(6)]
    source = write(tmp_path / "a.mkv", lumas, rate=PAL, pix_fmt="yuv444p" if size[0] % 2 else "yuv420p")
    output = tmp_path / "out.mkv"
    assert main(["upscale", str(source), "-o", str(output), "--res", "1x", "--codec", "h264", "-q", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["width"], report["height"]) == size and report["frames_out"] == 6
    shown = np.stack(decoded(output))[:, :, :, 1].astype(float)
    assert np.abs(shown - (np.stack(lumas) - 16.0) * 255 / 219).mean() < 6


def test_fields_and_the_same_size_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.mkv", interlaced(12), rate=PAL)
    for choice, count in (("auto", 12), ("field", 24), ("off", 12)):
        report = run(source, tmp_path / "out.mkv", "--res", "1x", "--deinterlace", choice, capsys=capsys)
        assert report["frames_out"] == count and (report["width"], report["height"]) == (160, 96)
    combed = np.stack(decoded(tmp_path / "out.mkv"))[:, :, :, 1].astype(float)
    run(source, tmp_path / "out.mkv", "--res", "1x", capsys=capsys)
    clean = np.stack(decoded(tmp_path / "out.mkv"))[:, :, :, 1].astype(float)
    assert np.abs(np.diff(clean, 2, axis=1)).mean() < 0.6 * np.abs(np.diff(combed, 2, axis=1)).mean()


# Pixel aspect ratio


@pytest.mark.parametrize(
    ("size", "aspect", "options", "shape", "out"),
    [
        pytest.param((720, 576), Fraction(16, 15), (), Fraction(16, 15), (1200, 960), id="PAL 4:3"),
        pytest.param((720, 576), Fraction(64, 45), (), Fraction(64, 45), (1200, 960), id="PAL 16:9"),
        pytest.param((720, 480), Fraction(8, 9), ("--res", "2x"), Fraction(8, 9), (1440, 960), id="NTSC 4:3"),
        pytest.param((720, 576), Fraction(16, 15), ("--res", "1280x960"), Fraction(1), (1280, 960), id="square pixels"),
        pytest.param((720, 480), Fraction(32, 27), ("--res", "1708x960"), Fraction(1), (1708, 960), id="square 16:9"),
    ],
)
def test_pictures_of_television_keep_their_shape(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    size: tuple[int, int],
    aspect: Fraction,
    options: tuple[str, ...],
    shape: Fraction,
    out: tuple[int, int],
) -> None:
    from ultraflash_cli.jobs.planning.upscale import UpscaleJob
    from ultraflash_cli.jobs.running.prepare import prepare

    lumas = [np.full((size[1], size[0]), 90, np.uint8)] * 2
    source = write(
        tmp_path / "a.mpg", lumas, rate=PAL, codec="mpeg2video", options={"qmin": "8", "qmax": "8"}, aspect=aspect
    )
    prepared = prepare(UpscaleJob(source=source, res=options[1] if options else None), to_write=False)
    assert prepared.info.coded_aspect == aspect
    assert prepared.spec.sample_aspect_ratio == shape and prepared.spec.coded_size_px == out
    assert not any("stretched" in warning for warning in prepared.warnings)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--crop", "1,2,3"), "--crop must be none, auto or LEFT,TOP,RIGHT,BOTTOM in pixels, got '1,2,3'"),
        (("--chroma-shift", "x"), "--chroma-shift must be none, auto or X,Y in pixels"),
        (("--crop", "100,0,60,0"), "--crop leaves 0x96 of 160x96"),
    ],
)
def test_what_cannot_be_read_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str
) -> None:
    source = write(tmp_path / "a.mkv", [moment(0)] * 2)
    assert main(["upscale", str(source), "-o", str(tmp_path / "out.mkv"), *options]) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.strip().splitlines()) == 1
