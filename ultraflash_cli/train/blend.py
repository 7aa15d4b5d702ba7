"""Average the weights of several runs. Runs that continue one another end in the same
loss basin, and their mean has a lower loss than each of them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ultraflash_cli.errors import UsageError
from ultraflash_cli.train.record import RECORD, RunRecord, read_record
from ultraflash_cli.train.run import AVERAGE
from ultraflash_cli.video.partial import output_errors, partial_file
from ultraflash_cli.weights.load import read_tensors

__all__ = ["blend_runs"]


def blend_runs(runs: Sequence[Path], out: Path, *, grey: bool = False) -> RunRecord:
    """Write the mean of the EMA weights of runs of one recipe into ``out``, ready to export; return its record.

    With ``grey`` a pixel path only adds luma, and the colours remain those of plain
    resampling. The record is that of the last run, with the steps of all runs summed
    and the averaged weights as its start. Raises UsageError for runs of different
    recipes or sizes, InputError if a folder contains no run.
    """
    if len(runs) < 2:
        raise UsageError("averaging needs at least two runs")
    records = [read_record(run) for run in runs]
    files = [read_tensors(run / AVERAGE) for run in runs]
    shapes = [{name: tuple(value.shape) for name, value in tensors.items()} for tensors in files]
    if len({record.recipe for record in records}) > 1 or any(other != shapes[0] for other in shapes[1:]):
        raise UsageError("averaging needs runs of the same recipe and sizes")
    mean = {name: torch.stack([tensors[name].float() for tensors in files]).mean(dim=0) for name in files[0]}
    mean = {name: _grey(value) if grey and ".project." in name else value for name, value in mean.items()}
    start = hashlib.sha256(b"".join((run / AVERAGE).read_bytes() for run in runs)).hexdigest()[:16]
    record = replace(records[-1], start_hash=start, steps=sum(each.steps for each in records))
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with partial_file(out / AVERAGE) as part:
        save_file(mean, part, metadata={"recipe": record.recipe, "steps": str(record.steps)})
    with partial_file(out / RECORD) as part:
        part.write_text(json.dumps(asdict(record), indent=1))
    return record


def _grey(rows: Tensor) -> Tensor:
    """Return the rows of a projection with red, green and blue of each pixel replaced
    by their luma."""
    luma = torch.tensor((0.299, 0.587, 0.114)).view(3, 1, *[1] * (rows.ndim - 1))
    mixed = (rows.unflatten(0, (3, -1)) * luma).sum(0, keepdim=True)
    return mixed.expand(3, *[-1] * rows.ndim).flatten(0, 1).contiguous()
