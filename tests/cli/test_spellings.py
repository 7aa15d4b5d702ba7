"""Old spellings of options work for one version, with a warning."""

from pathlib import Path

import pytest

from tests.jobs.clips import make_clip
from ultraflash_cli.main import main
from ultraflash_cli.spellings import modern


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(["--color", "off"], ["--no-match-colors"], id="two arguments"),
        pytest.param(["--color=off"], ["--no-match-colors"], id="joined by ="),
        pytest.param(["a.mp4", "--cuts", "off", "-y"], ["a.mp4", "--no-cuts", "-y"], id="among others"),
        pytest.param(["--subs", "copy"], ["--subs"], id="the default"),
    ],
)
def test_an_old_spelling_becomes_the_new_one_with_a_warning(old: list[str], new: list[str]) -> None:
    arguments, [warning] = modern(old)
    assert arguments == new
    assert "is an old spelling; use --" in warning


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--audio", "aac", "--resume", "off.mp4"], id="other values"),
        pytest.param(["generate", "--", "--color", "off"], id="after --"),
        pytest.param(["upscale", "--color"], id="no value"),
    ],
)
def test_everything_else_stays(arguments: list[str]) -> None:
    assert modern(arguments) == (arguments, [])


def test_an_old_spelling_still_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = make_clip(tmp_path / "a.mp4", frames=2, width=32, height=32)
    assert main(["upscale", str(clip), "--res", "2x", "--cuts", "off", "--audio=none", "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert err.count("warning:") == 2
    assert "'--cuts off' is an old spelling; use --no-cuts" in err


@pytest.mark.parametrize(
    "more",
    [
        "--codec H264 --decoder AUTO --pix-fmt YUV420P",
        "--model Lite --device CPU --precision FP32",
        "--deinterlace OFF --grain None --audio COPY --encoder Auto",
        "--crop NONE --chroma-shift None --fps KEEP --guard OFF --executor LOCAL",
    ],
)
def test_names_are_read_in_any_case(more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(tmp_path / "missing.mp4"), *more.split()]) == 3
    assert "no such file" in capsys.readouterr().err


def test_cache_rules_are_read_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "sea", "--model", "LITE", "--cache-management", "KV", "--res", "480P", "--dry-run"]) == 2
    assert "kv saves nothing with --res 480p" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "typed", "name"),
    [
        ("--codec", "h265", "hevc"),
        ("--codec", "x265", "hevc"),
        ("--codec", "H.265", "hevc"),
        ("--codec", "x264", "h264"),
        ("--codec", "h.264", "h264"),
        ("--codec", "AVC", "h264"),
        ("--codec", "libsvtav1", "av1"),
        ("--model", "ultra-flash", "ultraflash"),
        ("--grain", "kept", "keep"),
    ],
)
def test_a_value_by_another_name_is_answered_with_ours(
    option: str, typed: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", "a.mp4", option, typed]) == 2
    assert capsys.readouterr().err.endswith(f"; did you mean {name}?\n")


def test_a_value_like_no_other_gets_the_list_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", "a.mp4", "--codec", "zzz"]) == 2
    assert capsys.readouterr().err.endswith("'av1_nvenc'; see --help\n")


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["upscal", "a.mp4"], "No such command 'upscal'. Did you mean 'upscale'?"),
        (["generate", "a", "boat"], "Got unexpected extra argument(s) (boat); put a prompt of several words in quotes"),
        (["my clip.mp4"], "No such command 'my clip.mp4'; did you mean `ultraflash upscale 'my clip.mp4'`?"),
        (["-v", "a.PNG"], "No such command 'a.PNG'; did you mean `ultraflash upscale a.PNG`?"),
        ([__file__], f"No such command '{__file__}'; did you mean `ultraflash upscale {__file__}`?"),
        (
            ["generate", "a boat", "--res", "1080p"],
            "Invalid value for '--res': '1080p' is not one of '480p', '1k', '2k'; see",
        ),
        (["probe", "a.mp4", "b.mp4"], "Got unexpected extra argument(s) (b.mp4); see --help"),
    ],
    ids=[
        "a command",
        "a prompt without quotes",
        "a video as command",
        "a picture as command",
        "a file as command",
        "a size of upscale",
        "one file too many",
    ],
)
def test_a_slip_is_reported_in_one_line(typed: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {answer}") and said.count("\n") == 1 and "?;" not in said


def test_a_recipe_without_run_still_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "pixels", "--out", str(tmp_path), "--steps", "1"]) == 2
    assert "'train pixels' is an old spelling; use train run pixels" in capsys.readouterr().err


def test_train_list_names_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "list"]) == 0
    assert "pixels " in capsys.readouterr().out


def test_the_terminal_s_no_color_leaves_the_picture_s_colours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(tmp_path / "a.mp4", frames=2, width=32, height=32)
    assert main(["upscale", str(clip), "--res", "2x", "--no-color", "--dry-run"]) == 0
    assert "warning" not in capsys.readouterr().err
