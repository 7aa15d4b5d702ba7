"""The output of a run for people and scripts, tested without a run."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ultraflash_cli.console import PLAIN_INTERVAL_S, Console, GlobalOptions
from ultraflash_cli.errors import OutputError, Remark
from ultraflash_cli.jobs.events import SCHEMA, Chunk, Done, GenerationPlanned, Planned, Started, Warned
from ultraflash_cli.jobs.plan_lines import describe, headline
from ultraflash_cli.settings import Settings, keep_compiled_kernels, wait_passively


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def chunk(done: int) -> Chunk:
    return Chunk(input="in.mp4", frames_done=done, frames_safe=0, frames_total=240, fps=2.0, eta_s=90.0, limit="model")


STARTED = Started(
    input="in.mp4",
    output="out.mp4",
    model="lite",
    device="cpu",
    precision="fp32",
    threads=2,
    frames_total=240,
    frames_resumed=0,
    note=None,
)
PLANNED = Planned(
    input="in.mkv",
    output="in_1k.mkv",
    source_width=832,
    source_height=480,
    width=1664,
    height=960,
    scale=2,
    model="lite",
    codec="h264",
    encoder="libx264",
    pix_fmt="yuv420p",
    frames_total=None,
    kept=("audio aac",),
    dropped=("data tmcd: cannot be held",),
)


def test_plain_lines_come_no_more_often_than_the_interval() -> None:
    now_s = 0.0
    err = io.StringIO()
    console = Console(Settings(), out=io.StringIO(), err=err, clock=lambda: now_s)
    console.on_event(STARTED)
    for done in range(0, 240, 4):
        console.on_event(chunk(done))
        now_s += PLAIN_INTERVAL_S / 10
    lines = err.getvalue().splitlines()
    assert lines[0] == "lite on cpu, fp32, 2 threads"
    assert len(lines) == 7
    assert lines[1] == "in.mp4: 0/240 frames, 2.00 fps, 1:30 left"


@pytest.mark.parametrize(
    ("predicted_s", "told"),
    [(None, None), (1.2, None), (14.4, "takes about 14 s"), (200, "takes about 3:20"), (9000, "takes about 2:30:00")],
)
def test_the_predicted_time_of_a_clip_is_reported_at_the_start(predicted_s: float | None, told: str | None) -> None:
    err = io.StringIO()
    console = Console(Settings(), out=io.StringIO(), err=err)
    console.on_event(replace(STARTED, predicted_s=predicted_s))
    _, *more = err.getvalue().splitlines()
    assert more == ([f"in.mp4: {told}"] if told else [])


def test_verbose_lines_of_progress_tell_of_the_first_frame_and_the_limit() -> None:
    err = io.StringIO()
    console = Console(Settings(), out=io.StringIO(), err=err)
    console.configure(GlobalOptions(verbose=True))
    console.on_event(replace(STARTED, input="cats / dogs", label="cats.mp4"))
    console.on_event(replace(chunk(21), input="cats / dogs", first_frame_s=3.25))
    last = err.getvalue().splitlines()[-1]
    assert last == "cats.mp4: 21/240 frames, 2.00 fps, 1:30 left, limit: model, first after 3.2 s"


def test_json_events_are_one_object_a_line_with_a_schema_and_nothing_else() -> None:
    err = io.StringIO()
    console = Console(Settings(), out=io.StringIO(), err=err)
    console.configure(GlobalOptions(progress="json"))
    console.on_event(STARTED)
    console.info("words for people")
    console.on_event(Warned(input="in.mp4", message="careful"))
    console.on_event(chunk(24))
    console.failure(OutputError("disk full"), source="in.mp4")
    events = [json.loads(line) for line in err.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["start", "warn", "chunk", "error"]
    assert {event["schema"] for event in events} == {SCHEMA}
    assert events[-1]["exit_code"] == 7


def test_messages_end_alike() -> None:
    err = io.StringIO()
    console = Console(Settings(), out=io.StringIO(), err=err)
    console.warning("in.mkv: the last 0.40 s are lost.")
    console.failure(OutputError("in.mkv: no room"))
    console.failure(OutputError("in.mkv: no room."))
    assert [line[-1] for line in err.getvalue().splitlines()] == ["t", "m", "m"]


def test_quiet_leaves_warnings_and_errors() -> None:
    err = io.StringIO()
    console = Console(Settings(), out=io.StringIO(), err=err)
    console.configure(GlobalOptions(quiet=True))
    console.on_event(STARTED)
    console.on_event(chunk(24))
    console.on_event(Warned(input="in.mp4", message="careful"))
    console.on_event(Warned(input="in.mp4", message=Remark("hardly worth a word.")))
    console.on_event(Done(input="in.mp4", output="out.mp4", frames=24, seconds=1, fps=24))
    console.failure(OutputError("disk full"))
    assert err.getvalue().splitlines() == ["warning: careful", "error: disk full"]


@pytest.mark.parametrize(("fps", "line"), [(24.0, "24 frames in 1.0 s (24.00 fps)"), (0.0, "24 frames in 1.0 s")])
def test_the_last_line_has_the_speed_where_it_is_known(fps: float, line: str) -> None:
    err = io.StringIO()
    console = Console(Settings(), out=io.StringIO(), err=err)
    console.configure(GlobalOptions())
    console.on_event(Done(input="in.mp4", output="out.mp4", frames=24, seconds=1, fps=fps))
    assert err.getvalue() == f"out.mp4: {line}\n"


def test_a_remark_is_a_warning_like_others_without_quiet() -> None:
    err = io.StringIO()
    console = Console(Settings(), out=io.StringIO(), err=err)
    console.on_event(Warned(input="in.mp4", message=Remark("hardly worth a word.")))
    assert err.getvalue() == "warning: hardly worth a word\n"


def test_a_traceback_shows_with_verbose_only_and_always_stands_in_the_log(tmp_path: Path) -> None:
    for verbose in (False, True):
        err = io.StringIO()
        console = Console(Settings(), out=io.StringIO(), err=err)
        log = tmp_path / f"{verbose}.log"
        console.configure(GlobalOptions(verbose=verbose, log_file=log))
        try:
            raise OutputError("disk full")
        except OutputError as error:
            console.failure(error)
        console.close()
        assert ("Traceback" in err.getvalue()) == verbose
        assert err.getvalue().splitlines()[-1] == "error: disk full"
        assert "Traceback" in log.read_text()
        assert log.read_text().splitlines()[-1] == "error: disk full"


def test_a_message_of_several_lines_becomes_one() -> None:
    err = io.StringIO()
    Console(Settings(), out=io.StringIO(), err=err).failure(RuntimeError("first\n  second"))
    assert err.getvalue() == "error: first second\n"


@pytest.mark.parametrize(
    ("settings", "options", "colored"),
    [
        pytest.param(Settings(), GlobalOptions(), True, id="terminal"),
        pytest.param(Settings(no_color=True), GlobalOptions(), False, id="NO_COLOR"),
        pytest.param(Settings(), GlobalOptions(no_color=True), False, id="--no-color"),
    ],
)
def test_colours_show_on_a_terminal_unless_they_are_not_wanted(
    settings: Settings, options: GlobalOptions, colored: bool
) -> None:
    err = Terminal()
    console = Console(settings, out=io.StringIO(), err=err)
    console.configure(options)
    console.warning("careful")
    assert ("\x1b[" in err.getvalue()) == colored


def test_a_terminal_shows_a_bar_with_frames_speed_and_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    err = Terminal()
    console = Console(Settings(no_color=True), out=io.StringIO(), err=err, clock=lambda: 0.0)
    console.on_event(PLANNED)
    console.on_event(STARTED)
    console.on_event(chunk(120))
    console.on_event(Warned(input="in.mp4", message="careful"))
    console.close()
    shown = err.getvalue()
    for part in ("loading the model", "in.mkv", "━━━", "120/240 frames", "2.00 fps", "1:30 left", "warning: careful"):
        assert part in shown
    assert "limit" not in shown
    assert shown.endswith("\x1b[2K"), "the line is gone and leaves nothing behind"
    assert "\x1b[?25h" in shown, "the cursor is back"


def test_options_after_the_command_win_over_those_before() -> None:
    before = GlobalOptions(progress="plain", quiet=True)
    assert before.merged(GlobalOptions()) == before
    assert before.merged(GlobalOptions(progress="json")).progress == "json"


def test_a_log_file_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    console = Console(Settings(), out=io.StringIO(), err=io.StringIO())
    with pytest.raises(OutputError, match="log file"):
        console.configure(GlobalOptions(log_file=tmp_path / "nowhere" / "log"))


def test_no_color_is_read_from_the_environment_as_its_standard_says() -> None:
    assert Settings.from_environment({"NO_COLOR": "1"}).no_color
    assert not Settings.from_environment({"NO_COLOR": ""}).no_color
    assert not Settings.from_environment({}).no_color


def test_compiled_kernels_are_kept_with_the_weights_unless_set_otherwise(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    keep_compiled_kernels(tmp_path, environ)
    assert environ == {"TRITON_CACHE_DIR": str(tmp_path / "kernels")}
    keep_compiled_kernels(tmp_path / "other", environ)
    assert environ["TRITON_CACHE_DIR"] == str(tmp_path / "kernels")


@pytest.mark.parametrize(
    ("said", "waiting"),
    [
        ({}, "passive"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "active"),
        ({"GOMP_SPINCOUNT": "1000"}, "GOMP_SPINCOUNT=1000"),
        ({"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": ""}, "KMP_BLOCKTIME=0"),
    ],
)
def test_threads_wait_passively_unless_the_environment_says_how(said: dict[str, str], waiting: str) -> None:
    environ = dict(said)
    assert Settings.from_environment(environ).waiting == waiting
    wait_passively(environ)
    assert environ == said or (waiting, environ) == ("passive", {"OMP_WAIT_POLICY": "PASSIVE"})
    assert Settings.from_environment(environ).waiting == waiting


def test_the_groups_of_a_long_clip_are_not_listed_one_by_one() -> None:
    plan = GenerationPlanned(
        **vars(PLANNED),
        seed=1,
        seconds=60.0,
        long=False,
        cache_management="off",
        notice="",
        low_output=None,
        groups=(21, *[24] * 2398, 12),
    )
    assert describe(plan)[1].endswith(" frames in groups of 21, 24 (2398 times), 12")
    one = replace(plan, frames_total=1, groups=(9,))
    assert describe(one)[1].endswith(" 1 frame in groups of 9") and ", 1 frame, " in headline(one)


def test_a_plan_is_described_with_sizes_streams_and_what_is_left_out() -> None:
    assert describe(PLANNED) == [
        "in.mkv -> in_1k.mkv",
        "  832x480 -> 1664x960, model lite x2, h264 yuv420p",
        "  kept: audio aac",
        "  left out: data tmcd: cannot be held",
    ]
