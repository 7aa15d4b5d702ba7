"""Inputs that are not video, too large or impossible are refused early, with a one-line
message that says what to do."""

import errno
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from types import SimpleNamespace

import av
import pytest

from tests.cli.doubled import cases
from tests.video.clips import ffmpeg, make_clip
from ultraflash_cli.errors import OutOfMemory, is_out_of_memory
from ultraflash_cli.jobs.planning import upscale as preflight
from ultraflash_cli.main import main
from ultraflash_cli.video import looking
from ultraflash_cli.video.probe import probe

__all__ = ["cases"]


def y4m(width: int, height: int, frames: int) -> bytes:
    frame = b"FRAME\n" + bytes(width * height + 2 * ((width + 1) // 2) * ((height + 1) // 2)) if frames else b"FRAME\n"
    return f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C420\n".encode() + frame * max(1, frames)


def gif(width: int, height: int, frames: int) -> bytes:
    """A GIF with one-pixel frames on a large screen."""
    head = b"GIF89a" + pack("<HHBBB", width, height, 0xF0, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\0\x01\0\0\0\x2c" + pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\0"
    return head + frame * frames + b";"


REFUSED = {
    "a.m3u8": (b"#EXTM3U\n#EXTINF:1,\nother.ts\n", 3, "a playlist, expected a video; download and join its entries"),
    "list.mp4": (b"ffconcat version 1.0\nfile other.mp4\n", 3, "a playlist, expected a video"),
    "radio.pls": (b"other.mp4\n", 3, "a playlist, expected a video"),
    "manifest.mpd": (b"<?xml version='1.0'?>\n<MPD xmlns='x'></MPD>\n", 3, "a playlist, expected a video"),
    "notes.mkv": (b"Dear diary,\nthis is no film.\n" * 40, 3, "a text file, not a video; give a video file"),
    "saved.mp4": (b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n", 3, "a web page, not a video; download"),
    "films.mp4": (b"PK\x03\x04" + bytes(range(256)) * 9, 3, "an archive (zip), not a video; unpack it first"),
    "wide.y4m": (y4m(65535, 65535, 0), 3, "a y4m file of 65535x65535 pixels, expected at most 16384 per side"),
    "noise.mkv": (bytes(range(256)) * 40, 3, "not a readable video"),
    "strip.y4m": (
        y4m(16384, 2, 2),
        2,
        "the source is 16384x2, the target 32768x4: beyond 16384 pixels per side; choose a",
    ),
    "screen.gif": (gif(16000, 16000, 100), 3, "is 16000x16000, expected at most 134,217,728 pixels; check its header"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("command", ["probe", "upscale"])
def test_what_is_no_video_is_distinguished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    content, code, says = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    assert main([command, str(tmp_path / name)]) == code
    shown = capsys.readouterr().err
    assert says in shown and shown.count("\n") == 1 and shown.startswith("error: ")


def test_sound_alone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "song.m4a"
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", "-c:a", "aac", str(path))
    assert main(["upscale", str(path)]) == 3
    assert "has only audio (aac), no video stream; give a file with video" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://example.org/a.mp4", "https://example.org/a.mp4?b=1", "rtsp://camera/1"])
def test_an_address_is_not_taken_for_a_file(capsys: pytest.CaptureFixture[str], address: str) -> None:
    for command in (["probe", address], ["upscale", address], ["upscale", address, "other.mp4"]):
        assert main(command) == 3
        says = f"{address}: URLs are not supported; download the clip first, or pipe it to -"
        assert says in capsys.readouterr().err


def test_a_narrow_strip_gets_a_target_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.y4m").write_bytes(y4m(4096, 16, 2))
    assert main(["probe", str(tmp_path / "a.y4m"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["width"], plan["height"]) == (8192, 32)


@pytest.mark.parametrize("name", ["1x1", "1x1000", "0x5"])
def test_a_target_that_is_too_small_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["upscale", str(make_clip(tmp_path / "a.mp4")), "--res", name]) == 2
    assert "at least 2 pixels" in capsys.readouterr().err


def test_a_pixel_format_that_does_not_exist_is_a_fault_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(make_clip(tmp_path / "a.mp4"))
    for command in (["upscale", source, "--dry-run"], ["generate", "a lake", "--dry-run"]):
        assert main([*command, "--pix-fmt", "foo"]) == 2
        assert "--pix-fmt foo: not possible with h264; use one of yuv420p" in capsys.readouterr().err


def test_a_place_without_room_for_files_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    monkeypatch.setattr("os.access", lambda *_: True)
    assert main(["upscale", str(make_clip(tmp_path / "a.mp4")), "-o", "/proc/x.mp4"]) == 7
    assert "cannot write in /proc: files cannot be created there; choose another location" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_for_temporary_files_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.touch()
    output = ["-o", str(tmp_path / "out.mp4")]
    for command in (["upscale", str(make_clip(tmp_path / "a.mp4"))], ["generate", "a lake"]):
        for temp in (file, file / "below"):
            assert main([*command, *output, "--temp-dir", str(temp)]) == 7
            says = f"--temp-dir {temp}: {file} is a file, expected a folder; choose another folder with --temp-dir"
            assert capsys.readouterr().err == f"error: {says}\n"


def test_a_full_disk_of_temporary_files_is_named_with_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultraflash_cli.jobs.planning.target.free_bytes", lambda folder: 100)
    source = str(make_clip(tmp_path / "a.mp4"))
    assert main(["upscale", source, "--temp-dir", str(tmp_path)]) == 7
    said = capsys.readouterr().err
    assert "has 0 kB free, about" in said and "choose another location with --temp-dir" in said


# False claims in headers


def test_many_large_frames_are_looked_at_within_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(looking, "is_transparent", lambda *_: bool(looked.append(1)))
    (tmp_path / "a.gif").write_bytes(gif(640, 480, 100))
    assert not probe(tmp_path / "a.gif").has_alpha and len(looked) == 100
    looked.clear()
    monkeypatch.setattr(looking, "_MOST_PIXELS", 5 * 640 * 480)
    assert not probe(tmp_path / "a.gif").has_alpha and len(looked) == 5


@pytest.mark.parametrize("name", ["a.gif", "a.png"])
def test_a_screen_too_large_for_any_plan_is_refused_before_a_frame_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def decoded(*_: object, **__: object) -> Iterator[av.VideoFrame]:
        raise AssertionError("no frame of it is wanted")

    monkeypatch.setattr(looking, "decoded_frames", decoded)
    if name == "a.gif":
        (tmp_path / name).write_bytes(gif(16000, 15000, 2))
    else:
        ffmpeg("-f", "lavfi", "-i", "color=black:size=32x32", "-frames:v", "1", str(tmp_path / name))
        content = bytearray((tmp_path / name).read_bytes())
        content[16:24] = pack(">II", 16000, 15000)
        (tmp_path / name).write_bytes(content)
    assert main(["probe", str(tmp_path / name)]) == 3
    assert "expected at most" in capsys.readouterr().err


def test_the_bomb_of_two_kilobytes_is_refused(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(cases / "gif16000x100.gif")]) == 3
    assert "16000x16000" in capsys.readouterr().err


# Memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_no_bug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(preflight, "find_input", fails)
    assert main(["probe", str(make_clip(tmp_path / "a.mp4"))]) == OutOfMemory.exit_code == 5
    assert "error: out of memory" in capsys.readouterr().err


def test_a_limit_of_address_space_that_no_library_survives_is_reported_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (500_000_000, resource.RLIM_INFINITY))
    for command in (["upscale", str(make_clip(tmp_path / "a.mp4"))], ["generate", "a lake"]):
        assert main([*command, "--dry-run"]) == 5
        assert "0.50 GB of address space (ulimit -v), 0.8 GB are needed; raise that limit" in capsys.readouterr().err


def test_errors_that_come_from_a_lack_of_memory_count_as_such() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError as cause:
            raise ValueError("a wrapper") from cause
    except ValueError as error:
        assert is_out_of_memory(error)
    assert not is_out_of_memory(OSError(errno.ENOENT, "no such file"))
    assert not is_out_of_memory(ImportError("No module named 'x'"))


def test_what_onednn_says_for_lack_of_memory_counts_where_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    error = RuntimeError("could not create a primitive")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert not is_out_of_memory(error)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (900_000_000, resource.RLIM_INFINITY))
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the pipe is empty (0 bytes); check the command that writes to it"),
        (b"Dear diary,\nthis is no film.\n", "a text file, not a video; give a video file"),
        (b"%PDF-1.7\n" + bytes(range(256)), "a PDF document, not a video; give a video file"),
    ],
    ids=["empty", "text", "PDF"],
)
def test_what_a_pipe_carries_instead_of_a_video_is_named(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False))
    assert main(["upscale", "-", "-o", str(tmp_path / "out.mp4")]) == 3
    assert capsys.readouterr().err == f"error: -: {message}\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "lite", "--prompt", "a cat"], "lite does not use a prompt; remove --prompt"),
        (["--model", "ultraflash", "--detail", "0.5"], "ultraflash has no adjustable detail; remove --detail"),
    ],
)
def test_an_option_that_the_model_lacks_is_refused_before_the_plan_is_shown(
    options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.y4m").write_bytes(y4m(32, 32, 2))
    assert main(["upscale", str(tmp_path / "in.y4m"), *options]) == 2
    assert capsys.readouterr().err == f"error: {reason}\n"
