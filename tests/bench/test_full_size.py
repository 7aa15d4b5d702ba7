"""The full-size benchmark, run at a tiny size."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.full_size import Setup, main, measure
from ultraflash_cli.engine.profiles import TINY_RANDOM


def test_every_path_runs_and_leaves_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "full_size.json"
    asked = ["--profile", "tiny-random", "--res", "1k", "--groups", "2", "--device", "cpu", "--out", str(out)]
    main(asked)
    report = json.loads(out.read_text())
    assert (report["profile"], report["device"], report["budget_bytes"]) == ("tiny-random", "cpu", None)
    assert [case["path"] for case in report["cases"]] == ["latents", "pixels", "generate"]
    stages = {"upsampler", "sr_dit", "decoder"}
    extra = ({"latents": set[str]()}, {"pixels": {"encoder", "finish"}}, {"generate": {"generator"}})
    for case, more in zip(report["cases"], extra, strict=True):
        assert case["failed"] is None and case["fps"] > 0 and case["first_group_s"] > 0
        assert case["stage_s"].keys() == stages | more[case["path"]]
        assert case["planned_bytes"] == sum(case["planned"].values()) and case["peak_bytes"] > 0
        assert case["output"] == [192, 128]
    assert [case["frames"] for case in report["cases"]] == [48, 45, 33]
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_long_window_runs_too() -> None:
    cpu = torch.device("cpu")
    tiny = Setup(profile=TINY_RANDOM, device=cpu, groups=2, long=True)
    assert measure(tiny, "generate", "2k").frames == 13 + 24


def test_a_budget_that_is_too_small_is_reported_and_a_small_one_names_its_settings() -> None:
    cpu = torch.device("cpu")
    failed = measure(Setup(profile=TINY_RANDOM, device=cpu, groups=1, budget_bytes=10**6), "latents", "1k").failed
    assert failed is not None and "needs" in failed
    full = measure(Setup(profile=TINY_RANDOM, device=cpu, groups=1), "latents", "1k")
    tight = Setup(profile=TINY_RANDOM, device=cpu, groups=2, budget_bytes=full.planned_bytes - 1)
    case = measure(tight, "latents", "1k")
    assert case.settings != full.settings and case.planned_bytes < full.planned_bytes and case.failed is None
