"""Hostile places, drawn by number: what an input may be, and where an output may go."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["INPUTS", "OUTPUTS", "Scene"]

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
