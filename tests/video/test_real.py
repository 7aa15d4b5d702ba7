"""The real files next to the repository: each results in a correct file or a correct
refusal."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from tests.video.clips import copied_hashes, ffmpeg, shown_times
from ultraflash_cli.errors import InputError
from ultraflash_cli.video.check import check_output
from ultraflash_cli.video.containers import plan_streams
from ultraflash_cli.video.cuts import CutDetector
from ultraflash_cli.video.decode import ReadReport, read_frames
from ultraflash_cli.video.encode import choose_spec
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.join import join
from ultraflash_cli.video.probe import probe
from ultraflash_cli.video.segment import SegmentWriter
from ultraflash_cli.video.segment_file import SegmentFile

NAMES = [
    "r01_phone_vertical_352x640_aac.mp4",
    "r02_rotation_metadata_aac.mp4",
    "r03_vfr_screen_recording.mp4",
    "r04_anamorphic_sar_2x1.mp4",
    "r05_city_mpeg2.mpg",
    "r06_old_video_360p_aac.mp4",
    "r07_alpha_vp9.webm",
    "r08_newtons_cradle.gif",
    "r09_hevc_10bit_480p.mp4",
    "r10_interlaced_576i_sar_mpeg2.ts",
    "r11_odd_853x481_yuv444.mp4",
    "r12_chapters_subs_two_audio.mkv",
    "r13_truncated.mp4",
    "r14_vfr_270p.mp4",
    "r15_lowbitrate_240p_vp9_opus.webm",
    "r16_mpeg4_mp3_360p.avi",
]
WARNINGS = {
    "r07_alpha_vp9.webm": "transparency",
    "r10_interlaced_576i_sar_mpeg2.ts": "bwdif",
    "r13_truncated.mp4": "2.00 s are lost",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_real_file_keeps_every_frame_time_and_stream(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / "real" / name
    info = probe(source)
    warnings: list[str] = []
    # A small picture is enough here, because only times, streams and tags are tested.
    width, height = info.width_px // 8 * 2, info.height_px // 8 * 2
    spec = choose_spec(info, width_px=width, height_px=height, threads=1)
    plan = plan_streams(info, None, codec=spec.codec)
    segments: list[SegmentFile] = []
    writer: SegmentWriter | None = None
    count, start, end = 0, 0, 0
    for frame in read_frames(info, warn=warnings.append):
        if writer is None:
            writer = SegmentWriter(tmp_path / f"{count}.mp4", spec)
        writer.write(Frame(frame.pts, frame.duration, frame.rgb_hwc[:height, :width]))
        start = start if count else frame.pts
        end = frame.pts + frame.duration
        count += 1
        if count % 20 == 0:
            segments.append(writer.close())
            writer = None
    if writer is not None:
        segments.append(writer.close())
    target = tmp_path / f"out{plan.suffix}"
    join(segments, info, plan, spec, target)
    duration_s = (end - start) * info.time_base
    check_output(target, plan=plan, frames=count, spec=spec, duration_s=duration_s)

    if name == "r13_truncated.mp4":  # the independent reader reports an error for a truncated file
        assert count == 48
    else:
        assert shown_times(target) == shown_times(source)
        assert copied_hashes(target) == copied_hashes(source)
    assert not plan.dropped
    assert len(warnings) == (name in WARNINGS) and WARNINGS.get(name, "") in "".join(warnings)
    again = probe(target)
    assert (again.rotation_deg, again.sample_aspect_ratio) == (info.rotation_deg, info.sample_aspect_ratio)
    assert again.bit_depth == info.bit_depth and not again.interlaced
    assert again.chapters == info.chapters
    if info.color.matrix != 2 and not info.is_rgb:
        assert again.color == info.color


def test_a_file_without_its_index_is_refused(shared_data: Path) -> None:
    with pytest.raises(InputError, match="moov"):
        probe(shared_data / "real" / "r17_no_moov.mp4")


def test_cuts_between_real_scenes_are_found_and_none_within(shared_data: Path, tmp_path: Path) -> None:
    clips = sorted((shared_data / "eval").glob("*.mp4"))
    detector, answers, borders, count = CutDetector(), [], [], 0
    for clip in clips:
        borders.append(count)
        small = tmp_path / clip.name
        ffmpeg("-i", str(clip), "-frames:v", "24", "-vf", "scale=320:-2", "-preset", "ultrafast", "-an", str(small))
        for frame in read_frames(probe(small), warn=print):
            answers += detector.push(frame.rgb_hwc)
            count += 1
    answers += detector.flush()
    assert [number for number, cut in enumerate(answers) if cut] == borders[1:]
    assert all(b - a == 24 for a, b in pairwise(borders))


def test_declared_durations_and_ours_agree(shared_data: Path) -> None:
    for name in NAMES:
        info = probe(shared_data / "real" / name)
        if info.duration_s is None or name in ("r13_truncated.mp4", "r14_vfr_270p.mp4") or info.width_px > 1000:
            continue
        last = list(read_frames(info, warn=lambda _: None))[-1]
        end_s = (last.pts + last.duration) * info.time_base
        assert abs(end_s - Fraction(info.start_s) - Fraction(info.duration_s)) < Fraction(2, 1000), name


def test_the_damage_of_real_files_is_a_value(shared_data: Path) -> None:
    report = ReadReport()
    frames = list(read_frames(probe(shared_data / "real" / "r13_truncated.mp4"), warn=print, report=report))
    assert (report.frames, len(frames)) == (48, 48)
    assert report.damaged and report.lost_s == 2 and report.missing_bytes > 0
    whole = ReadReport()
    list(read_frames(probe(shared_data / "real" / "r15_lowbitrate_240p_vp9_opus.webm"), warn=print, report=whole))
    assert not whole.damaged and not whole.repaired_times


def test_real_transparency_and_fields_are_found(shared_data: Path) -> None:
    info = probe(shared_data / "real" / "r07_alpha_vp9.webm")
    warnings: list[str] = []
    frames = [next(read_frames(info, alpha=True, warn=warnings.append))]
    alpha_hw = frames[0].alpha_hw
    assert info.has_alpha and not warnings
    assert alpha_hw is not None and alpha_hw.min() == 0 and alpha_hw.max() == 255
    scans = {name: probe(shared_data / "real" / name).scan for name in NAMES}
    assert {name for name, scan in scans.items() if scan != "progressive"} == {"r10_interlaced_576i_sar_mpeg2.ts"}
    assert scans["r10_interlaced_576i_sar_mpeg2.ts"] == "flagged"
