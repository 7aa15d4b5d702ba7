"""Two processes train the same weights as one, for every recipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train import recipes_in_processes
from ultraflash_cli.train.run_log import NOT_LOSSES, RunLog


def test_two_sharded_processes_train_every_recipe_as_one_does(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learners and frozen transformers sharded, activations recomputed: losses and
    weights of every recipe, with one torchrun."""
    program = Path(recipes_in_processes.__file__)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", str(program), str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=480,
        cwd=repository,
        env=os.environ | {"PYTHONPATH": f"{repository}:{repository / 'kernels'}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in recipes_in_processes.NAMES:
        alone = recipes_in_processes.train(name, tmp_path / "alone", accumulate=2)
        both, start = torch.load(tmp_path / f"{name}.pt", weights_only=True), recipes_in_processes.before(name)
        assert both.keys() == alone.keys()
        for key, value in alone.items():
            if key in recipes_in_processes.ANYTHING:
                continue
            # Steps of normalised gradients amplify rounding if a gradient is small.
            apart, moved = float((both[key] - value).norm()), float((value - start[key]).norm())
            assert apart <= 0.2 * moved + 1e-5 * float(value.norm()), f"{name} {key}: {apart} of {moved}"
        losses = losses_of(tmp_path / "both" / name)
        assert len(losses) >= 2
        assert losses == pytest.approx(losses_of(tmp_path / "alone" / name), rel=1e-3, abs=1e-5)
    for name in recipes_in_processes.PUBLISHED[:2]:  # gathered in bfloat16, frozen in bfloat16
        losses, half = losses_of(tmp_path / "both" / name), losses_of(tmp_path / "half" / name)
        assert half != losses
        assert half == pytest.approx(losses, rel=0.1, abs=0.05)


def losses_of(folder: Path) -> list[float]:
    """Return all loss terms of a run's log, in order."""
    rows = RunLog(folder).rows()
    return [value for row in rows for key, value in row.items() if key not in NOT_LOSSES]
