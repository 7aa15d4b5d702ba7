"""The one-step student beside its many-step teacher."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import teacher
from tests.train.made import random_cascade
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.train.recipes import tv2v_flow_matching
from ultraflash_cli.train.validation import Scores

SIZE = (32, 48)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of random weights, and a teacher whose SR transformer is another one."""
    weights = {name: x.contiguous() for name, x in random_cascade().items()}
    save_file(weights, tmp_path / "cascade.safetensors")
    (tmp_path / "teacher").mkdir()
    others = {
        name: x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        for name, x in weights.items()
        if name.startswith("sr_dit.")
    }
    save_file(others, tmp_path / "teacher" / "sr_dit.safetensors")
    return tmp_path


def test_student_and_teacher_refine_the_same_latents_in_one_step_and_in_many(runs: Path) -> None:
    pair = teacher.load(runs, tv2v_flow_matching.configure(steps=1, seed=0, toy=True))
    rows = teacher.compared(*pair, [1003], latents=4, steps=(1, 3), size=SIZE)
    assert list(rows) == ["student, one step, sparse", "teacher, 1 step, dense", "teacher, 3 steps, dense"]
    assert len({scores.psnr for scores in rows.values()}) == 3

    # A teacher with the student's weights and the student's blocks is the student.
    again = teacher.compared(pair[0], pair[0], [1003], latents=4, steps=(1,), size=SIZE)
    student, same = again.values()
    assert same.psnr == pytest.approx(student.psnr, abs=1e-3) and student.psnr == rows[next(iter(rows))].psnr


@pytest.mark.parametrize(("lpips", "status"), [(0.109, 0), (0.112, 1)])
def test_a_student_may_be_a_tenth_behind_its_teacher(
    lpips: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compared(*_: object, **__: object) -> dict[str, Scores]:
        return {
            name: Scores(psnr=30.0, lpips=distance, edges=0.3, change=5.0)
            for name, distance in (("student", lpips), ("one", 0.05), ("four", 0.1))
        }

    monkeypatch.setattr(teacher, "load", lambda *_: (None, None))
    monkeypatch.setattr(teacher, "compared", compared)
    assert teacher.main(["--count", "1"]) == status
    assert f"| student | 30.00 | {lpips:.4f} | 0.30 | 5.00 |" in capsys.readouterr().out


def test_a_folder_without_a_teacher_is_refused(runs: Path) -> None:
    (runs / "teacher" / "sr_dit.safetensors").unlink()
    with pytest.raises(WeightsError, match="teacher: no safetensors files"):
        teacher.load(runs, tv2v_flow_matching.configure(steps=1, seed=0, toy=True))
