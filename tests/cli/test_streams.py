"""Unusual names, streams and terminals: not UTF-8, closed, full, narrow, containing
escape sequences."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.clips import make_clip
from tests.jobs.doubler import builder
from ultraflash_cli.bar import clock_time, lay_out
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main
from ultraflash_cli.streams import TextOutput, printable


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))
    return make_clip(tmp_path / "in.mkv", frames=2, width=16, height=16, audio=False)


@pytest.mark.parametrize(
    ("uneven", "options", "rounded"),
    [
        pytest.param(False, [], False, id="whole milliseconds"),
        pytest.param(True, [], True, id="uneven times"),
        pytest.param(True, ["-q"], False, id="quiet"),
        pytest.param(True, ["--fps", "50"], False, id="to whole milliseconds"),
        pytest.param(False, ["--fps", "30"], True, id="from whole milliseconds"),
    ],
)
def test_rounded_timestamps_are_mentioned_where_they_are_rounded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    uneven: bool,
    options: list[str],
    rounded: bool,
) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))
    source = make_clip(tmp_path / "in.mp4", frames=4, width=16, height=16, audio=False, uneven=uneven)
    assert main(["upscale", str(source), "-o", str(tmp_path / "out.mkv"), "--res", "2x", "--json", *options]) == 0
    said = capsys.readouterr()
    assert (".mkv rounds timestamps to 1 ms" in said.err) == rounded
    assert ("rounds timestamps" in said.out) == (rounded or "-q" in options)


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def stream(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)


def written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_that_is_not_utf8_is_upscaled_and_comes_back_from_the_json(
    clip: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    odd = Path(os.fsdecode(bytes(clip.parent) + b"/caf\xe9.mkv"))
    clip.rename(odd)
    out, err, log = stream(encoding), stream(encoding), odd.with_name("log")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["--log-file", str(log), "upscale", str(odd), "--res", "2x", "--json"]) == 0
    assert json.loads(written(out).decode())["input"] == str(odd)
    assert rb"caf\xe9.mkv -> " in written(err)
    assert rb"caf\xe9.mkv -> " in log.read_bytes()
    assert main(["probe", str(odd), "--json", "--res", "2x"]) == 0
    assert main(["probe", str(odd), "--res", "2x"]) == 0


def test_a_character_that_the_terminal_lacks_is_shown_as_its_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    err = stream("ascii")
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["upscale", "猫.mp4"]) == 3
    assert written(err).startswith(rb"error: \u732b.mp4: no such file")


def test_what_steers_a_terminal_is_shown_as_escapes_and_forges_no_line(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = clip.rename(clip.with_name("a\x1b]0;title\x07\x9b2J\u202e\nerror: forged\r.mkv"))
    assert main(["upscale", str(named), "--res", "2x"]) == 0
    assert main(["probe", str(named), "--res", "2x"]) == 0
    assert main(["upscale", f"{named}.gone"]) == 3
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert not set(text) & set("\x1b\x07\x9b\u202e\r"), text
        assert not [line for line in text.splitlines() if line.startswith("error: forged")]
    assert printable("a\tb\udcff\x00 \x9b \u2066") == r"a\tb\xff\x00 \x9b \u2066"
    assert printable("ñ 猫 🎈 ـ") == "ñ 猫 🎈 ـ"


@pytest.mark.parametrize("err", [None, Full()], ids=["closed", "full"])
def test_work_is_done_where_nobody_can_be_told(
    clip: Path, monkeypatch: pytest.MonkeyPatch, err: io.StringIO | None
) -> None:
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["upscale", str(clip), "--res", "2x"]) == 0
    assert clip.with_name("in_2x.mkv").is_file()


@pytest.mark.parametrize("out", [None, Full()], ids=["closed", "full"])
def test_a_result_that_cannot_be_written_is_one_line_and_7_after_all_the_work(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: io.StringIO | None
) -> None:
    other = make_clip(clip.with_name("other.mkv"), frames=2, width=16, height=16, audio=False)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["upscale", str(clip), "--res", "2x", "--json", "-q"]) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the result cannot be written to stdout: ")
    assert line.endswith("; the output itself is complete")
    assert main(["upscale", str(clip), str(other), "--res", "2x", "--json", "-q", "-y"]) == 7
    assert clip.with_name("other_2x.mkv").is_file(), "the batch goes on"
    assert main(["upscale", str(clip), "-o", "-", "-q"]) == 7 or out is not None


@pytest.mark.parametrize("out", [None, Full()], ids=["closed", "full"])
def test_a_failure_keeps_its_message_and_code_where_its_object_cannot_be_written(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: io.StringIO | None
) -> None:
    text = clip.with_name("text.mkv")
    text.write_text("no video")
    monkeypatch.setattr(sys, "stdout", out)
    for command in (["upscale", str(text), "--res", "2x"], ["probe", str(text)]):
        assert main([*command, "--json"]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and "a text file, not a video" in line
    assert main(["upscale", str(clip), f"{clip}.gone", "-o", str(clip.parent), "--json"]) == 3
    assert "no such file" in capsys.readouterr().err

    assert main(["upscale", str(text), str(clip), "--res", "2x", "--json", "-q", "--keep-going"]) == 9
    assert "a text file, not a video" in capsys.readouterr().err
    assert clip.with_name("in_2x.mkv").is_file(), "the batch goes on"


def test_a_log_that_cannot_be_written_is_refused_at_once_and_one_that_fills_up_costs_the_log_only(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if Path("/dev/full").exists():
        assert main(["upscale", str(clip), "--res", "2x", "--log-file", "/dev/full"]) == 7
        (line,) = capsys.readouterr().err.splitlines()
        assert "No space left on device" in line

    class FillsUp(io.StringIO):
        def write(self, text: str) -> int:
            return super().write(text) if not self.getvalue() else Full.write(Full(), text)

    monkeypatch.setattr("ultraflash_cli.console.open_log", lambda _: FillsUp())
    assert main(["upscale", str(clip), "--res", "2x", "--log-file", "log", "-q"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: log file log: No space left on device; the log ends here, the run continues"


def test_a_log_is_not_written_into_a_video(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = clip.read_bytes()
    assert main(["probe", str(clip), "--log-file", str(clip)]) == 2
    assert "is used by the command itself" in capsys.readouterr().err
    assert clip.read_bytes() == before


def test_a_clip_or_prompts_of_a_closed_stdin_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    for arguments in (["upscale", "-", "-o", "x.mkv"], ["generate", "--prompts", "-"]):
        assert main(arguments) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: stdin is closed; pipe ")


def test_a_process_whose_standard_streams_are_all_closed_does_its_work(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mkv", frames=2, width=16, height=16)
    command = [sys.executable, "-m", "ultraflash_cli", "upscale", str(clip), "--res", "2x", "--model", "tiny-random"]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], check=False)
    assert done.returncode == 0
    assert [path.name for path in tmp_path.iterdir() if path != clip] == ["in_2x.mkv"]


def test_the_folder_one_is_in_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["upscale", str(tmp_path / "in.mkv"), "-o", str(tmp_path / "out.mkv")]) == 3
    assert capsys.readouterr().err == "error: the current folder no longer exists; change to another one\n"
    assert main(["upscale", "--help"]) == 0


@pytest.mark.parametrize("columns", [200, 80, 40, 24, 12, 1])
@pytest.mark.parametrize("name", ["a.mp4", "A name as cameras and downloads give it " * 3 + "7.mp4", "猫" * 40])
def test_the_line_of_progress_fits_every_terminal_and_keeps_its_bar(name: str, columns: int) -> None:
    facts, short = ["469/960 frames", "26.45 fps", "0:19 left", "limit: model"], ["469/960", "26.45 fps", "0:19"]
    for share in (None, 0.49, 1.0):
        line = lay_out(name, share, facts, short, columns=columns)
        assert line.cell_len <= columns
        if columns >= 40:
            assert short[0] in line.plain and short[2] in line.plain
            assert share is None or line.plain.count("━") >= 10
        if columns >= 80:
            assert line.plain.startswith(name[:5])
            assert name[-5:] in line.plain or name == "猫" * 40
    assert lay_out(name, 0.5, facts, short, columns=80, fancy=False).plain.isascii() or not name.isascii()


def test_durations_are_read_as_on_a_clock() -> None:
    assert [clock_time(seconds) for seconds in (0, 59.6, 61, 3600, 90_061)] == [
        "0:00", "1:00", "1:01", "1:00:00", "25:01:01",
    ]  # fmt: skip


def test_an_outlet_says_why_it_is_silent() -> None:
    assert TextOutput(None).failure == "it is closed"
    full = TextOutput(Full())
    assert not full.write_line("word")
    assert full.failure == "No space left on device"
    assert not full.write_line("another"), "it stays silent, and raises nothing"
