"""`ultraflash explain`: the tag in every output, the command that repeats it, files
with no tag or a false one."""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.independent import look
from tests.cli.reference import reference
from tests.jobs.clips import make_clip, moving_picture
from tests.jobs.doubler import builder as upscaling
from tests.jobs.generating import builder as generating
from ultraflash_cli.jobs.planning.upscale import UpscaleJob
from ultraflash_cli.jobs.provenance import made
from ultraflash_cli.jobs.provenance.made import made_by_upscaling
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main
from ultraflash_cli.video.made_tag import append_made, read_made, with_made_chunk
from ultraflash_cli.video.stills import write_png

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "explain.json"


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Models, "upscaler", staticmethod(upscaling()))
    folder = tmp_path / "holiday of Ann"
    folder.mkdir()
    return make_clip(folder / "secret.mkv", frames=4, width=16, height=16)


def explained(output: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main(["explain", str(output), "--json", "-q"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def repeated(found: dict[str, object], output: Path, **names: Path) -> None:
    """Run the command of an explanation for another output."""
    words = shlex.split(str(found["command"]))
    assert words[0] == "ultraflash"
    known = {name: str(path) for name, path in names.items()} | {f"OUT{output.suffix}": str(output)}
    assert main([*(known.get(word, word) for word in words[1:]), "-q"]) == 0


def test_the_explained_command_makes_the_same_file_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=6, width=32, height=32)
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    options = [
        "--model",
        "tiny-random",
        "--seed",
        "5",
        "--guard",
        "9",
        "--crf",
        "30",
        "--start",
        "0.08",
        "--no-audio",
    ]
    options += ["--enc-opt", "preset=ultrafast", "--enc-opt", "tune=grain", "--res", "70x66", "--strength", "0.5"]
    assert main(["upscale", str(source), "-o", str(first), *options, "-q"]) == 0
    found = explained(first, capsys)
    repeated(found, second, INPUT=source)
    assert second.read_bytes() == first.read_bytes()
    assert found["differences"] == []
    schema = json.loads(SCHEMA.read_text())
    assert set(found) == set(schema["required"]) == set(schema["properties"])
    about = schema["properties"]["made"]
    assert isinstance(found["made"], dict) and set(found["made"]) == set(about["required"]) == set(about["properties"])
    made = found["made"]
    assert isinstance(made, dict)
    assert made["model"] == "tiny-random" and made["weights"] and made["seed"] == 5


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv", "out.webm", "out.m4v", "shots/%05d.png"])
def test_every_container_keeps_the_tag_without_a_path_and_others_still_read_the_file(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    output = tmp_path / name
    assert main(["upscale", str(clip), "-o", str(output), "--res", "2x", "-q", "--temp-dir", str(tmp_path)]) == 0
    found = explained(output, capsys)
    made = found["made"]
    assert isinstance(made, dict)
    assert (made["command"], made["weights"]) == ("upscale", {"tiny": "0"})
    text = json.dumps(found["made"])
    assert not [word for word in ("secret", "holiday", "Ann", str(tmp_path), os.sep) if word in text]
    file = output if output.is_file() else tmp_path / "shots" / "00001.png"
    assert look(file, tmp_path).size == (32, 32)
    assert main(["explain", str(output), "-q"]) == 0
    shown = capsys.readouterr().out
    assert "weights   tiny  sha256 0" in shown
    assert f"repeat    {found['command']}" in shown


def test_the_command_of_a_photo_names_one_picture(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, first = clip.with_name("photo.png"), tmp_path / "IMG_2041.png"
    write_png(photo, moving_picture(0, width=16, height=16))
    assert main(["upscale", str(photo), "-o", str(first), "--res", "2x", "-q"]) == 0
    found = explained(first, capsys)
    assert "OUT.png" in shlex.split(str(found["command"]))
    repeated(found, tmp_path / "second.png", INPUT=photo)
    assert (tmp_path / "second.png").read_bytes() == first.read_bytes()


def test_a_generated_clip_says_its_prompt_and_is_made_again_by_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Models, "generator", staticmethod(generating()))
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    prompt = 'it\'s "a <corgi> & 猫"'
    options = ["--res", "480p", "--seconds", "0.5", "--seed", "3", "--enc-opt", "preset=ultrafast", "--threads", "1"]
    assert main(["generate", prompt, "-o", str(first), *options, "-q"]) == 0
    found = explained(first, capsys)
    assert isinstance(found["made"], dict) and found["made"]["prompt"] == prompt
    repeated(found, second)
    assert second.read_bytes() == first.read_bytes()
    assert main(["generate", prompt, "-o", str(second), *options, "-y", "--no-tag", "-q"]) == 0
    content = second.read_bytes()
    assert b"corgi" not in content and b"ultraflash" not in content.lower()


def test_a_file_without_a_tag_is_one_line_and_3(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = [tmp_path / name for name in ("out.mp4", "out.mkv", "shots/%05d.png")]
    for output in outputs:
        assert main(["upscale", str(clip), "-o", str(output), "--res", "2x", "--no-tag", "-q"]) == 0
    plain = tmp_path / "out.y4m"
    assert main(["upscale", str(clip), "-o", str(plain), "--res", "2x", "-q"]) == 0
    words, empty = tmp_path / "words.txt", tmp_path / "empty.mp4"
    words.write_text("no video")
    empty.touch()
    (tmp_path / "bare").mkdir()
    capsys.readouterr()
    for path in (
        *outputs,
        plain,
        words,
        empty,
        clip,
        tmp_path / "bare",
        tmp_path / "gone.mp4",
        tmp_path / "bare/%d.png",
    ):
        assert main(["explain", str(path)]) == 3, path
        (line,) = capsys.readouterr().err.splitlines()
        assert path.name in line and not line.endswith(".")


def test_the_tag_of_the_input_does_not_pass_for_that_of_the_output(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (tmp_path / name for name in ("1.mkv", "2.mkv", "3.mkv"))
    assert main(["upscale", str(clip), "-o", str(first), "--res", "2x", "--seed", "1", "-q"]) == 0
    assert main(["upscale", str(first), "-o", str(second), "--res", "2x", "--seed", "2", "-q"]) == 0
    assert main(["upscale", str(first), "-o", str(third), "--res", "2x", "--no-tag", "-q"]) == 0
    made = explained(second, capsys)["made"]
    assert isinstance(made, dict) and made["seed"] == 2
    assert read_made(third) is None


def test_a_forged_tag_steers_neither_the_terminal_nor_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = {
        "version": "9",
        "command": "upscale",
        "model": "a\x1b[2J",
        "seed": 1,
        "device": "cpu",
        "precision": "fp32",
    }
    options = {"--res": "2x; rm -rf ~", "--temp-dir": "/etc", "--codec": "--overwrite"}
    output = tmp_path / "out.mp4"

    def forge(text: str) -> None:
        output.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0")
        append_made(output, ".mp4", text)

    forge(json.dumps(honest | {"options": options, "weights": {}}))
    assert main(["explain", str(output), "-q"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "/etc" not in shown
    assert "--res '2x; rm -rf ~' --codec=--overwrite" in shown
    assert "does not know --temp-dir" in shown and "made by version 9" in shown
    nested = "[" * 100_000
    for text in (
        "",
        "{",
        "[]",
        nested,
        json.dumps(honest | {"seed": "1"}),
        json.dumps(honest | {"options": {"rm": "x"}}),
    ):
        forge(text)
        assert main(["explain", str(output)]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "no tag says how it was made" in line


def test_a_damaged_file_ends_the_search_for_a_tag(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    for content in (
        b"\0\0\0\x08ftyp" * 20_000,
        b"\0\0\0\x01ftyp" + b"\xff" * 8,
        b"\0\0\0\x00ftyp",
        b"\0\0\0\x10ftypisom\0\0\0\0" + b"\xff\xff\xff\xffuuid",
        with_made_chunk(b"\x89PNG\r\n\x1a\n" + b"\0" * 25, "x" * (2 << 20)),
        b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR",
    ):
        path.write_bytes(content)
        assert read_made(path) is None


def test_an_option_that_comes_later_is_reported_as_well_and_every_reported_option_exists(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Later(UpscaleJob):
        halo: str = "none"
        glow: bool = True
        depth: float | None = None

    job = Later(source=tmp_path, res="2x", halo="strong", glow=False, depth=0.5)
    prepared: Any = SimpleNamespace(job=job, output=Path("out.mp4"), res="2x", model="lite", threads=1)
    built: Any = SimpleNamespace(precision="fp32", device="cpu", weights={})
    text = made_by_upscaling(prepared, built)
    assert text is not None
    options = json.loads(text)["options"]
    assert {"--halo": "strong", "--no-glow": True, "--depth": "0.5"}.items() <= options.items()
    page = reference()
    flags = [flag for each in made._SPELLED.values() for flag in each]
    assert not [flag for flag in flags if f"{flag} " not in page and f"{flag}\n" not in page]
