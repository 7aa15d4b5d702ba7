"""The report of a run: everything on one page, without external resources."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.train.made import soft_materials, write_materials
from ultraflash_cli.main import main
from ultraflash_cli.train.record import RECORD, RunRecord
from ultraflash_cli.train.report import REPORT, report_page, settings_by_name
from ultraflash_cli.video.stills import write_png


def made_run(folder: Path, *, samples: int = 9) -> Path:
    """The folder of a run with validation."""
    record = RunRecord(
        recipe="tv2v_flow_matching",
        recipe_hash="ab12",
        config="Tv2vConfig(loop=LoopConfig(steps=40, rate=0.001), note='<b>', scale_odds=((2, 1.0),))",
        data_hash="cd34",
        start_hash="",
        seed=1,
        steps=40,
    )
    (folder / "samples").mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(record.__dict__))
    rows = [
        {"flow": 1 / step, "norm": 0.5, "s_per_step": 6.0, "step": step, **({"skipped": 2} if step == 20 else {})}
        for step in (10, 20, 30, 40)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = [{"psnr": 28.5, "edges": 0.7, "step": 20}, {"psnr": 29.25, "edges": 0.8, "step": 40}]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    for number in range(samples):
        write_png(folder / "samples" / f"{10 * number:06d}.png", np.full((4, 8, 3), number, np.uint8))
    return folder


def test_a_report_holds_settings_curves_scores_samples_and_time(tmp_path: Path) -> None:
    page = report_page(made_run(tmp_path / "run"))
    assert "<h1>tv2v_flow_matching, 40 steps</h1>" in page
    assert "4.0 min" in page and "2 (gradient not finite)" in page
    assert "flow: 0.025 (from 0.025 to 0.1, step 40)" in page and page.count("<polyline") == 5
    assert re.search(r"<td class='number'>40</td><td class='number'>29.25</td>", page)
    assert "<td>loop.rate</td><td>0.001</td>" in page and "&lt;b&gt;" in page and "<b>" not in page
    steps = [int(step) for step in re.findall(r"<figcaption>step (\d+)</figcaption>", page)]
    assert len(steps) == 6 and steps[0] == 80 and steps[-1] == 0
    sources = re.findall(r"(?:src|href)='([^']{0,30})", page)
    assert len(sources) == 6 and all(source.startswith("data:image/png;base64,") for source in sources)


def test_a_run_without_losses_scores_or_samples_has_a_report_too(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", samples=0)
    (folder / "log.jsonl").unlink()
    (folder / "validation.jsonl").unlink()
    page = report_page(folder)
    assert "<svg" not in page and "Validation" not in page and "Skipped steps" in page


def test_settings_stand_under_the_names_that_set_takes() -> None:
    assert settings_by_name("A(loop=B(rate=1e-05, kinds=('a', 'b')), profile=None)") == {
        "loop.rate": "1e-05",
        "loop.kinds": "('a', 'b')",
        "profile": "None",
    }
    assert settings_by_name("<object at 0x7f>") == {"config": "<object at 0x7f>"}


def test_train_run_leaves_a_report_and_the_command_writes_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultraflash_cli.host.keep_freed_memory", lambda: None)
    (tmp_path / "material").mkdir()
    data, out = write_materials(tmp_path / "material", soft_materials(2)), tmp_path / "run"
    words = ["--toy", "--steps", "2", "--batch", "1", "--workers", "0", "--threads", "1", "--device", "cpu"]
    words += ["--validate-every", "2", "--log-every", "1", "--save-every", "1"]
    assert main(["train", "run", "decoder", "--data", str(data), "--out", str(out), *words]) == 0
    page = (out / REPORT).read_text(encoding="utf-8")
    assert "decoder, 2 steps" in page and "psnr" in page and "luma" in page
    assert page.count("data:image/png") == 2 and "<td>profile.decoder.out_width</td>" in page
    (out / REPORT).unlink()
    capsys.readouterr()
    assert main(["train", "report", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / REPORT)
    assert (out / REPORT).read_text(encoding="utf-8") == page
    assert main(["train", "report", str(tmp_path)]) == 3
