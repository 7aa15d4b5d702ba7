"""Clips as users have them, and the expected result for each."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from tests.video.clips import ClipPlan, ffmpeg, make_clip
from tests.video.kinds import KINDS, Kind
from tests.video.kinds import make as make_kind
from tests.video.rows import ROWS, Row

__all__ = [
    "CASES",
    "CLEAR",
    "DISPLAY",
    "EVERYTHING",
    "FIELDS",
    "HDR",
    "MATERIAL",
    "MOVING",
    "QUICK",
    "REFUSED",
    "WAVES",
    "X264",
    "X265",
    "Case",
    "cut_open_group",
    "cut_tail",
    "encrypted",
    "made",
    "of_kind",
    "of_row",
    "of_unknown_codec",
    "planned",
    "without_frames",
    "without_index",
    "without_times",
]

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
    """A kind of input and the expected output."""

    name: str
    """Of the file."""
    make: Callable[[Path, Path], object]
    """Writes the file; the second folder holds ``MATERIAL``."""
    keeps: tuple[str, ...] = ()
    """Words that the other program prints for both videos."""
    says: str = ""
    """Part of the expected warning in the report; if empty, no warning is expected
    except those listed elsewhere."""
    suffix: str = ""
    """Suffix of the output, if it differs from the input's."""
    left_out: tuple[str, ...] = ()
    """Codecs of tracks that are not copied unchanged."""
    levels: float = 6.0
    """Mean absolute difference allowed, of 255."""
    before: str = ""
    """Filter that makes the source's pictures comparable with the result's."""
    scaling: str = ""
    alpha: bool = False
    """Whether the result must have transparency."""
    late_end: bool = False
    """Whether the other program fails to see the duration of the source's last
    frame."""
    times: bool = True
    """Whether the other program reads the correct times from the source."""


def made(arguments: str) -> Callable[[Path, Path], object]:
    """Make a file with FFmpeg arguments, in which ``{dir}`` is the folder of the
    material."""
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
