"""Audio of all kinds: copied, repacked, converted or reported."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from tests.cli.tracks import PICTURE, X264, Runner, make, samples
from tests.video.clips import copied_hashes, ffmpeg

STUDIO = "-f lavfi -i anoisesrc=d=0.4:r=48000:a=0.3 -ac 2 -strict -2"


@pytest.mark.parametrize(
    ("name", "sound", "output", "codec"),
    [
        ("a.ts", f"{STUDIO} -c:v mpeg2video -c:a s302m", "", "flac"),
        ("a.ts", f"{STUDIO} -c:v mpeg2video -c:a s302m", "out.mkv", "pcm_s24le"),
        ("a.m2ts", f"{STUDIO} {X264} -c:a pcm_bluray", "out.mov", "pcm_s24le"),
        ("a.vob", f"{STUDIO} -c:v mpeg2video -c:a pcm_dvd", "out.mp4", "flac"),
        ("a.avi", f"{STUDIO} {X264} -ar 8000 -c:a pcm_mulaw", "", "pcm_mulaw"),
        ("a.avi", f"{STUDIO} {X264} -ar 8000 -c:a pcm_alaw", "out.mkv", "pcm_s16le"),
        ("a.avi", f"{STUDIO} {X264} -c:a pcm_u8", "out.mp4", "flac"),
        ("a.mov", f"{STUDIO} {X264} -c:a pcm_f32be", "out.mkv", "pcm_f32le"),
        ("a.mkv", f"{STUDIO} {X264} -sample_fmt s16 -c:a tta", "out.mov", "pcm_s16le"),
    ],
)
def test_sound_that_cannot_be_copied_keeps_every_sample(
    run: Runner, tmp_path: Path, name: str, sound: str, output: str, codec: str
) -> None:
    source = make(tmp_path / name, f"{PICTURE.format(0.4)} {sound}")
    done = run(source, output)
    assert done.code == 0, done.error
    assert samples(done.output) == samples(source)
    assert "left out" not in done.warnings
    with av.open(str(source)) as before, av.open(str(done.output)) as after:
        assert after.streams.audio[0].codec_context.codec.canonical_name == codec
        starts = [
            (sound.start_time or 0) * (sound.time_base or 0) - (picture.start_time or 0) * (picture.time_base or 0)
            for sound, picture in ((each.streams.audio[0], each.streams.video[0]) for each in (before, after))
        ]
    assert abs(starts[0] - starts[1]) <= 0.001


def test_the_container_that_keeps_the_sound_is_chosen_and_named(run: Runner, cases: Path) -> None:
    for case in ("11-mulaw.avi", "18-amr.3gp"):
        done = run(cases / case)
        assert done.code == 0, done.error
        assert done.output.suffix == ".mov" and "written as .mov, because .mp4 cannot hold" in done.warnings
        assert copied_hashes(done.output) == copied_hashes(cases / case) != []
    named = run(cases / "18-amr.3gp", "out.mp4")
    assert "left out: stream 1 audio amr_nb: .mp4 cannot hold it; .mov can, --audio aac converts it" in named.warnings


def loudness(path: Path, rate: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the first audio track relative to the first frame, as another program
    plays it."""
    raw = path.with_suffix(".f32")
    ffmpeg("-i", str(path), "-map", "0:a:0", "-ac", "1", "-ar", str(rate), "-c:a", "pcm_f32le", "-f", "f32le", str(raw))
    return np.fromfile(raw, np.float32)


@pytest.mark.parametrize("output", ["out.mp4", "out.mkv", "out.mov"])
def test_converted_sound_lies_where_it_lay_and_lasts_as_long(run: Runner, cases: Path, output: str) -> None:
    source = cases / "18-amr.3gp"
    done = run(source, output, "--audio", "aac")
    assert done.code == 0, done.error
    with av.open(str(done.output)) as result:
        assert result.streams.audio[0].codec_context.codec.canonical_name == (
            "amr_nb" if output == "out.mov" else "aac"
        )
    shutil.copy(source, done.output.with_name("source.3gp"))
    before, after = loudness(done.output.with_name("source.3gp"), 8000), loudness(done.output, 8000)
    assert abs(len(before) - len(after)) <= 1
    count = min(len(before), len(after)) - 256
    errors = [float(np.abs(before[128:count] - after[128 + lag : count + lag]).mean()) for lag in range(-128, 129)]
    assert errors.index(min(errors)) == 128, "no sample earlier or later"


@pytest.mark.parametrize(("kind", "output"), [("aac", "out.mkv"), ("flac", "out.mp4")])
def test_broadcast_sound_that_no_container_holds_is_converted_where_asked(
    run: Runner, cases: Path, kind: str, output: str
) -> None:
    source = cases / "38-latm.ts"
    silent = run(source, output)
    assert "left out: stream 1 audio aac_latm" in silent.warnings and "--audio aac converts it" in silent.warnings
    done = run(source, output, "--audio", kind, "-y")
    assert done.code == 0, done.error
    assert "left out" not in done.warnings
    with av.open(str(source)) as before, av.open(str(done.output)) as after:
        sound, was = after.streams.audio[0], before.streams.audio[0]
        assert sound.codec_context.codec.canonical_name == kind
        assert (
            abs((sound.start_time or 0) * (sound.time_base or 0) - (was.start_time or 0) * (was.time_base or 0)) < 0.001
        )
        assert sum(frame.samples for frame in after.decode(sound)) == sum(frame.samples for frame in before.decode(was))


def test_a_gap_in_converted_sound_stays_a_gap(run: Runner, tmp_path: Path) -> None:
    source = make(
        tmp_path / "a.avi",
        f"{PICTURE.format(1)} -f lavfi -i sine=r=8000:d=1 {X264} -ar 8000 -c:a pcm_mulaw",
    )
    holed = tmp_path / "a.mkv"
    ffmpeg(
        "-i", str(source), "-c", "copy", "-bsf:a", "noise=drop='between(pts*tb,0.3,0.6)'", "-f", "matroska", str(holed)
    )
    for output in ("out.mkv", "out.mp4"):
        done = run(holed, output)
        assert done.code == 0, done.error
        heard, was = heard_in(done.output), heard_in(holed)
        assert len(heard) == len(was) and heard.index(False) > 20 and heard[-1]
        assert sum(a != b for a, b in zip(heard, was, strict=True)) <= 2


def heard_in(path: Path) -> list[bool]:
    """Return for each hundredth of a second whether there is sound."""
    heard = np.zeros(8000, np.float32)
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.audio[0]):
            start = round((frame.pts or 0) * (frame.time_base or 0) * 8000)
            piece = frame.to_ndarray().reshape(-1)[: len(heard) - start]
            heard[start : start + len(piece)] = np.abs(piece.astype(np.float32))
    return [bool(each) for each in heard.reshape(100, 80).max(axis=1) > 100]
