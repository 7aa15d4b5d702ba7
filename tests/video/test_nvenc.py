"""Encoders of NVIDIA's GPUs. None has been available: their options are compared with
FFmpeg's tables, and encoders in software play them."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from tests.video.clips import ClipPlan, enlarge, make_clip, picture, shown_times, write_segments
from tests.video.fake_nvenc import play_nvenc
from ultraflash_cli.errors import DeviceError, OutputError, UsageError
from ultraflash_cli.jobs.planning import options as planned
from ultraflash_cli.video import nvenc
from ultraflash_cli.video.check import check_output
from ultraflash_cli.video.codecs import CODECS
from ultraflash_cli.video.color import ColorInfo, ContentLight, MasteringDisplay, content_light, mastering_display
from ultraflash_cli.video.containers import plan_alone, plan_streams
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.encode import choose_spec, losses, made_spec
from ultraflash_cli.video.encoders import check_encoder, encoder_options
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.join import join, join_alone
from ultraflash_cli.video.nvenc import NVENC, Opening, check_nvenc, nvenc_options, openings
from ultraflash_cli.video.nvenc_probe import try_encoder
from ultraflash_cli.video.probe import ClipInfo, probe
from ultraflash_cli.video.segment import SegmentWriter

UNEVEN = ClipPlan(pts=(0, 1, 2, 5, 6, 8, 9, 10, 14, 15, 16, 19))

SCREEN = MasteringDisplay(
    red=(Fraction(34000, 50000), Fraction(16000, 50000)),
    green=(Fraction(13250, 50000), Fraction(34500, 50000)),
    blue=(Fraction(7500, 50000), Fraction(3000, 50000)),
    white=(Fraction(15635, 50000), Fraction(16450, 50000)),
    darkest_nits=Fraction(1, 200),
    brightest_nits=Fraction(1000),
)
LIGHT = ContentLight(max_cll=990, max_fall=120)


@pytest.fixture
def untried() -> Iterator[None]:
    """Forget which encoders were tried, before and after."""
    nvenc._opened.cache_clear()
    yield
    nvenc._opened.cache_clear()


def test_codecs_are_listed_once_and_alike() -> None:
    assert ("auto", *(name for name in planned.CODECS if name in CODECS), *NVENC) == planned.CODECS
    assert {*planned.CODECS} == {"auto", *CODECS, *NVENC}
    assert all(known.stream in CODECS and known.encoder == name for name, known in NVENC.items())


@pytest.mark.parametrize("name", NVENC)
@pytest.mark.parametrize("b_frames", [0, 3])
def test_ffmpeg_knows_every_option_and_value(name: str, b_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {name}")
    monkeypatch.setattr(nvenc, "opening_of", lambda name: Opening(refusal=None, b_frames=b_frames))
    context = av.CodecContext.create(name, "w")
    tables: Any = context.supported_options
    known = {each.name: each for each in (*tables.generic, *tables.private)}
    for quality in (NVENC[name].least_crf, NVENC[name].crf, NVENC[name].max_crf):
        for key, value in nvenc_options(name, quality=quality, preset="p5").items():
            assert key in known, f"{name} has no option {key}"
            choices = {choice.name for choice in known[key].choices}
            if value in choices:
                continue
            assert known[key].min <= float(value) <= known[key].max, f"{name}: {key}={value}"


@pytest.mark.parametrize("name", NVENC)
def test_ffmpeg_feeds_the_encoder_with_these_pixel_formats(name: str) -> None:
    if name not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {name}")
    taken = {each.name for each in av.Codec(name, "w").video_formats or ()}
    for pix_fmt in NVENC[name].pix_fmts:
        assert dict(NVENC[name].fed_fmts).get(pix_fmt, pix_fmt) in taken


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv444p10le"])
def test_ten_bits_reach_the_encoder_unchanged_in_its_own_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pix_fmt: str
) -> None:
    fed = dict(NVENC["hevc_nvenc"].fed_fmts)[pix_fmt]
    spec = made_spec(width_px=64, height_px=48, rate=Fraction(25), codec="hevc", pix_fmt=pix_fmt, threads=1)
    frame = (np.random.default_rng(0).random((48, 64, 3)) * 65535).astype(np.uint16)
    got: list[np.ndarray] = []
    for name in (pix_fmt, fed):
        raw = replace(CODECS["ffv1"], encoder="rawvideo", options={}, pix_fmts=(pix_fmt,), fed_fmts=((pix_fmt, name),))
        monkeypatch.setitem(CODECS, "hevc", raw)
        path = tmp_path / f"{name}.nut"
        with SegmentWriter(path, replace(spec, crf=None, preset="")) as writer:
            writer.write(Frame(0, 1, frame))
        with av.open(str(path)) as container:
            got.append(np.frombuffer(b"".join(bytes(packet) for packet in container.demux()), np.uint16))

    planes, luma = got[0], 64 * 48
    if fed == "p010le":
        planes = np.concatenate([planes[:luma], planes[luma:].reshape(2, -1).T.ravel()])  # one plane for both colours
    assert np.array_equal(planes << 6, got[1])

    monkeypatch.undo()
    assert spec.fed_pix_fmt == pix_fmt
    assert (
        made_spec(
            width_px=64, height_px=48, rate=Fraction(25), codec="hevc_nvenc", pix_fmt=pix_fmt, threads=1
        ).fed_pix_fmt
        == fed
    )


@pytest.mark.parametrize("name", NVENC)
def test_a_clip_goes_through_segments_and_join_with_its_uneven_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = play_nvenc(monkeypatch)
    source = make_clip(tmp_path / "in.mp4", UNEVEN)
    result = enlarge(source, tmp_path, codec=name, crf=4)
    assert (result.spec.codec, result.spec.hardware) == (NVENC[name].stream, name)
    assert check_output(result.path, plan=result.plan, frames=12, spec=result.spec, joined=result.joined) == ()
    assert probe(result.path).codec == NVENC[name].stream
    assert shown_times(result.path) == shown_times(source)
    assert all(each["cq"] == "4" and each["preset"] == "p5" and each["bf"] == "3" for each in asked) and asked


def test_segments_of_the_gpu_and_of_software_are_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play_nvenc(monkeypatch)
    specs = [
        made_spec(width_px=64, height_px=48, rate=Fraction(25), codec=codec, threads=1)
        for codec in ("h264_nvenc", "h264")
    ]
    segments = []
    for number, spec in enumerate(specs):
        with SegmentWriter(tmp_path / f"{number}.mp4", spec) as writer:
            writer.write(Frame(number * 1000, 1000, picture(number, width=64, height=48)))
        segments.append(writer.close())
    plan = plan_alone(".mp4", codec="h264", frame_s=Fraction(1, 25))
    with pytest.raises(OutputError, match="other encoder settings"):
        join_alone(segments, plan, specs[0], tmp_path / "out.mp4", tags={})


def test_the_tags_of_colours_and_of_pixels_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play_nvenc(monkeypatch)
    source = make_clip(tmp_path / "in.mp4", ClipPlan(pts=range(3), aspect=Fraction(4, 3)))
    result = enlarge(source, tmp_path, codec="hevc_nvenc", suffix=".mkv")
    with av.open(str(result.path)) as container:
        stream = container.streams.video[0]
        assert isinstance(stream, VideoStream)
        context, color = stream.codec_context, result.spec.color
        assert (context.colorspace, context.color_range) == (color.matrix, color.range)
        assert (context.color_primaries, context.color_trc) == (color.primaries, color.transfer)
        assert stream.sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize(
    ("codec", "source", "size", "expected"),
    [
        pytest.param("h264_nvenc", "yuv420p10le", (64, 48), "yuv420p", id="h264 has 8 bits"),
        pytest.param("hevc_nvenc", "yuv420p10le", (64, 48), "yuv420p10le", id="10 bits"),
        pytest.param("hevc_nvenc", "yuv422p", (64, 48), "yuv444p", id="no 4:2:2"),
        pytest.param("av1_nvenc", "yuv444p10le", (64, 48), "yuv420p10le", id="av1 has 4:2:0"),
        pytest.param("h264_nvenc", "yuv420p", (63, 48), "yuv444p", id="odd side"),
    ],
)
def test_the_pixel_format_is_the_closest_that_the_gpu_encodes(
    clip: ClipInfo, codec: str, source: str, size: tuple[int, int], expected: str
) -> None:
    bits = max(each.bits for each in av.VideoFormat(source).components)
    info = replace(clip, pix_fmt=source, bit_depth=bits)
    spec = choose_spec(info, width_px=size[0], height_px=size[1], codec=codec, threads=1)
    assert (spec.pix_fmt, spec.preset, spec.summary["name"]) == (expected, "p5", codec)
    assert bool(losses(info, spec)) == (expected in ("yuv420p", "yuv420p10le") and source != expected)


@pytest.mark.parametrize(("name", "suffix"), [("hevc_nvenc", ".mp4"), ("hevc_nvenc", ".mkv"), ("h264_nvenc", ".mp4")])
def test_hdr_metadata_is_put_in_front_of_every_keyframe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    play_nvenc(monkeypatch)
    color = ColorInfo(matrix=9, primaries=9, transfer=16, range=1)
    plan = ClipPlan(pts=range(6), size=(64, 64), codec="ffv1", pix_fmt="yuv420p10le", options={}, color=color)
    info = replace(probe(make_clip(tmp_path / "a.mkv", plan)), mastering_display=SCREEN, content_light=LIGHT)
    spec = choose_spec(info, width_px=64, height_px=64, codec=name, threads=1)
    assert not any("HDR" in loss for loss in losses(info, spec))
    segments = write_segments(tmp_path, spec, list(read_frames(info, warn=print)), per_segment=2)
    target = tmp_path / f"out{suffix}"
    join(segments, info, plan_streams(info, suffix, codec=spec.codec), spec, target)

    with av.open(str(target)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 6
    keys = [frame for frame in frames if frame.key_frame]
    assert len(keys) == 3 and all(content_light(frame) == LIGHT for frame in keys)
    assert all(mastering_display(frame) == SCREEN for frame in keys)
    assert (probe(target).color, probe(target).bit_depth) == (color, 10 if name == "hevc_nvenc" else 8)


def test_hdr_metadata_is_said_to_be_lost_and_who_keeps_it(clip: ClipInfo) -> None:
    info = replace(clip, content_light=LIGHT)
    (lost,) = losses(info, choose_spec(info, width_px=64, height_px=48, codec="av1_nvenc", threads=1))
    assert lost.endswith("is not kept; av1_nvenc does not write it, --codec av1 does")
    for codec in ("hevc_nvenc", "av1"):
        assert losses(info, choose_spec(info, width_px=64, height_px=48, codec=codec, threads=1)) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"crf": 0}, "--crf must be between 1 and 51 for h264_nvenc, got 0", id="0 would be automatic"),
        pytest.param({"crf": 52}, "--crf must be between 1 and 51 for h264_nvenc, got 52", id="crf"),
        pytest.param({"pix_fmt": "yuv422p"}, "not possible with h264_nvenc; use one of yuv420p, yuv444p", id="format"),
    ],
)
def test_what_the_gpu_cannot_encode_is_refused_by_name(clip: ClipInfo, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_spec(clip, width_px=64, height_px=48, codec="h264_nvenc", threads=1, **settings)


def test_options_of_the_user_come_last(clip: ClipInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvenc, "opening_of", lambda name: Opening(refusal=None, b_frames=3))
    wanted = (("preset", "p7"), ("rc", "constqp"), ("qp", "20"))
    spec = choose_spec(clip, width_px=64, height_px=48, codec="av1_nvenc", enc_options=wanted, threads=1)
    options = encoder_options(spec)
    assert dict(wanted).items() <= options.items()
    assert options["cq"] == "26" and options["b"] == "0" and "svtav1-params" not in options


def test_a_machine_without_the_encoder_is_refused_unless_another_encodes(
    clip: ClipInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_nvenc(monkeypatch, refusal="No capable devices found")
    spec = choose_spec(clip, width_px=64, height_px=48, codec="hevc_nvenc", threads=1)
    with pytest.raises(DeviceError) as caught:
        check_encoder(spec)
    assert str(caught.value) == (
        "--codec hevc_nvenc: the encoder does not open here (No capable devices found), expected an NVIDIA GPU with "
        "NVENC and its driver; use --codec hevc"
    )
    check_encoder(spec, encodes_here=False)


def test_what_the_driver_says_about_a_setting_is_passed_on(clip: ClipInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    play_nvenc(monkeypatch)
    spec = choose_spec(clip, width_px=64, height_px=48, codec="h264_nvenc", threads=1)
    check_encoder(spec)
    with pytest.raises(UsageError, match=r"rejects 64x48 yuv420p with \{'bf': 'x'\} \(.+\); check --codec"):
        check_encoder(replace(spec, options=(("bf", "x"),)))


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        pytest.param(
            subprocess.CompletedProcess([], 0, b'hello\n{"h264_nvenc": {"refusal": null, "b_frames": 3}}\n'),
            Opening(refusal=None, b_frames=3),
            id="opens, after the driver's own words",
        ),
        pytest.param(
            subprocess.CompletedProcess([], -11, b""), Opening(refusal="trying it ended by signal 11"), id="crash"
        ),
        pytest.param(
            subprocess.CompletedProcess([], 1, b"[]"),
            Opening(refusal="trying it ended with exit code 1"),
            id="no answer",
        ),
        pytest.param(
            subprocess.TimeoutExpired([], 60), Opening(refusal="the driver did not answer within 60 s"), id="hangs"
        ),
        pytest.param(
            PermissionError(13, "Permission denied"),
            Opening(refusal="it cannot be tried: Permission denied"),
            id="not started",
        ),
    ],
)
def test_a_driver_may_crash_hang_or_print(
    monkeypatch: pytest.MonkeyPatch, untried: None, done: Any, expected: Opening
) -> None:
    def run(*_: object, **settings: object) -> Any:
        assert settings["stderr"] == subprocess.DEVNULL
        if isinstance(done, Exception):
            raise done
        return done

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(av, "codecs_available", {"h264_nvenc"})
    assert nvenc.opening_of("h264_nvenc") == expected


def test_an_ffmpeg_without_the_encoder_is_not_tried(monkeypatch: pytest.MonkeyPatch, untried: None) -> None:
    monkeypatch.setattr(av, "codecs_available", set[str]())
    monkeypatch.setattr(subprocess, "run", lambda *_: pytest.fail("nothing to try"))
    with pytest.raises(DeviceError, match=r"\(the built-in FFmpeg has no av1_nvenc\).*use --codec av1"):
        check_nvenc("av1_nvenc")


def test_encoders_are_tried_with_fewer_b_frames_where_the_gpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def refusal(name: str, b_frames: int) -> str | None:
        tried.append(b_frames)
        return f"Max B-frames {b_frames} exceed 0" if b_frames else None

    monkeypatch.setattr("ultraflash_cli.video.nvenc_probe._refusal", refusal)
    assert try_encoder("hevc_nvenc") == {"refusal": None, "b_frames": 0}
    assert tried == [3, 0]


def test_trying_says_in_words_what_this_machine_has(untried: None, capfd: pytest.CaptureFixture[str]) -> None:
    found = openings()
    assert found.keys() == NVENC.keys()
    for opening in found.values():
        assert opening.refusal is None or (opening.refusal and opening.b_frames == 0)
    assert capfd.readouterr() == ("", "")
