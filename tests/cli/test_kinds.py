"""Every kind of file through the command, each result compared with its source by another program."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from tests.cli.independent import Seen, Track, look
from tests.jobs.doubler import builder
from tests.video.clips import SUBTITLES, ClipPlan, ffmpeg, make_clip
from tests.video.kinds import KINDS, Kind
from tests.video.kinds import make as make_kind
from tests.video.rows import ROWS, Row
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main

QUICK = ("--model", "lite", "--device", "cpu", "--threads", "1")
MATERIAL = {
    "long.mp4": "-f lavfi -i testsrc=s=64x48:r=25:d=1.2 -f lavfi -i sine=r=48000:d=1.2 -c:v libx264 -preset medium "
    "-bf 3 -g 10 -c:a aac",
    **{f"c.{suffix}": "-f lavfi -i testsrc=s=32x32 -frames:v 1" for suffix in ("png", "jpg", "gif", "bmp")},
}
MOVING = "-f lavfi -i testsrc2=size=64x48:rate=25:duration={}"
X264 = "-c:v libx264 -preset ultrafast"
X265 = "-c:v libx265 -preset ultrafast -x265-params log-level=none"
FIELDS = "-f lavfi -i color=gray:size=64x48:rate=50:duration=0.4"
WAVES = "geq=lum='128+100*sin((X+N*3)/7)*cos((Y+N)/9)':cb=128:cr=128"
CLEAR = "-f lavfi -i color=red:size=64x48:rate=25:duration=0.2,format={},geq={}:a='Y*5'"
DISPLAY = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
HDR = f"-pix_fmt yuv420p10le {X265}:master-display={DISPLAY}:max-cll=990,120"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of input and what must come out."""

    name: str
    """Of the file."""
    make: Callable[[Path, Path], object]
    """Writes the file; the second folder holds ``MATERIAL``."""
    keeps: tuple[str, ...] = ()
    """Words that the other program says of both pictures."""
    says: str = ""
    """A part of a warning of the report; there is none where it is empty, but for those that are said elsewhere."""
    suffix: str = ""
    """Of the output, where it is not the input's."""
    left_out: tuple[str, ...] = ()
    """Codecs of tracks that do not come along as they are."""
    levels: float = 6.0
    """Mean absolute difference allowed, of 255."""
    before: str = ""
    """A filter that the source's pictures need to be like the result's."""
    scaling: str = ""
    alpha: bool = False
    """Whether transparency must come out."""
    late_end: bool = False
    """Whether the other program misses how long the last frame of the source is shown."""
    times: bool = True
    """Whether the other program finds the right times in the source."""


def made(arguments: str) -> Callable[[Path, Path], object]:
    """Make a file by arguments of FFmpeg, in which ``{dir}`` is the folder of the material."""
    return lambda path, material: ffmpeg(*arguments.replace("{dir}", str(material)).split(), str(path))


def planned(**plan: Any) -> Callable[[Path, Path], object]:
    return lambda path, _: make_clip(path, ClipPlan(pts=range(5), **plan))


def of_kind(name: str, kind: Kind) -> Case:
    large = {"dv": "0.04", "hd untagged": "0.04"}
    small = replace(kind, seconds=large.get(name, "0.2"), size="1280x16" if name == "hd untagged" else kind.size)

    def make(path: Path, _: Path) -> None:
        folder = path.with_suffix("")
        folder.mkdir()
        make_kind(small, folder).rename(path)

    bwdif = "bwdif=mode=send_frame:deint=all," if "bwdif" in kind.says else ""
    return Case(
        name=f"{name}{kind.suffix}",
        make=make,
        before=bwdif,
        scaling=kind.reader,
        says=kind.says,
        levels={"monochrome png": 30.0, "410": 12.0, "411": 12.0}.get(name, 6.0),
        late_end=kind.suffix == ".ogv",
    )


def of_row(name: str, row: Row) -> Case:
    tags = " -metadata title=T -metadata:s:v:0 language=jpn"
    return Case(
        name=f"{name}{Path(row.source).suffix}",
        make=made(row.made + tags),
        suffix=row.becomes,
        left_out=(*row.dropped, *row.converted),
        says=row.says,
        levels=10.0,
        late_end=name == "times before zero",
    )


def without_times(path: Path, _: Path) -> None:
    source = make_clip(path.with_suffix(".whole.mkv"), ClipPlan(codec="ffv1", options={}))
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(given.demux(video=0)):
            if packet.size:
                packet.pts = packet.dts = (number - (number in (4, 5, 6))) * 40
                packet.stream = stream
                out.mux_one(packet)
    source.unlink()


def cut_open_group(path: Path, _: Path) -> None:
    whole = path.with_suffix(".whole.ts")
    ffmpeg(*MOVING.format("1").split(), "-c:v", "libx264", "-bf", "3", "-g", "10", "-x264-params", "open-gop=1",
           str(whole))  # fmt: skip
    content = whole.read_bytes()
    path.write_bytes(content[len(content) // 188 * 2 // 5 * 188 :])
    whole.unlink()


def cut_tail(path: Path, _: Path) -> None:
    whole = path.with_suffix(".whole.mkv")
    ffmpeg(*MOVING.format("2").split(), *X264.split(), "-g", "5", str(whole))
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    whole.unlink()


EVERYTHING = (
    f"{MOVING.format('0.4')} -f lavfi -i sine=r=48000:d=0.4 -f lavfi -i sine=500:r=44100:d=0.4 -i {{dir}}/a.srt "
    "-i {dir}/chapters -map 0 -map 1 -map 2 -map 3 -map_chapters 4 -map_metadata 4 "
    f"{X264} -c:a:0 aac -c:a:1 libopus -c:s srt -attach {{dir}}/a.srt -metadata:s:t:0 mimetype=font/ttf "
    "-attach {dir}/c.jpg -metadata:s:t:1 mimetype=image/jpeg -metadata:s:a:0 language=eng -metadata:s:a:1 language=jpn "
    "-metadata:s:s:0 language=ger -disposition:a:1 default -disposition:s:0 forced"
)
CASES = [
    *(of_kind(name, kind) for name, kind in KINDS.items()),
    *(of_row(name, row) for name, row in ROWS.items() if row.suffix is None and row.codec == "auto"),
    Case(name="everything.mkv", make=made(EVERYTHING)),
    Case(name="rotated 90.mp4", make=planned(rotation=90), keeps=("rotation of",)),
    Case(name="rotated 180.mov", make=planned(rotation=180), keeps=("rotation of -180.00",)),
    Case(name="rotated 270.mp4", make=planned(rotation=270), keeps=("rotation of",)),
    Case(name="rotated.mkv", make=planned(rotation=90), keeps=("rotation of",)),
    Case(name="mirrored.mp4", make=made("-display_hflip -i {dir}/long.mp4 -t 0.2 -c copy"), keeps=("isplay Matrix",)),
    Case(name="wide pixels.mp4", make=planned(aspect=Fraction(4, 3)), keeps=("SAR 4:3",)),
    Case(name="narrow pixels.mkv", make=planned(aspect=Fraction(8, 9)), keeps=("SAR 8:9",)),
    Case(
        name="turned and wide.mp4",
        make=planned(rotation=90, aspect=Fraction(2)),
        keeps=("SAR 2:1", "rotation of"),
    ),
    Case(
        name="bt601.mp4",
        make=made(f"{MOVING.format('0.2')} -vf setparams=colorspace=smpte170m:color_primaries=smpte170m:"
                  f"color_trc=smpte170m:range=limited {X264}"),
        keeps=("tv, smpte170m",),
    ),
    Case(
        name="full bt709.mkv",
        make=made(f"{MOVING.format('0.2')} -vf scale=out_color_matrix=bt709:out_range=full,setparams=colorspace=bt709:"
                  f"color_primaries=bt709:color_trc=bt709:range=full -pix_fmt yuv420p {X264}"),
        keeps=("pc, bt709",),
    ),
    *(
        Case(
            name=f"{transfer}{suffix}",
            make=made(f"{MOVING.format('0.12')} -vf scale=out_color_matrix=bt2020,setparams=range=limited:"
                      f"color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc {HDR}"),
            keeps=(
                f"yuv420p10le(tv, bt2020nc/bt2020/{transfer}",
                "astering display",
                "ontent light level",
            ),
        )
        for transfer, suffix in (("smpte2084", ".mp4"), ("smpte2084", ".mkv"), ("arib-std-b67", ".mp4"))
    ),
    Case(
        name="12 bits 444.mp4",
        make=made(f"{MOVING.format('0.2')} -pix_fmt yuv444p12le {X265}"),
        keeps=("yuv444p12le",),
    ),
    Case(
        name="flagged fields.ts",
        make=made(f"{FIELDS} -vf {WAVES},tinterlace=interleave_top,setfield=tff -c:v mpeg2video -q:v 2 "
                  "-flags +ilme+ildct"),
        before="bwdif=mode=send_frame:deint=all,",
        says="bwdif",
    ),
    Case(
        name="fields without a flag.mkv",
        make=made(f"{FIELDS.replace('64x48', '160x96').replace('0.4', '1')} "
                  f"-vf {WAVES},tinterlace=interleave_bottom,setfield=prog -c:v ffv1"),
        before="setfield=bff,bwdif=mode=send_frame:deint=all,",
        says="bwdif",
    ),
    Case(
        name="clear vp9.webm",
        make=made(CLEAR.format("yuva420p", "lum='X*3':cb=128:cr=128") + " -c:v libvpx-vp9 -lossless 1 -auto-alt-ref 0"),
        alpha=True,
    ),
    Case(
        name="clear prores.mov",
        make=made(CLEAR.format("rgba", "r='X*3':g='Y':b=50") + " -c:v prores_ks -pix_fmt yuva444p10le"),
        alpha=True,
    ),
    Case(
        name="clear.gif",
        make=made("-f lavfi -i color=red:size=64x48:rate=10:duration=0.3,format=rgba,geq=r=200:g=X:b=0:"
                  "a='if(lt(X\\,32)\\,0\\,255)' -filter_complex split[a][b];[a]palettegen[p];[b][p]paletteuse"),
        alpha=True,
        suffix=".webm",
        says="transparent vp9",
    ),
    Case(
        name="a time code without a rate.mkv",
        make=made(f"{MOVING.format('0.2')} -vf settb=1/1000,setpts=N*N*3+N*7 -fps_mode passthrough "
                  f"-enc_time_base 1/1000 {X264} -timecode 01:02:03:04"),
    ),
    Case(name="doubled times.mkv", make=without_times, says="missing, repeated or went backwards", times=False),
    Case(name="an open group cut.ts", make=cut_open_group, times=False, levels=255),
    Case(name="a tail cut.mkv", make=cut_tail, says="lost", times=False),
    Case(
        name="several videos.mp4",
        make=made(f"{MOVING.format('0.2')} -f lavfi -i testsrc=s=96x64:r=25:d=0.4 -i {{dir}}/c.jpg -map 0 -map 1 "
                  f"-map 2 -c:v libx264 -c:v:2 copy -disposition:v:2 attached_pic"),
    ),
]  # fmt: skip


def encrypted(path: Path, _: Path) -> None:
    key = ["-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8"]
    ffmpeg(*MOVING.format("0.2").split(), *X264.split(), "-encryption_scheme", "cenc-aes-ctr", *key, str(path))


def without_frames(path: Path, _: Path) -> None:
    with av.open(str(path), "w") as container:
        container.add_stream("ffv1", rate=25, width=64, height=48)
        container.start_encoding()


def of_unknown_codec(path: Path, _: Path) -> None:
    path.write_bytes(make_clip(path).read_bytes().replace(b"avc1", b"zzzz"))


def without_index(path: Path, _: Path) -> None:
    content = make_clip(path).read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])


REFUSED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "encrypted.mp4": (encrypted, "is encrypted"),
    "no frames.mkv": (without_frames, "not a readable video"),
    "unknown codec.mp4": (of_unknown_codec, "codec"),
    "no index.mp4": (without_index, "moov"),
    "sound alone.mp4": (made("-f lavfi -i sine=d=0.2 -c:a aac"), "no video"),
    "text.mkv": (lambda path, _: path.write_text("no film " * 99), "not a video"),
    "empty.mp4": (lambda path, _: path.write_bytes(b""), "empty"),
    "not there.mp4": (lambda path, _: None, "no such file"),
}


@dataclass(frozen=True)
class Batch:
    """What one command made of all cases."""

    source: Path
    reports: dict[str, dict[str, Any]]
    said: str
    code: int


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    (folder / "a.srt").write_text(SUBTITLES)
    parts = [f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={n * 200}\nEND={n * 200 + 200}\ntitle=Part {n}\n" for n in range(2)]
    (folder / "chapters").write_text(f";FFMETADATA1\ntitle=A title\nartist=Some\ncamera=Mine\n{''.join(parts)}")
    for name, arguments in MATERIAL.items():
        ffmpeg(*arguments.split(), str(folder / name))
    return folder


@pytest.fixture(scope="module")
def batch(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    folder = tmp_path_factory.mktemp("kinds")
    for case in CASES:
        case.make(folder / case.name, material)
    for name, (make, _) in REFUSED.items():
        make(folder / name, material)
    files = [str(folder / name) for name in (*(case.name for case in CASES), *REFUSED)]
    command = [sys.executable, "-m", "ultraflash_cli", "upscale", *files, "-o", str(folder / "out"), "--res", "2x"]
    done = subprocess.run(
        [*command, *QUICK, "--keep-going", "--json", "-q"], capture_output=True, text=True, timeout=600
    )
    reports = {Path(report["input"]).name: report for report in map(json.loads, done.stdout.splitlines())}
    return Batch(source=folder, reports=reports, said=done.stderr, code=done.returncode)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_comes_out_is_what_came_in(tmp_path: Path, batch: Batch, case: Case) -> None:
    report, source = batch.reports[case.name], batch.source / case.name
    assert "error" not in report, report["error"]
    output = Path(report["output"])
    decoder = {True: "libvpx-vp9"}
    before = look(
        source,
        tmp_path,
        decoder=decoder.get(case.alpha and source.suffix == ".webm", ""),
        before=case.before,
        scaling=case.scaling,
    )
    after = look(output, tmp_path, decoder=decoder.get(case.alpha and output.suffix == ".webm", ""))
    assert not case.suffix or output.suffix == case.suffix
    said = " ".join(report["warnings"])
    assert case.says in said
    same_picture(case, before, after)
    if case.times:
        moved = same_times(case, source, output, before, after, said)
        same_tracks(case, source, before, after, moved)
        assert before.tags.items() <= after.tags.items()
        assert [(start + moved, end + moved, title) for start, end, title in before.chapters] == list(after.chapters)


def same_picture(case: Case, before: Seen, after: Seen) -> None:
    assert after.size == (2 * before.size[0], 2 * before.size[1])
    assert (after.aspect, after.turn) == (before.aspect, before.turn)
    assert after.bits >= min(before.bits, 12)
    if not before.pix_fmt.startswith(("rgb", "bgr", "gbr", "argb", "xyz", "pal", "mono")):
        assert before.colors <= after.colors
    for words in case.keeps:
        assert words in before.picture
        assert words in after.picture
    # A reader of another kind may give up fewer pictures of what is damaged.
    assert case.times is False or len(before.pictures) == len(after.pictures)
    count = min(len(before.pictures), len(after.pictures))
    a, b = before.pictures[:count], after.pictures[:count]
    opaque = a[..., 3:] / 255 if case.alpha else np.ones(1)
    assert np.abs((a[..., :3] - b[..., :3]) * opaque).mean() < case.levels
    assert np.abs(a[..., 3] - b[..., 3]).mean() < (3 if case.alpha else 256)


def same_times(case: Case, source: Path, output: Path, before: Seen, after: Seen, said: str) -> Fraction:
    """Compare when frames are shown; gives how much later all is."""
    exact = output.suffix not in (".mkv", ".webm") or source.suffix in (".mkv", ".webm")
    slack = Fraction(0) if exact else Fraction(1, 1000)
    moved = after.times[0] - before.times[0]
    assert abs(moved) <= slack or "later" in said or "clock" in said
    assert max(abs(b - a - moved) for a, b in zip(before.times, after.times, strict=True)) <= slack
    assert case.late_end or abs(after.end - before.end - moved) <= Fraction(2, 1000)
    return moved


def same_tracks(case: Case, source: Path, before: Seen, after: Seen, moved: Fraction) -> None:
    left = list(after.tracks)
    for track in before.tracks:
        if track.codec in case.left_out or track.kind == "Data":
            continue
        twin = twin_of(track, left, hashed=not (source.suffix == ".ts" and track.codec == "aac"))
        left.remove(twin)
        assert twin.language in (track.language, "und")
        if len(track.times) > 1:
            slack = Fraction(1, 1000) if source.suffix != Path(case.suffix or source).suffix else Fraction(1, 20000)
            assert max(abs(b - a - moved) for a, b in zip(track.times, twin.times, strict=True)) <= slack
            assert abs(twin.end - track.end - moved) <= Fraction(1, 20)


def twin_of(track: Track, tracks: Sequence[Track], *, hashed: bool) -> Track:
    found = [each for each in tracks if (each.hashes == track.hashes if hashed else each.codec == track.codec)]
    assert found, f"{track.kind} {track.codec} is not there as it was"
    return found[0]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(batch: Batch, name: str) -> None:
    report = batch.reports[name]
    assert report["exit_code"] == 3
    assert REFUSED[name][1] in report["error"].lower() and "\n" not in report["error"]
    assert not list((batch.source / "out").glob(f"{Path(name).stem}*"))


def test_the_batch_says_what_failed_and_leaves_nothing_unfinished(batch: Batch) -> None:
    assert batch.code == 9
    assert f"{len(REFUSED)} of {len(CASES) + len(REFUSED)} files failed" in batch.said.splitlines()[-1]
    assert "Traceback" not in batch.said
    assert not [path.name for path in (batch.source / "out").iterdir() if path.name.startswith(".")]


# What takes a command of its own


def upscale(*arguments: object) -> int:
    return main(["upscale", *map(str, arguments), *QUICK, "-q"])


@pytest.mark.parametrize("suffix", [".y4m", ".mkv", ".ts"])
def test_a_pipe_gives_what_the_file_gives(
    tmp_path: Path, material: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    source, output = tmp_path / f"a{suffix}", tmp_path / "out.mkv"
    sound = "" if suffix == ".y4m" else "-f lavfi -i sine=r=48000:d=0.2 -c:a ac3"
    made(f"{MOVING.format('0.2')} {sound}{'' if suffix == '.y4m' else ' ' + X264} -pix_fmt yuv420p")(source, material)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(source.read_bytes())))
    assert upscale("-", "-o", output, "--res", "2x", "--temp-dir", tmp_path / "temp") == 0
    before, after = look(source, tmp_path), look(output, tmp_path)
    case = Case(name=source.name, make=made(""), suffix=".mkv")
    same_picture(case, before, after)
    moved = same_times(case, source, output, before, after, "")
    same_tracks(case, source, before, after, moved)
    assert len(after.tracks) == (suffix != ".y4m")


def test_pictures_are_a_clip_by_their_folder_and_by_their_names(tmp_path: Path, material: Path) -> None:
    folder = tmp_path / "shot"
    folder.mkdir()
    made(f"{MOVING.format('0.2')} -start_number 7")(folder / "%05d.png", material)
    for number, source in enumerate(([folder, "--images"], [folder / "%05d.png", "--fps", "10"])):
        output = tmp_path / f"{number}.mp4"
        assert upscale(*source, "-o", output, "--res", "2x") == 0
        after = look(output, tmp_path)
        assert after.times == tuple(Fraction(n, (24, 10)[number]) for n in range(5))
        assert after.size == (128, 96)
    assert upscale(folder, "--images", "-o", tmp_path / "new" / "%03d.png", "--res", "2x") == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"{n:03d}.png" for n in range(7, 12)]
    (folder / "00009.png").unlink()
    assert upscale(folder, "--images", "-o", tmp_path / "gap.mp4", "--res", "2x") == 3


def test_a_damaged_tail_is_refused_where_that_is_asked_for(
    batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mkv"
    assert upscale(batch.source / "a tail cut.mkv", "-o", output, "--res", "2x", "--strict") == 3
    assert "--strict" in capsys.readouterr().err.splitlines()[-1]
    assert not output.exists()


def test_transparency_that_the_output_cannot_hold_is_named(
    batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mp4"
    assert upscale(batch.source / "clear vp9.webm", "-o", output, "--res", "2x") == 0
    assert "transparency is not kept" in capsys.readouterr().err
    assert len(look(output, tmp_path).times) == 5


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "h264"), (".mov", "prores"), (".webm", "vp9"), (".y4m", "y4m")])
def test_every_container_and_codec_can_be_asked_for(batch: Batch, tmp_path: Path, suffix: str, codec: str) -> None:
    source, output = batch.source / "everything.mkv", tmp_path / f"out{suffix}"
    assert upscale(source, "-o", output, "--res", "2x", "--codec", codec) == 0
    before, after = look(source, tmp_path), look(output, tmp_path)
    case = Case(name=source.name, make=made(""))
    same_picture(case, before, after)
    same_times(case, source, output, before, after, "")
    kinds = sorted(track.codec for track in after.tracks if track.kind != "Data")  # chapters are data to FFmpeg
    assert (
        kinds
        == {
            ".mp4": ["aac", "mjpeg", "mov_text", "opus"],
            ".mov": ["aac", "mov_text"],
            ".webm": ["opus", "webvtt"],
            ".y4m": [],
        }[suffix]
    )


def test_a_shape_of_pixels_that_is_not_kept_is_named(
    batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = batch.source / "narrow pixels.mkv"
    for suffix, kept in ((".mp4", True), (".webm", False)):
        assert upscale(source, "-o", tmp_path / f"out{suffix}", "--res", "2x", "--codec", "vp9") == 0
        assert ("cannot be stored" in capsys.readouterr().err) != kept
        assert (look(tmp_path / f"out{suffix}", tmp_path).aspect == Fraction(8, 9)) == kept


def test_a_picture_of_4k_is_refused_or_reduced_by_a_flag(
    tmp_path: Path, material: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "4k.mp4"
    made(f"-f lavfi -i color=gray:size=3840x2160:rate=25:duration=0.04 {X264}")(source, material)
    assert upscale(source, "--res", "2k", "--dry-run") == 2
    assert "--downscale" in capsys.readouterr().err
    assert upscale(source, "--res", "2k", "--downscale", "--dry-run") == 0


REAL = "r{:02d}_*"


@pytest.mark.parametrize("number", range(1, 18))
def test_a_part_of_a_real_file_keeps_its_frames_and_tracks(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))
    (source,) = (shared_data / "real").glob(REAL.format(number))
    output = tmp_path / "out.mkv"
    code = upscale(source, "-o", output, "--res", "2x", "--end", "0.2")
    if source.name == "r17_no_moov.mp4":
        assert code == 3 and not output.exists()
        return
    assert code == 0
    after = look(output, tmp_path)
    if source.name == "r13_truncated.mp4":  # the other program calls a cut file an error
        assert len(after.times) == 5
        return
    before = look(source, tmp_path, before="bwdif=mode=send_frame:deint=all," if "interlaced" in source.name else "")
    first = before.times[0]
    expected = [time - first for time in before.times if time - first < Fraction(1, 5)]
    shown = [time - after.times[0] for time in after.times]
    assert max(abs(a - b) for a, b in zip(expected, shown, strict=True)) <= Fraction(1, 1000)
    count = len(expected)
    assert (after.aspect, after.turn) == (before.aspect, before.turn)
    assert after.bits >= before.bits and before.colors <= after.colors
    assert np.abs(before.pictures[:count, :, :, :3] - after.pictures[..., :3]).mean() < 4
    assert [track.kind for track in after.tracks] == [track.kind for track in before.tracks if track.kind != "Data"]
    for track in after.tracks:
        assert any(set(track.hashes) <= set(each.hashes) for each in before.tracks)
