"""Classify the content of a clip with a small network trained only on rendered scenes.
It recovers the words of a prompt from the pictures, so it can measure how often a
text-to-video model follows its prompt. `scene_judge_training.py` trains it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ultraflash_cli.train.scenes import Colour, Kind, Motion, Place, Time

__all__ = [
    "HEADS",
    "WEIGHTS",
    "SceneJudge",
    "about_judge",
    "load_judge",
    "piece_around",
    "save_judge",
    "shrink",
    "verdict",
]

HEADS: dict[str, tuple[str, ...]] = {
    "kind": (*get_args(Kind), "none"),
    "colour": get_args(Colour),
    "time": get_args(Time),
    "motion": (*get_args(Motion), "none"),
    "place": get_args(Place),
}
"""Classified attributes of a clip, and their words."""

WEIGHTS = Path(__file__).with_suffix(".safetensors")
FINE = 120, 208
"""Height and width in pixels of the judge's input frames."""
COARSE = 60, 104
"""Size at which it surveys a frame, to find the thing and classify everything else."""
GLANCE = 56
"""Side of the crop of a fine frame, around the thing, by which it distinguishes
kinds."""
SEEN = 8, 13
"""Rows and columns of the features that are pooled; a thing is found to within one of them."""
STEP_S = 0.5
"""Time in seconds between the two frames that it compares."""
UNSAID = -1
"""The label of a head that does not apply: a scene without a thing has no colour."""

Frames = npt.NDArray[np.uint8]


class SceneJudge(nn.Module):
    """Surveys pairs of coarse frames and glances at what moves in fine ones: two small convolutional networks."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.features = _convolutions(6, ((16, 5, 2), (32, 3, 2), (48, 3, 1), (64, 3, 2), (width, 3, 1)))
        self.attend = nn.Conv2d(width, 2, 1)
        self.mix = nn.Sequential(nn.Linear(4 * width, 128), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(words)) for name, words in HEADS.items()})
        self.glance = _convolutions(3, ((16, 5, 2), (32, 3, 2), (48, 3, 1), (64, 3, 2)))
        self.glance_kind = nn.Linear(2 * 64, len(get_args(Kind)))

    def forward(self, frames_btchw: Tensor) -> dict[str, Tensor]:
        """Return the logits of each head for clips in [0, 1] of size `FINE`, two frames or more."""
        count, frames = frames_btchw.shape[:2]
        said, places = self.survey(F.avg_pool2d(frames_btchw.flatten(0, 1), 2).unflatten(0, (count, frames)))
        cells = places.flatten(2).argmax(dim=2).flatten().tolist()
        pieces = [
            piece_around(frame, cell, GLANCE)
            for frame, cell in zip(frames_btchw[:, :-1].flatten(0, 1), cells, strict=True)
        ]
        kinds = self.kinds(torch.stack(pieces)).unflatten(0, (count, -1)).mean(dim=1).log_softmax(dim=1)
        surveyed = said["kind"].log_softmax(dim=1)
        there, none = surveyed[:, :-1].logsumexp(dim=1, keepdim=True), surveyed[:, -1:]
        return said | {"kind": torch.cat([kinds + there, none], dim=1)}

    def kinds(self, pieces_bchw: Tensor) -> Tensor:
        """Return the logits of the kinds of things in crops of fine frames [B, 3,
        GLANCE, GLANCE]."""
        seen = self.glance((2 * pieces_bchw - 1).contiguous(memory_format=torch.channels_last))
        return self.glance_kind(torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1))

    def survey(self, frames_btchw: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the logits of each head [B, words], and the logits [B, T - 1, *SEEN]
        of the position of the thing, for clips in [0, 1] of size `COARSE` with two
        frames or more.
        """
        now, then = frames_btchw[:, :-1], frames_btchw[:, 1:]
        pairs = torch.cat([2 * now - 1, 4 * (then - now)], dim=2)
        count = pairs.shape[1]
        flat = pairs.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        seen = self.features(flat)
        places = self.attend(seen)
        weight = places.flatten(2).softmax(dim=2)
        seen = seen.flatten(2)
        looked_at = torch.einsum("nks,ncs->nkc", weight, seen).flatten(1)
        pooled = torch.cat([seen.mean(dim=2), seen.amax(dim=2), looked_at], dim=1)
        mixed = self.mix(pooled).unflatten(0, (-1, count)).mean(dim=1)
        return {name: head(mixed) for name, head in self.heads.items()}, places[:, 0].unflatten(0, (-1, count))


def _convolutions(width: int, layers: Sequence[tuple[int, int, int]]) -> nn.Sequential:
    """Return layers of (channels, kernel, stride), each normalised and rectified."""
    modules = list[nn.Module]()
    for wide, kernel, stride in layers:
        modules += [nn.Conv2d(width, wide, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*modules)


def piece_around(frame_chw: Tensor, cell: int, side: int) -> Tensor:
    """Return the square of a fine frame around a cell, counted row by row; the
    picture's edge is repeated beyond it."""
    row, column = divmod(cell, SEEN[1])
    y, x = ((at + 0.5) * size / cells for at, size, cells in zip((row, column), FINE, SEEN, strict=True))
    wide = F.pad(frame_chw, [side // 2] * 4, mode="replicate")
    return wide[:, int(y) : int(y) + side, int(x) : int(x) + side]


def shrink(frames: Frames) -> Tensor:
    """Return frames ``[T, H, W, 3]`` of any size as input for the judge: [T, 3, *FINE]
    in [0, 1]."""
    return F.adaptive_avg_pool2d(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255, FINE)


@torch.no_grad()
def verdict(judge: SceneJudge, frames: Frames, *, fps: float = 16) -> dict[str, str]:
    """Return the word of each head for a clip ``[T, H, W, 3]`` of half a second at least."""
    step = max(1, round(STEP_S * fps))
    assert len(frames) > step, "two frames half a second apart"
    said = judge(shrink(np.ascontiguousarray(frames[::step]))[None])
    return {name: HEADS[name][int(logits.argmax())] for name, logits in said.items()}


def save_judge(judge: SceneJudge, path: Path, about: Mapping[str, Any]) -> None:
    """Write weights in half precision, and JSON about their training."""
    state = {name: value.half().contiguous() for name, value in judge.state_dict().items() if value.is_floating_point()}
    save_file(state, path, metadata={name: json.dumps(value) for name, value in about.items()})


def load_judge(path: Path = WEIGHTS) -> SceneJudge:
    """Load a judge that `save_judge` wrote."""
    judge = SceneJudge()
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 not a mapping
    counts = {name: value for name, value in judge.state_dict().items() if not value.is_floating_point()}
    judge.load_state_dict(state | counts)
    return judge.eval()


def about_judge(path: Path = WEIGHTS) -> dict[str, Any]:
    """Return the information that `save_judge` wrote about a judge."""
    with safe_open(path, "pt") as file:
        return {name: json.loads(value) for name, value in sorted(file.metadata().items())}
