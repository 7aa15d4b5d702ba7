"""Several streams, and streams that change within a clip."""

from pathlib import Path

from tests.video.clips import ClipPlan, ffmpeg, make_clip, mean_error, picture
from tests.video.sources import made, read
from ultraflash_cli.video.probe import probe


def test_cover_pictures_and_second_videos_are_never_taken_for_the_video(tmp_path: Path) -> None:
    ffmpeg(*made("0.04", "32x32"), "-frames:v", "1", str(tmp_path / "cover.png"))
    first, second = make_clip(tmp_path / "a.mp4"), make_clip(tmp_path / "b.mp4", ClipPlan(size=(48, 32)))
    path = tmp_path / "all.mp4"
    inputs = ["-i", str(tmp_path / "cover.png"), "-i", str(first), "-i", str(second)]
    maps = ["-map", "0", "-map", "1", "-map", "2", "-c", "copy", "-disposition:v:0", "attached_pic"]
    ffmpeg(*inputs, *maps, str(path))
    info, frames, _, _ = read(path)
    assert (info.width_px, len(frames)) == (64, 12)
    assert [stream.codec for stream in info.other_videos] == ["h264"]
    assert [stream.is_picture for stream in info.streams].count(True) == 1
    ffmpeg(*inputs[2:], "-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "0", "-disposition:v:1", "default",
           str(tmp_path / "b.mkv"))  # fmt: skip
    assert probe(tmp_path / "b.mkv").width_px == 48


def test_a_picture_that_changes_size_is_scaled_to_the_largest_and_it_is_reported_once(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{n}.ts", ClipPlan(size=size)) for n, size in enumerate([(64, 48), (96, 64)] * 2)]
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    _, frames, warnings, _ = read(path)
    assert len(frames) == 48
    assert {frame.rgb_hwc.shape for frame in frames} == {(64, 96, 3)}
    assert sum("(64x48 at 0.00 s); everything is scaled to 96x64" in warning for warning in warnings) == 1
    assert mean_error(frames[12 + 5].rgb_hwc, picture(5, width=96, height=64)) < 4


def test_pixels_that_change_their_shape_are_reported_once(tmp_path: Path) -> None:
    parts = [tmp_path / f"{number}.ts" for number in range(2)]
    for part, aspect in zip(parts, ("4/3", "16/9"), strict=True):
        ffmpeg(*made(), "-c:v", "mpeg2video", "-q:v", "3", "-aspect", aspect, str(part))
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts) * 2)
    info, frames, warnings, _ = read(path)
    assert info.sample_aspect_ratio == 1 and len(frames) == 40
    assert sum("changes from 1 to 4/3" in warning for warning in warnings) == 1
