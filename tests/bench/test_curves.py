"""The curves of the cascade's settings: what each setting changes, and what is
reported, at tiny sizes."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import curves, curves_page
from benchmarks.curve_settings import Setting, key_blocks, settings_of
from benchmarks.curves import CpuClock
from benchmarks.curves_page import CURVES, Row
from benchmarks.likeness import is_there
from ultraflash_cli.engine.layers import sparse_attention
from ultraflash_cli.engine.profiles import LITE, TINY_LITE
from ultraflash_cli.engine.schedule import plan_generation
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.train.validation import change_error

PLAN = plan_generation(12, chunk=3, chunks_per_group=2)


class Counted:
    """What one setting makes the networks do over a short clip."""

    def __init__(self, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[float] = []
        self.remembered: list[int] = []
        original = sparse_attention.block_topk

        def counting(*args: Any, **kwargs: Any) -> Tensor:
            mask = original(*args, **kwargs)
            self.blocks.append(float(mask.sum(dim=-1).float().mean()))
            self.remembered.append((mask.shape[-1] - mask.shape[-2]) // kwargs["rows_per_budget"])
            return mask

        monkeypatch.setattr(sparse_attention, "block_topk", counting)
        subject = curves._Subject(setting, Shelf(), PLAN)
        context = torch.zeros(1, 8, 16, dtype=subject.dtype)
        subject.begin(context, curves._Scores([0], torch.float32), seed=0)
        self.frames = [subject.step().float().clone() for _ in PLAN.groups]
        assert subject._state is not None
        self.generator = subject._state.generator
        self.seconds = subject.seconds
        monkeypatch.setattr(sparse_attention, "block_topk", original)


def counted(curve: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Counted]:
    return {setting.name: Counted(setting, monkeypatch) for setting in settings_of(curve, TINY_LITE, PLAN)}


def test_a_larger_budget_selects_more_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted("budget", monkeypatch)
    assert list(found) == ["4 %", "6 %", "12 %", "25 %", "50 %", "100 %"]
    selected = [each.blocks[-1] for each in found.values()]
    assert selected == sorted(selected) and selected[0] < selected[-2] < selected[-1]
    assert not torch.equal(found["4 %"].frames[-1], found["100 %"].frames[-1])


def test_the_blocks_reported_are_those_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection keeps one pair more than the budget, and a block for every query; with
    100 % the window limits it."""
    height, width = (2 * side // 8 for side in TINY_LITE.base_size)
    for setting in settings_of("budget", TINY_LITE, PLAN):
        assert setting.profile.sr_dit is not None
        blocks = Counted(setting, monkeypatch).blocks[-1]
        assert key_blocks(setting.profile.sr_dit, height, width) == pytest.approx(blocks, abs=0.5)
    assert LITE.sr_dit is not None
    assert key_blocks(LITE.sr_dit, 120, 208) == pytest.approx(147 / 35)
    assert key_blocks(replace(LITE.sr_dit, top_k_ratio=1.0), 120, 208) == pytest.approx(4 * 247 / 35)


def test_kv_len_is_the_number_of_earlier_groups_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted("kv_len", monkeypatch)
    assert {name: each.remembered[-1] for name, each in found.items()} == {"0": 0, "1": 1, "2": 2, "3": 3}
    assert set(found["0"].remembered) == {0}


def test_rules_change_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted("rules", monkeypatch)
    off, kv, steps, refresh = found.values()
    assert (off.remembered[-1], kv.remembered[-1]) == (3, 1)
    # Two steps and a context pass per chunk; later chunks take one step less.
    assert (off.generator.passes, steps.generator.passes) == (12, 9)
    assert off.generator.refreshes_skipped == 0
    assert refresh.generator.passes == 12 - refresh.generator.refreshes_skipped


def test_a_rule_without_effect_is_measured_as_the_profile() -> None:
    """lite takes a single denoising step, so there is none to skip."""
    rules = {setting.name: setting for setting in settings_of("rules", LITE, PLAN)}
    assert rules["steps"].equals(rules["off"])
    assert not rules["kv"].equals(rules["off"]) and not rules["refresh"].equals(rules["off"])
    assert rules["kv"].same_work(rules["off"], "generator") and not rules["kv"].same_work(rules["off"], "sr_dit")
    assert not rules["refresh"].same_work(rules["off"], "generator")


def test_frames_added_piece_by_piece_are_scored_as_a_whole_clip() -> None:
    draw = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 256, (21, 16, 24, 3), dtype=torch.uint8, generator=draw)
    out = torch.rand(1, 3, 21, 16, 24, generator=draw)
    scores = curves._Scores([], torch.float32)
    for first, last in ((0, 5), (5, 21)):
        scores.add(out[:, :, first:last], truth[first:last])
    whole = change_error(out, truth.permute(3, 0, 1, 2)[None].float() / 255)
    assert scores.tdiff == pytest.approx(whole, rel=1e-5)


def test_the_clock_counts_each_stage_once() -> None:
    clock = CpuClock()
    with clock("decoder"):
        torch.ones(64, 64).matmul(torch.ones(64, 64))
    taken = clock.take()
    assert taken.keys() == {"decoder"} and taken["decoder"] >= 0
    assert clock.take() == {}


@pytest.mark.skipif(not is_there(), reason="stlpips-pytorch is not installed")
def test_the_command_reports_every_setting_and_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(curves, "taken_from", lambda folder: (Shelf(), TINY_LITE))
    monkeypatch.setattr(curves, "keep_freed_memory", lambda: None)
    out, picture = tmp_path / "results" / "curves.json", tmp_path / "curves.svg"
    arguments = ["--count", "1", "--seconds", "0.5", "--rules-count", "1", "--rules-seconds", "1"]
    assert curves.main([*arguments, "--out", str(out), "--svg", str(picture)]) == 0
    found = json.loads(out.read_text())
    assert found.keys() == {"schema", "date", "device", "versions", "settings", "weights", "rows"}
    assert found["device"].keys() >= {"processor", "cores", "threads", "precision"}
    rows = [Row(**row) for row in found["rows"]]
    assert [row.curve for row in rows] == ["budget"] * 6 + ["kv_len"] * 4 + ["rules"] * 4
    assert [row.setting for row in rows if row.is_profile] == ["50 %", "3", "off"]
    for row in rows:
        assert 0 < row.sr_seconds_per_frame < row.seconds_per_frame
        assert row.seconds_per_frame == pytest.approx(sum(row.seconds_by_stage.values()))
        assert row.lpips > 0 and row.tdiff > 0 and len(row.lpips_by_scene) == 1
    printed = capsys.readouterr().out
    lines = [line.split(" | ") for line in printed.splitlines()[2:]]
    assert [line[1].strip("*") for line in lines] == [row.setting for row in rows]
    tree = ET.fromstring(picture.read_text())
    assert len(tree.findall("{http://www.w3.org/2000/svg}g")) == len(CURVES)

    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- curves: {out} -->\nstale\n<!-- end of curves -->\nafter\n")
    curves_page.main([str(page), "--svg", str(tmp_path / "again.svg")])
    text = page.read_text()
    assert "stale" not in text and text.startswith("before\n") and text.endswith("<!-- end of curves -->\nafter\n")
    assert printed.strip() in text and "A rule is worth offering" in text
    assert (tmp_path / "again.svg").read_text() == picture.read_text()
    assert curves_page.rewritten(text) == text


def row(curve: str, setting: str, seconds: float, lpips: float, *, is_profile: bool = False) -> Row:
    return Row(
        curve=curve,
        setting=setting,
        is_profile=is_profile,
        key_blocks=4.2,
        seconds_per_frame=seconds,
        sr_seconds_per_frame=seconds / 8,
        seconds_by_stage={"decoder": seconds},
        lpips=lpips,
        tdiff=1.0,
        lpips_by_scene=[lpips],
        tdiff_by_scene=[1.0],
        passes_skipped=0.0,
    )


@pytest.mark.parametrize(
    ("seconds", "lpips", "worth"),
    [(0.85, 1.01, True), (0.95, 0.9, False), (0.5, 1.03, False)],
    ids=["saves", "saves too little", "costs too much"],
)
def test_a_rule_is_worth_offering_if_it_saves_time_and_keeps_the_likeness(
    seconds: float, lpips: float, worth: bool
) -> None:
    own, rule = row("rules", "off", 1, 1, is_profile=True), row("rules", "kv", seconds, lpips)
    assert curves_page.is_worth_offering([own, rule], rule) is worth
    assert not curves_page.is_worth_offering([own, rule], own)
    told = curves_page._of_rules([own, rule])
    assert told[-1] == ("Only `kv` does." if worth else "None of them does.")


def test_the_page_and_its_picture_show_the_measured_curves(repository: Path) -> None:
    page = (repository / "docs" / "quality.md").read_text(encoding="utf-8")
    named = curves_page.BLOCK.search(page)
    assert named is not None
    assert curves_page.rewritten(page) == page
    rows = [Row(**each) for each in curves_page.read_report(named[2])["rows"]]
    assert (repository / "docs" / "curves.svg").read_text(encoding="utf-8") == curves_page.svg(rows)
