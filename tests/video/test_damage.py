"""Damaged and truncated files."""

from pathlib import Path

import av
import pytest

from tests.video.clips import ClipPlan, ffmpeg, make_clip
from tests.video.sources import X264, made, read
from ultraflash_cli.errors import InputError
from ultraflash_cli.video.probe import probe
from ultraflash_cli.video.truncation import missing_bytes


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4", ".mov", ".avi"])
def test_a_broken_tail_is_salvaged_and_its_loss_is_a_value(tmp_path: Path, suffix: str) -> None:
    codec = ["-c:v", "libvpx", "-g", "5"] if suffix == ".webm" else [*X264, "-g", "5"]
    flags = ["-movflags", "faststart"] if suffix in (".mp4", ".mov") else []
    whole, cut = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    ffmpeg(*made("4"), *codec, *flags, str(whole))
    assert missing_bytes(whole) == 0
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) * 6 // 10])
    assert missing_bytes(cut) == len(data) - len(data) * 6 // 10
    _, frames, warnings, report = read(cut)
    assert 20 < len(frames) < 95
    assert report.damaged and report.missing_bytes and (report.lost_s > 0 or suffix == ".avi")
    assert len(warnings) == 1 and "lost" in warnings[0] and "\n" not in warnings[0]
    _, frames, warnings, report = read(whole)
    assert len(frames) == 100 and not report.damaged and not warnings


def test_encrypted_videos_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    key = ["-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8"]
    ffmpeg(*made(), *X264, "-encryption_scheme", "cenc-aes-ctr", *key, str(path))
    with pytest.raises(InputError, match="is encrypted"):
        probe(path)


def test_an_unknown_codec_is_refused_in_one_line(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(InputError, match="codec") as refusal:
        probe(path)
    assert "\n" not in str(refusal.value)


def test_files_without_a_frame_are_refused_and_one_frame_is_enough(tmp_path: Path) -> None:
    one = make_clip(tmp_path / "a.mp4", ClipPlan(pts=(0,)))
    info, frames, _, _ = read(one)
    assert len(frames) == 1 and info.frame_count_estimate == 1
    empty = tmp_path / "b.mkv"
    with av.open(str(empty), "w") as container:
        container.add_stream("ffv1", rate=25, width=64, height=48)
        container.start_encoding()
    with pytest.raises(InputError, match=r"not a readable video"):
        probe(empty)
