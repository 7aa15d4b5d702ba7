"""A table of typical clips, written to every container and compared with the results of
an independent FFmpeg."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import AttachmentStream

from tests.video.clips import (
    ClipPlan,
    enlarge,
    ffmpeg,
    make_clip,
    picture,
    write_segments,
)
from tests.video.comparing import checked, compare
from tests.video.rows import ROWS, Row
from ultraflash_cli.errors import UsageError
from ultraflash_cli.video.check import check_output
from ultraflash_cli.video.codecs import choose_codec
from ultraflash_cli.video.color import ColorInfo, ContentLight, MasteringDisplay
from ultraflash_cli.video.containers import plan_streams
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.encode import choose_spec, losses
from ultraflash_cli.video.encoders import check_encoder
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.join import join
from ultraflash_cli.video.probe import ClipInfo, probe
from ultraflash_cli.video.segment import SegmentWriter


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_nothing_that_the_container_holds_is_lost(tmp_path: Path, made: Path, row: Row) -> None:
    source = tmp_path / row.source
    ffmpeg(*row.made.replace("{dir}", str(made)).split(), *["-metadata", "title=T", "-metadata:s:v:0", "language=jpn"],
           str(source))  # fmt: skip
    result = checked(enlarge(source, tmp_path, suffix=row.suffix, codec=row.codec))
    assert result.path.suffix == row.becomes
    assert [each.stream.codec for each in result.plan.dropped] == list(row.dropped)
    assert [each.codec for each in result.plan.converted] == list(row.converted)
    assert row.says in result.plan.reason and bool(row.says) == bool(result.plan.reason)
    compare(source, result)


def test_data_outside_the_streams_is_copied(tmp_path: Path, made: Path) -> None:
    source = tmp_path / "a.mkv"
    row = ROWS["attachments of many kinds"]
    ffmpeg(*row.made.replace("{dir}", str(made)).split(), str(source))
    result = checked(enlarge(source, tmp_path))
    with av.open(str(source)) as a, av.open(str(result.path)) as b:
        files = [[(s.metadata["filename"], s.metadata["mimetype"], s.data)
                  for s in c.streams if isinstance(s, AttachmentStream)]
                 for c in (a, b)]  # fmt: skip
    assert files[0] == files[1] and len(files[0]) == 3


SCREEN = MasteringDisplay(
    red=(Fraction(34000, 50000), Fraction(16000, 50000)),
    green=(Fraction(13250, 50000), Fraction(34500, 50000)),
    blue=(Fraction(7500, 50000), Fraction(3000, 50000)),
    white=(Fraction(15635, 50000), Fraction(16450, 50000)),
    darkest_nits=Fraction(1, 200),
    brightest_nits=Fraction(1000),
)
LIGHT = ContentLight(max_cll=990, max_fall=120)


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
@pytest.mark.parametrize(("codec", "suffix"), [("hevc", ".mp4"), ("hevc", ".mkv"), ("av1", ".mp4"), ("h264", ".mp4")])
def test_hdr_is_written_with_its_tags_and_metadata(tmp_path: Path, codec: str, suffix: str, transfer: int) -> None:
    color = ColorInfo(matrix=9, primaries=9, transfer=transfer, range=1)
    plan = ClipPlan(pts=range(4), size=(64, 64), codec="ffv1", pix_fmt="yuv420p10le", options={}, color=color)
    info = replace(probe(make_clip(tmp_path / "a.mkv", plan)), mastering_display=SCREEN, content_light=LIGHT)
    spec = choose_spec(info, width_px=64, height_px=64, codec=codec, threads=1)
    check_encoder(spec)
    streams = plan_streams(info, suffix, codec=codec)
    segments = write_segments(tmp_path, spec, list(read_frames(info, warn=print)), per_segment=2)
    target = tmp_path / f"out{suffix}"
    join(segments, info, streams, spec, target)
    again = probe(target)
    assert (again.bit_depth, again.color) == (10, color)
    assert again.content_light == LIGHT and losses(info, spec) == ()
    found = again.mastering_display
    assert found is not None and abs(found.brightest_nits - 1000) < 1
    for ours, theirs in ((SCREEN.red, found.red), (SCREEN.white, found.white)):
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < Fraction(1, 10_000)
    other = choose_spec(info, width_px=64, height_px=64, codec="ffv1", threads=1)
    assert any("HDR" in loss for loss in losses(info, other))


def transparent(number: int, *, deep: bool) -> Frame:
    steps = np.linspace(0, 65535 if deep else 255, 64)[None].repeat(48, 0)
    rgb_hwc = picture(number)
    if deep:
        return Frame(number, 1, rgb_hwc.astype(np.uint16) * 257, steps.astype(np.uint16))
    return Frame(number, 1, rgb_hwc, steps.astype(np.uint8))


@pytest.mark.parametrize(
    ("pix_fmt", "bits", "codec", "suffix", "expected"),
    [
        ("yuva420p", 8, "auto", None, ("vp9", "yuva420p", ".webm")),
        ("yuva420p", 8, "auto", ".mkv", ("vp9", "yuva420p", ".mkv")),
        ("bgra", 8, "auto", ".mov", ("prores", "yuva444p10le", ".mov")),
        ("yuva444p12le", 12, "auto", None, ("prores", "yuva444p10le", ".mov")),
        ("yuva444p12le", 12, "auto", ".mkv", ("ffv1", "yuva444p12le", ".mkv")),
        ("bgra", 8, "ffv1", ".mkv", ("ffv1", "bgra", ".mkv")),
        ("gbrap12le", 12, "ffv1", ".mkv", ("ffv1", "gbrap12le", ".mkv")),
        ("bgra", 8, "png", ".mov", ("png", "rgba", ".mov")),
        ("bgra", 8, "auto", ".mp4", ("h264", "yuv420p", ".mp4")),
        ("bgra", 8, "vp9", ".mp4", ("vp9", "yuv420p", ".mp4")),
    ],
)
def test_transparency_is_written_where_codec_and_container_can(
    tmp_path: Path, clip: ClipInfo, pix_fmt: str, bits: int, codec: str, suffix: str | None, expected: tuple[str, ...]
) -> None:
    container = {".webm": "matroska,webm", ".mov": "mov,mp4"}.get(expected[2], "matroska,webm")
    info = replace(
        clip, pix_fmt=pix_fmt, bit_depth=bits, has_alpha=True, container=container, path=Path(f"a{expected[2]}")
    )
    spec = choose_spec(info, width_px=64, height_px=48, codec=codec, threads=1, suffix=suffix)
    streams = plan_streams(info, suffix, codec=spec.codec)
    assert (spec.codec, spec.pix_fmt, streams.suffix) == expected
    assert spec.alpha == (suffix != ".mp4")
    check_encoder(spec)
    frames = [transparent(number, deep=bits > 8) for number in range(4)]
    segments = write_segments(tmp_path, spec, frames, per_segment=2)
    target = tmp_path / f"out{streams.suffix}"
    joined = join(segments, clip, streams, spec, target)
    check_output(target, plan=streams, frames=4, spec=spec, joined=joined)
    again = probe(target)
    assert again.has_alpha == spec.alpha
    decoder = ["-c:v", "libvpx-vp9"] if spec.codec == "vp9" else []
    ffmpeg(*decoder, "-i", str(target), "-pix_fmt", "rgba64le", "-f", "rawvideo", str(tmp_path / "raw"))
    rgba = np.fromfile(tmp_path / "raw", np.uint16).reshape(4, 48, 64, 4) / 257
    steps = np.linspace(0, 255, 64)
    assert np.abs(rgba[..., 3] - (steps if spec.alpha else 255)).max() < (6 if spec.codec == "vp9" else 2)
    # Invisible pixels may be coded with low quality.
    assert np.abs(rgba[:, :, 40:, :3] - np.stack([picture(n)[:, 40:] for n in range(4)])).mean() < 4


@pytest.mark.parametrize(
    ("suffix", "bits", "alpha", "codec"),
    [(".webm", 8, False, "vp9"), (".webm", 10, False, "av1"), (".png", 8, True, "png"), (".y4m", 8, False, "y4m")]
    + [(".mp4", 10, True, "hevc"), (None, 8, False, "h264"), (".mov", 8, False, "h264")],
)
def test_the_codec_fits_the_container_that_was_named(suffix: str | None, bits: int, alpha: bool, codec: str) -> None:
    assert choose_codec("auto", bits, has_alpha=alpha, suffix=suffix) == codec


@pytest.mark.parametrize(
    ("name", "container", "expected"),
    [
        ("a.gif", "gif", ("vp9", ".webm", "transparent vp9")),
        ("a.mov", "mov,mp4", ("prores", ".mov", "")),
        ("a.mp4", "mov,mp4", ("vp9", ".webm", "transparent vp9")),
        ("a.webm", "matroska,webm", ("vp9", ".webm", "")),
        ("a.mkv", "matroska,webm", ("vp9", ".mkv", "")),
    ],
)
@pytest.mark.parametrize("with_sound", [False, True], ids=["silent", "with sound"])
def test_the_container_is_one_that_keeps_transparency(
    clip: ClipInfo, name: str, container: str, expected: tuple[str, str, str], with_sound: bool
) -> None:
    video = clip.streams[clip.video_index]
    sound = (replace(video, index=9, kind="audio", codec="aac", sample_rate=48000),) if with_sound else ()
    info = replace(clip, path=Path(name), container=container, pix_fmt="bgra", has_alpha=True, streams=(video, *sound))
    codec, suffix, says = expected
    spec = choose_spec(info, width_px=64, height_px=48, threads=1)
    streams = plan_streams(info, None, codec=spec.codec)
    assert (spec.codec, spec.alpha) == (codec, True)
    assert streams.suffix == (".mkv" if suffix == ".webm" and with_sound else suffix) and says in streams.reason
    assert not streams.dropped


@pytest.mark.parametrize("codec", ["vp9", "hevc", "ffv1", "png"])
def test_equal_frames_give_equal_packets(tmp_path: Path, clip: ClipInfo, codec: str) -> None:
    spec = choose_spec(clip, width_px=320, height_px=96, codec=codec, threads=3)
    found: set[bytes] = set()
    for name in range(3):
        with SegmentWriter(tmp_path / f"{name}", spec) as writer:
            for number in range(6):
                writer.write(Frame(number, 1, picture(number, width=320, height=96)))
        with av.open(str(tmp_path / f"{name}")) as container:
            found.add(b"".join(bytes(packet) for packet in container.demux(video=0)))
    assert len(found) == 1


def test_eight_bits_out_of_sixteen_are_dithered_and_always_the_same(tmp_path: Path, clip: ClipInfo) -> None:
    # A gradient of a hundredth of a level per pixel would show bands of a hundred
    # pixels.
    slope = np.linspace(30_000, 30_600, 256)[None, :, None].repeat(64, 0).repeat(3, 2).astype(np.uint16)
    spec = choose_spec(clip, width_px=256, height_px=64, codec="ffv1", pix_fmt="yuv420p", threads=1)
    planes: list[np.ndarray] = []
    for name in "ab":
        with SegmentWriter(tmp_path / name, spec) as writer:
            writer.write(Frame(0, 1, slope))
        with av.open(str(tmp_path / name)) as container:
            planes.append(next(container.decode(video=0)).to_ndarray()[:64])
    assert (planes[0] == planes[1]).all()
    wanted = 16 + 219 * (slope[:, :, 0] / 65535)
    blocks = [each.reshape(8, 8, 32, 8).mean(axis=(1, 3)) for each in (planes[0].astype(float), wanted)]
    assert np.abs(blocks[0] - blocks[1]).max() < 0.1
    assert max(len(np.unique(planes[0][:, x])) for x in range(0, 256, 8)) > 1


def test_what_the_picture_loses_is_named(clip: ClipInfo) -> None:
    fine = replace(clip, pix_fmt="yuv444p12le", bit_depth=12)
    spec = choose_spec(fine, width_px=64, height_px=64, codec="av1", threads=1)
    assert [loss.split()[1] for loss in losses(fine, spec)] == ["input", "input"]
    assert losses(fine, choose_spec(fine, width_px=64, height_px=64, threads=1)) == ()
    with pytest.raises(UsageError, match="mov"):
        plan_streams(clip, ".mkv", codec="png")
