"""Hostile folders, links, names and clocks, drawn by number: each becomes a right file or one line, nothing else."""

import hashlib
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import pytest

from tests.jobs.clips import make_clip
from tests.jobs.doubler import builder
from tests.video.clips import ffmpeg
from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameUpscaler

COUNT, BATCHES = 300, 6
DOCUMENTED = {0, 2, 3, 5, 6, 7, 9}
"""Exit codes that a wrong file, name or folder may have; 1 is a fault of ours."""
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
NAMES = (
    b"plain.mkv",
    b" leading and trailing .mkv",
    b"-y.mkv",
    b"--help.mkv",
    b".hidden.mkv",
    b"caf\xe9.mkv",
    b"\xff\xfe\xfd.mkv",
    b"a\nerror: forged.mkv",
    b"a\x1b[31mred\x1b]0;title\x07.mkv",
    b"a\rb\tc\x7f.mkv",
    "m\u00fcnchen\u202egnp.mkv".encode(),
    "\U0001f388 e\u0301.mkv".encode(),
    b"%s %d %05d.mkv",
    b"100%.mkv",
    b"[1].mkv",
    b"a*?b.mkv",
    b"{a}'\"$(id)`id`;&|.mkv",
    b"http:example.mkv",
    b"file:a.mkv",
    b"concat:a|b.mkv",
    b"con.mkv",
    b"a.b.c..mkv",
    b"a.MKV",
    b"a.ultraflash.mkv",
    b"x" * 200 + b".mkv",
    b"x" * 251 + b".mkv",
    "\u732b".encode() * 83 + b".mkv",
    b"-",
    b"a_2x.mkv",
    b"\\.mkv",
)


@dataclass
class Scene:
    """A folder for each side of a case: what is read, where is written, and what must never change."""

    root: Path
    rng: random.Random
    clips: dict[str, bytes]
    arguments: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.films, self.out, self.victim = (self.root / name for name in ("films", "out", "victim"))
        for folder in (self.films, self.out, self.victim):
            folder.mkdir(parents=True)
        (self.victim / "inner").mkdir()
        (self.victim / "precious.mkv").write_bytes(b"mine")
        (self.victim / "inner" / "note.txt").write_bytes(b"mine, too")
        self.kind = self.rng.choice(sorted(self.clips))
        self.name = os.fsdecode(self.rng.choice(NAMES))
        self.source = self.films / self.name
        self.output = self.out / "made.mkv"
        self.source.write_bytes(self.clips[self.kind])

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


def link(path: Path, target: Path | str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# What the input is.


def by_link(scene: Scene) -> None:
    kept = scene.films / "kept.bin"
    scene.source.rename(kept)
    link(scene.source, kept if scene.chance(0.5) else "kept.bin")


def by_loop(scene: Scene) -> None:
    link(scene.source, scene.films / "round")
    link(scene.films / "round", scene.source)


def by_dangling_link(scene: Scene) -> None:
    link(scene.source, scene.rng.choice(["nothing", "/nowhere/at/all", "../../../../nothing"]))


def by_folder(scene: Scene) -> None:
    scene.source.unlink()
    scene.source.mkdir()


def by_fifo(scene: Scene) -> None:
    scene.source.unlink()
    os.mkfifo(scene.source)


def by_empty(scene: Scene) -> None:
    scene.source.write_bytes(b"")


def by_text(scene: Scene) -> None:
    scene.source.write_text(
        scene.rng.choice(["#EXTM3U\n#EXTINF:1,\n../victim/precious.mkv\n", "ffconcat version 1.0\nfile a\n", "x\n" * 9])
    )


def by_hole(scene: Scene) -> None:
    os.truncate(scene.source, 50 << 20)


def by_device(scene: Scene) -> None:
    scene.source.unlink()
    link(scene.source, scene.rng.choice(["/dev/null", "/dev/zero", "/proc/self/mem", "/dev/full"]))


def by_time(scene: Scene) -> None:
    seconds = scene.rng.choice([0, -1, 2**31, 2**33, 1])
    os.utime(scene.source, (seconds, seconds))


def by_case(scene: Scene) -> None:
    scene.source = scene.films / scene.name.upper()


def by_nul(scene: Scene) -> None:
    scene.source = Path(f"{scene.films}/a\0b.mkv")


def by_long_way(scene: Scene) -> None:
    scene.source = Path(f"{scene.films}/{'../films/' * 600}{scene.name}")


def as_it_is(_scene: Scene) -> None:
    pass


INPUTS: tuple[Callable[[Scene], None], ...] = (
    *(as_it_is,) * 10,
    by_link,
    by_loop,
    by_dangling_link,
    by_folder,
    by_fifo,
    by_empty,
    by_text,
    by_hole,
    by_device,
    by_time,
    by_time,
    by_case,
    by_nul,
    by_long_way,
)

# Where the output goes.


def to_named(scene: Scene) -> None:
    scene.output = scene.out / scene.name


def to_existing(scene: Scene) -> None:
    scene.output.write_bytes(b"there")


def to_link(scene: Scene) -> None:
    (scene.out / "there.mkv").write_bytes(b"there")
    link(scene.output, scene.out / "there.mkv")


def to_link_to_nothing(scene: Scene) -> None:
    link(scene.output, scene.out / "new.mkv")


def to_loop(scene: Scene) -> None:
    link(scene.output, scene.output)


def to_the_input(scene: Scene) -> None:
    scene.output = scene.rng.choice([scene.source, scene.films / "." / scene.name])


def to_hard_link_of_the_input(scene: Scene) -> None:
    if scene.source.is_file() and not scene.source.is_symlink():
        os.link(scene.source, scene.output)


def to_folder(scene: Scene) -> None:
    scene.output = scene.out


def to_folder_that_is_a_link(scene: Scene) -> None:
    link(scene.out / "away", scene.out / "real")
    (scene.out / "real").mkdir()
    scene.output = scene.out / "away" / "made.mkv"


def to_new_folders(scene: Scene) -> None:
    scene.output = scene.out / "a" / "b" / "made.mkv"


def below_a_file(scene: Scene) -> None:
    (scene.out / "file").write_bytes(b"a file")
    scene.output = scene.out / "file" / "made.mkv"


def without_suffix(scene: Scene) -> None:
    scene.output = scene.out / scene.rng.choice(["made", "made.", "made.txt", "made.exe", ".mkv"])


def to_work_folder_that_is_a_link(scene: Scene) -> None:
    link(scene.out / ".made.mkv.ultraflash", scene.victim)


def to_work_folder_that_is_a_file(scene: Scene) -> None:
    (scene.out / ".made.mkv.ultraflash").write_bytes(b"a file")


def to_work_folder_of_somebody(scene: Scene) -> None:
    work = scene.out / ".made.mkv.ultraflash"
    work.mkdir()
    for name in ("lock", "journal.jsonl", "stdin", "segment-000000.video", "made.mkv", "made.part.mkv"):
        if scene.chance(0.5):
            link(work / name, scene.victim / "precious.mkv")
        elif scene.chance(0.5):
            (work / name).write_bytes(scene.rng.randbytes(30))


def to_work_folder_with_a_wrong_journal(scene: Scene) -> None:
    work = scene.out / ".made.mkv.ultraflash"
    work.mkdir()
    (work / "lock").touch()
    (work / "journal.jsonl").write_text(
        scene.rng.choice(["{}", "[]", "null\n", '{"format": 1}\n{"segment": {}}\n', '{"format": 1, "fingerprint": 3}'])
    )


def to_long_name(scene: Scene) -> None:
    scene.output = scene.out / ("y" * scene.rng.choice([240, 251, 252, 300]) + ".mkv")


def to_pictures(scene: Scene) -> None:
    scene.output = scene.out / scene.rng.choice(["%05d.png", "one.png", "%d%d.png", "a%%.png", "%s.png"])


OUTPUTS: tuple[Callable[[Scene], None], ...] = (
    *(as_it_is,) * 6,
    to_named,
    to_named,
    to_existing,
    to_link,
    to_link_to_nothing,
    to_loop,
    to_the_input,
    to_hard_link_of_the_input,
    to_folder,
    to_folder_that_is_a_link,
    to_new_folders,
    below_a_file,
    without_suffix,
    to_work_folder_that_is_a_link,
    to_work_folder_that_is_a_file,
    to_work_folder_of_somebody,
    to_work_folder_with_a_wrong_journal,
    to_long_name,
    to_pictures,
)


def state_of(folder: Path) -> dict[str, tuple[object, ...]]:
    """What is in a folder: kinds, contents, targets of links, times of change of files."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).decode("latin-1")
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = ("file", content, path.stat().st_mtime_ns, path.stat().st_mode)
        else:
            found[name] = ("folder" if path.is_dir() else "other",)
    return found


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Contents by kind: clean ones, and clocks that step back, jump, stand still and wrap."""
    folder = tmp_path_factory.mktemp("clips")
    plain = make_clip(folder / "plain.mkv", frames=3, width=16, height=16).read_bytes()
    ts = ["-f", "lavfi", "-i", "testsrc2=size=16x16:rate=25:duration=0.2", "-c:v", "mpeg2video"]
    for name, offset in (("a.ts", "0"), ("b.ts", "3600"), ("wraps.ts", "95443.6")):
        ffmpeg(*ts, "-output_ts_offset", offset, str(folder / name))
    a, b, wraps = ((folder / name).read_bytes() for name in ("a.ts", "b.ts", "wraps.ts"))
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=16x16:rate=25:duration=0.2", "-vf", "setpts='if(eq(N,2),1e6,N)'",
           "-fps_mode", "passthrough", "-c:v", "ffv1", str(folder / "jump.nut"))  # fmt: skip
    return {
        "plain": plain,
        "steps back": b + a,
        "jumps on": a + b,
        "wraps": wraps,
        "twice": a + a,
        "one frame jumps": (folder / "jump.nut").read_bytes(),
        "cut": plain[: len(plain) * 2 // 3],
    }


def timed_doubler(prepared: Prepared) -> Built[FrameUpscaler]:
    """The doubler in the place of a model whose work is counted: it knows its time per frame, as that one does."""
    return replace(builder()(prepared), frame_seconds=0.01)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_hostile_place_becomes_a_right_file_or_one_line(
    clips: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    batch: int,
) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(timed_doubler))
    codes: list[int] = []
    each = COUNT // BATCHES
    for seed in range(batch * each, (batch + 1) * each):
        rng = random.Random(seed)
        scene = Scene(tmp_path / f"{seed:03d}", rng, clips)
        told = f"seed {seed}: {scene.kind}, {scene.name!r}"
        for change in (rng.choice(INPUTS), rng.choice(OUTPUTS)):
            change(scene)
            told += f", {change.__name__}"
        command = rng.choice(["upscale"] * 8 + ["upscale --dry-run", "probe"])
        named = str(scene.source)
        if scene.source.parent == scene.films and rng.random() < 0.3:
            monkeypatch.chdir(scene.films)
            named = scene.source.name
        arguments = [*command.split()[:1], "--", named]
        if command.startswith("upscale"):
            options = ["-o", str(scene.output), "--res", "2x", "--threads", "1", *command.split()[1:]]
            options += rng.choice([[], [], ["-y"], ["-n"], ["--no-resume"], ["--strict"], ["--keep-going"]])
            arguments = ["upscale", *options, *arguments[1:]]
        before = state_of(scene.films), state_of(scene.victim)
        written_before = state_of(scene.out)

        code = main(arguments)

        shown = capsys.readouterr()
        told += f": {arguments} exit code {code}\n{shown.err}"
        codes.append(code)
        assert code in DOCUMENTED, told
        assert "Traceback" not in shown.err, told
        lines = shown.err.splitlines()
        assert sum(line.startswith("error: ") for line in lines) == (code != 0), told
        assert not STEERING.search(shown.out + shown.err), told
        assert (state_of(scene.films), state_of(scene.victim)) == before, told
        after = state_of(scene.out)
        if code != 0 or command != "upscale":
            made = {name for name in after.keys() - written_before.keys() if not name.startswith(".")}
            assert not [name for name in made if after[name][0] == "file"], told
            gone = {name for name in written_before if after.get(name) != written_before[name]}
            assert not {name for name in gone if ".ultraflash" not in name}, told
        elif scene.output.suffix == ".mkv" and scene.output.is_file() and "-n" not in arguments:
            assert frames_in(scene.output) > 0, told
            # Work of another version is kept aside.
            left = {name for name in after.keys() - written_before.keys() if ".ultraflash" in name}
            assert not {name for name in left if ".kept1.ultraflash" not in name}, told
    assert codes.count(0) > each // 5 and len(codes) - codes.count(0) > each // 5
