"""Units of a plan: the joined result of several workers equals that of one machine,
whatever happens."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.clips import audio_packets, decoded, make_clip, timestamps
from tests.jobs.doubler import Doubler, Trail, builder, job
from ultraflash_cli.errors import InputError, Interrupted, UsageError
from ultraflash_cli.jobs.batch import Job, Outcome
from ultraflash_cli.jobs.cluster.described import as_json, from_json
from ultraflash_cli.jobs.cluster.join import join_units
from ultraflash_cli.jobs.cluster.lease import Holder, Watch, claim, this_process
from ultraflash_cli.jobs.cluster.planner import PlanOutcome, plan_units
from ultraflash_cli.jobs.cluster.units import DEATHS, PLAN, Plan, read_plan
from ultraflash_cli.jobs.cluster.worker import UnitOutcome, Worker, share_of
from ultraflash_cli.jobs.events import Chunk, Event
from ultraflash_cli.jobs.planning.generate import GenerateJob
from ultraflash_cli.jobs.planning.spans import divide
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob
from ultraflash_cli.jobs.resume.entries import count_frames
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.upscale import run

FRAMES, CUT = 40, 22
STRANGER = Holder(owner="stranger", host="elsewhere", machine="another machine", process=1, started="1")
"""A worker on another machine, whose process cannot be checked."""


def ignore(event: Event) -> None:
    return None


def planned(folder: Path, *jobs: Job, least: int = 15) -> list[PlanOutcome]:
    return list(plan_units(jobs, folder, ignore, stop=Stop(), least_frames=least))


def worked(plan: Plan, **options: Any) -> list[UnitOutcome]:
    return list(worker_of(plan, **options).run(plan.units))


def worker_of(plan: Plan, **options: Any) -> Worker:
    settings: dict[str, Any] = {"build": builder(), "segment_frames": 9}
    return Worker(plan, options.pop("on_event", ignore), **settings | options)


def joined(plan: Plan, stop: Stop | None = None) -> list[Outcome]:
    return list(join_units(plan, ignore, stop=stop or Stop(), segment_frames=9))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=FRAMES, cut_at=CUT, uneven=True)


@pytest.fixture
def plan(tmp_path: Path, source: Path) -> Plan:
    """A clip in two units."""
    (outcome,) = planned(tmp_path / "work", job(source, tmp_path / "out.mkv"))
    assert outcome.failure is None
    assert outcome.file is not None and outcome.file.units == 2
    return read_plan(tmp_path / "work")


@pytest.fixture
def local(tmp_path: Path, source: Path) -> Path:
    """The result of a single machine."""
    run(job(source, tmp_path / "local.mkv"), ignore, build=builder(), segment_frames=9)
    return tmp_path / "local.mkv"


def test_the_joined_file_is_the_one_that_a_single_machine_makes_byte_for_byte(plan: Plan, local: Path) -> None:
    assert [outcome.state for outcome in worked(plan)] == ["done", "done"]
    (outcome,) = joined(plan)
    assert outcome.report is not None and outcome.report.frames_out == FRAMES
    output = Path(outcome.report.output)
    assert len(decoded(output)) == FRAMES and audio_packets(output) and timestamps(output) == timestamps(local)
    assert output.read_bytes() == local.read_bytes()
    assert not (plan.folder / "files" / "000000" / "units").exists(), "what is joined is tidied up"


def test_an_output_with_a_default_name_is_the_one_of_a_single_machine_too(tmp_path: Path, source: Path) -> None:
    wish = job(source, folder=tmp_path / "made", fps=20, codec="auto", crf=30)
    planned(tmp_path / "work", wish)
    plan = read_plan(tmp_path / "work")
    worked(plan)
    (outcome,) = joined(plan)
    assert outcome.report is not None, outcome.failure
    there = Path(outcome.report.output)
    here = run(replace(wish, folder=tmp_path / "local"), ignore, build=builder(), segment_frames=9)
    assert there.parent == tmp_path / "made" and Path(here.output).name == there.name
    assert there.read_bytes() == Path(here.output).read_bytes()


def test_a_second_run_of_each_of_the_three_changes_nothing(tmp_path: Path, source: Path, plan: Plan) -> None:
    worked(plan)
    (first,) = joined(plan)
    content = (tmp_path / "out.mkv").read_bytes()
    (again,) = planned(plan.folder, job(source, tmp_path / "out.mkv"))
    assert again.known
    assert not worked(read_plan(plan.folder))
    (second,) = joined(read_plan(plan.folder))
    assert second.as_json() == json.loads(json.dumps(first.as_json())) | {"warnings": ()}
    assert (tmp_path / "out.mkv").read_bytes() == content


def test_a_clip_without_cuts_is_one_unit_and_the_plan_says_so(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "long.mkv", frames=40, audio=False)
    (outcome,) = planned(tmp_path / "work", job(clip, tmp_path / "out.mkv"))
    assert outcome.file is not None and outcome.file.units == 1
    assert "no scene cuts" in outcome.file.note
    (short,) = planned(tmp_path / "work", job(clip, tmp_path / "short.mkv"), least=30)
    assert short.file is not None and short.file.note.startswith("short") and short.file.cuts is None


def test_an_impossible_job_is_a_failure_of_the_plan_and_the_others_are_planned(tmp_path: Path, source: Path) -> None:
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(b"no film")
    bad, good = planned(tmp_path / "work", job(broken, tmp_path / "a.mkv"), job(source, tmp_path / "b.mkv"))
    assert isinstance(bad.failure, InputError) and bad.as_json()["exit_code"] == 3
    assert good.file is not None


def test_what_a_killed_plan_has_left_of_a_line_is_planned_again(tmp_path: Path, source: Path, plan: Plan) -> None:
    lines = plan.folder / PLAN
    lines.write_bytes(lines.read_bytes()[:-40])
    assert not read_plan(plan.folder).files
    (outcome,) = planned(plan.folder, job(source, tmp_path / "out.mkv"))
    assert not outcome.known
    assert len(read_plan(plan.folder).files) == 1


def test_a_changed_option_plans_the_file_again_and_forgets_its_units(tmp_path: Path, source: Path, plan: Plan) -> None:
    worked(plan)
    (outcome,) = planned(plan.folder, job(source, tmp_path / "out.mkv", seed=7))
    assert not outcome.known
    changed = read_plan(plan.folder)
    assert len(changed.files) == 1 and not any(unit.is_done for unit in changed.units)


def test_units_of_a_changed_input_are_refused(tmp_path: Path, source: Path, plan: Plan) -> None:
    make_clip(source, frames=FRAMES, cut_at=CUT - 3)
    outcomes = worked(plan)
    assert {type(outcome.failure) for outcome in outcomes} == {InputError}
    (outcome,) = planned(plan.folder, job(source, tmp_path / "out.mkv"))
    assert not outcome.known


@given(
    cuts=st.sets(st.integers(1, 999), max_size=40),
    total=st.integers(1, 1000),
    least=st.integers(1, 300),
)
def test_spans_cover_the_clip_and_begin_at_cuts(cuts: set[int], total: int, least: int) -> None:
    cuts = {cut for cut in cuts if cut < total}
    spans = divide(cuts, total, least=least)
    assert [spans[0].first, *(span.end for span in spans)] == [*(span.first for span in spans), total]
    assert {span.first for span in spans} <= cuts | {0}
    assert {cut for span in spans for cut in (span.first, *span.cuts)} == cuts | {0}
    assert all(span.frames >= least for span in spans[:-1]) and len(spans) <= 64


def test_shares_of_array_tasks_are_all_units_once(plan: Plan) -> None:
    units = plan.units
    assert [unit.estimate for unit in units] == [CUT, FRAMES - CUT], "the longest first"
    assert [unit for index in range(3) for unit in share_of(units, index=index, of=3)] == units
    assert share_of(units, index=1, of=None) == [units[1]]
    assert share_of(units, index=9, of=None) == []
    with pytest.raises(UsageError, match="between 0 and 2"):
        share_of(units, index=3, of=3)


class Failing(Doubler):
    """A model that fails in its second scene."""

    def init_state(self, *, seed: int, first_frame: int) -> Trail:
        if first_frame == CUT:
            raise ValueError("it cannot be")
        return super().init_state(seed=seed, first_frame=first_frame)


def test_a_unit_that_fails_twice_fails_its_file_and_the_others_go_ahead(
    tmp_path: Path, source: Path, plan: Plan, local: Path
) -> None:
    other = make_clip(tmp_path / "other.mkv", frames=8, audio=False)
    planned(plan.folder, job(other, tmp_path / "other_out.mkv"))
    plan = read_plan(plan.folder)
    states = [outcome.state for outcome in worked(plan, build=builder(Failing))]
    assert states.count("failed") == 1 and states.count("retried") == 1 and states.count("done") == 2
    failed, fine = joined(plan)
    assert failed.failure is not None and "it cannot be" in str(failed.failure) and failed.failure.exit_code == 1
    assert fine.report is not None
    assert not (tmp_path / "out.mkv").exists()

    (outcome,) = planned(plan.folder, job(source, tmp_path / "out.mkv"))
    assert outcome.known and outcome.retried, "run again, the plan lets it be tried again"
    assert [outcome.frames for outcome in worked(plan)] == [FRAMES - CUT], "what was done stays done"
    joined(plan)
    assert (tmp_path / "out.mkv").read_bytes() == local.read_bytes()


def test_what_is_wrong_with_a_machine_ends_its_worker_and_no_unit(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    worked(plan)
    for unit in plan.units[:1]:
        unit.done_folder.rename(unit.folder / "away")
    with pytest.raises(UsageError, match=r"tiny.*use machines of one kind"):
        worked(plan, build=builder(weights="other"))
    assert not plan.units[0].failures


def stopped_at(frames: int, stop: Stop) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, Chunk) and event.frames_done >= frames:
            stop.request(15)

    return listen


def stop_amid(plan: Plan) -> None:
    """Stop a worker in the middle of the first unit."""
    stop = Stop()
    with pytest.raises(Interrupted):
        worked(plan, stop=stop, on_event=stopped_at(12, stop))


def test_a_stopped_worker_leaves_its_unit_to_another_one_which_resumes_it(plan: Plan, local: Path) -> None:
    stop_amid(plan)
    (unfinished,) = plan.units[0].tries
    assert not (plan.units[0].folder / "lease").exists()
    frames = count_frames(unfinished)
    assert frames >= 9
    assert [outcome.frames for outcome in worked(plan)] == [CUT - frames, FRAMES - CUT]
    (outcome,) = joined(plan)
    assert outcome.report is not None
    assert Path(outcome.report.output).read_bytes() == local.read_bytes()


class Time:
    """A clock that advances only by waiting."""

    def __init__(self, *before: Callable[[], None]) -> None:
        self.now_s = 0.0
        self._before = list(before)

    def wait(self, seconds: float) -> None:
        if self._before:
            self._before.pop(0)()
        self.now_s += seconds

    def clock(self) -> float:
        return self.now_s


def test_the_unit_of_a_silent_worker_elsewhere_is_taken_over_with_what_it_had_finished(plan: Plan, local: Path) -> None:
    stop_amid(plan)
    unit = plan.units[0]
    (unfinished,) = unit.tries
    unfinished.rename(unit.folder / "try-stranger")
    assert claim(unit.folder / "lease", STRANGER) is not None
    time = Time()
    outcomes = worked(plan, clock=time.clock, wait=time.wait)
    assert [outcome.unit.number for outcome in outcomes] == [1, 0], "it is left alone until it has been silent"
    assert time.now_s >= 60 and outcomes[1].frames < CUT
    (outcome,) = joined(plan)
    assert outcome.report is not None
    assert Path(outcome.report.output).read_bytes() == local.read_bytes()


def test_a_worker_that_beats_keeps_its_unit(plan: Plan) -> None:
    path, watch, process = plan.units[0].folder / "lease", Watch(), this_process()
    assert claim(path, STRANGER) is not None
    assert claim(path, process) is None
    for second in range(0, 300, 30):
        told = json.loads(path.read_text())
        path.write_text(json.dumps(told | {"beats": second}))
        assert not watch.take_away(path, second)
    assert not watch.take_away(path, 329)
    assert watch.take_away(path, 331)
    assert claim(path, process) is not None


def test_a_lease_is_beating_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "unit" / "lease"
    lease = claim(path, this_process(), beat_s=0.01)
    assert lease is not None
    with lease:
        first = path.read_text()
        while path.read_text() == first:
            pass
        assert lease.is_mine
    assert not path.exists()


def test_a_worker_that_died_on_this_machine_is_known_to_be_dead_at_once(tmp_path: Path) -> None:
    path = tmp_path / "unit" / "lease"
    child = os.fork()
    if not child:
        claim(path, this_process())
        os._exit(0)
    os.waitpid(child, 0)
    assert Watch().take_away(path, 0.0) == Path("/proc/self/ns/pid").exists()


def test_a_worker_that_was_taken_for_dead_loses_its_copy_and_harms_none(plan: Plan, local: Path) -> None:
    unit = plan.units[0]
    other = worker_of(plan)

    def take_over(event: Event) -> None:
        if isinstance(event, Chunk) and event.frames_done >= 12 and not taken:
            taken.append(True)
            (unit.folder / "lease").unlink()
            found = other.compute(unit)
            assert found is not None and found.state == "done"

    taken: list[bool] = []
    outcomes = worked(plan, on_event=take_over)
    assert [outcome.state for outcome in outcomes] == ["lost", "done"]
    assert not unit.failures and not unit.tries
    (outcome,) = joined(plan)
    assert outcome.report is not None
    assert Path(outcome.report.output).read_bytes() == local.read_bytes()


def test_units_are_resumed_with_their_state_even_without_resume(tmp_path: Path, source: Path, local: Path) -> None:
    planned(tmp_path / "work", job(source, tmp_path / "out.mkv", resume=False))
    plan = read_plan(tmp_path / "work")
    stop_amid(plan)
    assert sum(outcome.frames for outcome in worked(plan)) < FRAMES
    (outcome,) = joined(plan)
    assert outcome.report is not None
    assert Path(outcome.report.output).read_bytes() == local.read_bytes()


def test_a_file_system_without_locks_is_used_without_them(
    plan: Plan, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    worked(plan)
    (outcome,) = joined(plan)
    assert outcome.report is not None
    assert Path(outcome.report.output).read_bytes() == local.read_bytes()


def test_a_unit_that_kills_its_workers_again_and_again_fails_its_file(plan: Plan) -> None:
    time = Time()
    for _ in range(DEATHS):
        assert claim(plan.units[0].folder / "lease", STRANGER) is not None
        worker = worker_of(plan, clock=time.clock)
        assert worker.compute(plan.units[0]) is None
        time.now_s += 61
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Worker, "_attempt", lambda *_: None)
            worker.compute(plan.units[0])
    (outcome,) = joined(plan)
    assert outcome.failure is not None and "were killed" in str(outcome.failure) and outcome.failure.exit_code == 5


def test_an_unfinished_plan_is_not_joined(plan: Plan, tmp_path: Path) -> None:
    worker = worker_of(plan)
    worker.compute(plan.units[0])
    (outcome,) = joined(plan)
    assert outcome.failure is not None and "1 of 2 units is not finished" in str(outcome.failure)
    assert outcome.failure.exit_code == 2 and not (tmp_path / "out.mkv").exists()


def test_a_damaged_unit_is_computed_again(plan: Plan, local: Path) -> None:
    worked(plan)
    segment = next(plan.units[1].done_folder.glob("*.video"))
    segment.write_bytes(segment.read_bytes()[:-1])
    (outcome,) = joined(plan)
    assert outcome.failure is not None and "damaged" in str(outcome.failure)
    assert [outcome.unit.number for outcome in worked(plan)] == [plan.units[1].number]
    (outcome,) = joined(plan)
    assert outcome.report is not None
    assert Path(outcome.report.output).read_bytes() == local.read_bytes()


def test_an_output_that_came_into_being_meanwhile_is_not_replaced(plan: Plan, tmp_path: Path) -> None:
    worked(plan)
    (tmp_path / "out.mkv").write_bytes(b"mine")
    (outcome,) = joined(plan)
    assert outcome.failure is not None and outcome.failure.exit_code == 2
    assert (tmp_path / "out.mkv").read_bytes() == b"mine"


def test_where_nothing_can_be_linked_files_are_copied(plan: Plan, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    worked(plan)
    (outcome,) = joined(plan)
    assert outcome.report is not None
    assert Path(outcome.report.output).read_bytes() == local.read_bytes()


def jobs(tmp_path: Path) -> Iterator[Job]:
    yield job(
        tmp_path / "a.mkv", tmp_path / "b.mkv", fps=Fraction(24000, 1001), enc_options=(("x", "y"),), temp=tmp_path
    )
    yield UpscaleJob(source=tmp_path / "\udce4.mkv", guard=None, folder=tmp_path)
    yield GenerateJob(prompt="a cat", init_clip=tmp_path / "in.mkv", seconds=3.5, seed=4)


def test_jobs_come_back_from_json_as_they_were(tmp_path: Path) -> None:
    for each in jobs(tmp_path):
        read = from_json(json.loads(json.dumps(as_json(each))), store=None)
        assert as_json(read) == as_json(each)


def test_states_at_borders_are_those_of_fresh_scenes(plan: Plan, local: Path) -> None:
    """The fake stamps each frame with its number in the scene, so that a unit continued
    from another one would be noticed."""
    worked(plan)
    joined(plan)
    frames = decoded(Path(next(iter(plan.files.values())).output))
    assert np.abs(frames[CUT][2:6, 2:6].astype(int) - frames[0][2:6, 2:6].astype(int)).max() < 8


def test_prepared_jobs_of_units_share_one_model(plan: Plan) -> None:
    built: list[Prepared] = []

    def build(prepared: Prepared) -> Any:
        built.append(prepared)
        return builder()(prepared)

    worked(plan, build=build)
    assert len(built) == 1
