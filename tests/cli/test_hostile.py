"""Hostile folders, links, names and clocks, sampled by seed: each results in a correct
file or a one-line error, nothing else."""

import hashlib
import os
import random
import re
from dataclasses import replace
from pathlib import Path

import av
import pytest

from tests.cli.hostile import INPUTS, OUTPUTS, Scene
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
"""Exit codes that a wrong file, name or folder may cause; 1 would be a bug."""
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def state_of(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return the state of a folder: kinds, contents, link targets, and modification
    times of files."""
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
    """Clips by kind: clean ones, and ones whose clocks step back, jump, stand still or
    wrap."""
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
    """Replace a model whose work is counted by the doubler, which reports a time per
    frame in the same way."""
    return replace(builder()(prepared), frame_seconds=0.01)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_hostile_place_results_in_a_correct_file_or_one_line(
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
            # Work of another version is moved aside.
            left = {name for name in after.keys() - written_before.keys() if ".ultraflash" in name}
            assert not {name for name in left if ".kept1.ultraflash" not in name}, told
    assert codes.count(0) > each // 5 and len(codes) - codes.count(0) > each // 5
