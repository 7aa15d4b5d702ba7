"""A learned reward: how alike frames look to a network that was fitted to people's judgements (shift-tolerant LPIPS).

Its weights come in the wheel of stlpips-pytorch (`pip install --no-deps stlpips-pytorch`); of that package nothing else
is used. Sources: R. Zhang et al., *The unreasonable effectiveness of deep features as a perceptual metric*, 2018;
A. Ghildyal, F. Liu, *Shift-tolerant perceptual similarity metric*, 2022.
"""

import functools
import pickle
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.errors import UsageError, WeightsError
from ultraflash_cli.weights.load import load_strictly

__all__ = ["LearnedLikeness", "LikenessNet", "weights_path"]

PACKAGE = "stlpips_pytorch"
WEIGHTS = Path("weights") / "vST0.0" / "alex_shift_tolerant.pth"
LEAST_PX = 24
"""Shorter sides vanish in the network; such frames are padded by reflection."""

_TRUNK = (
    # Name of the convolution, its padding, the blurs around it: before it a maximum is taken and blurred.
    ("slice1.0", 2, (), ("slice1.1",)),
    ("slice2.5", 2, ("slice2.4",), ()),
    ("slice3.9", 1, ("slice3.8",), ()),
    ("slice4.11", 1, (), ()),
    ("slice5.13", 1, (), ()),
)
_SIZES = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))


class LikenessNet(nn.Module):
    """AlexNet's convolutions without strides, blurred where it shrinks, and a weight for every feature."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = nn.Module()
        self.scaling_layer.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.scaling_layer.register_buffer("scale", torch.ones(1, 3, 1, 1))
        self.net = nn.Module()
        for number, ((name, padding, before, after), (wide, out, side)) in enumerate(zip(_TRUNK, _SIZES, strict=True)):
            self._put(name, nn.Conv2d(wide, out, side, padding=padding))
            for blur, width in (*((each, wide) for each in before), *((each, out) for each in after)):
                self._put(blur, _Blur(width))
            head = nn.Module()
            head.model = nn.Sequential(nn.Identity(), nn.Conv2d(out, 1, 1, bias=False))
            self.add_module(f"lin{number}", head)

    def _put(self, name: str, module: nn.Module) -> None:
        """Add a module of the trunk under the name that the weights have for it."""
        part, index = name.split(".")
        if not hasattr(self.net, part):
            self.net.add_module(part, nn.Module())
        self.net.get_submodule(part).add_module(index, module)

    def forward(self, a_n3hw: Tensor, b_n3hw: Tensor) -> Tensor:
        """Return the distance ``[N]`` of RGB frames in [0, 1]; equal ones are at 0."""
        features = self._features(torch.cat([a_n3hw, b_n3hw]))
        total = a_n3hw.new_zeros(len(a_n3hw))
        for number, planes in enumerate(features):
            a, b = (planes / (planes.square().sum(1, keepdim=True) + 1e-16).sqrt()).chunk(2)
            head = self.get_submodule(f"lin{number}.model.1")
            total = total + head((a - b).square()).mean((1, 2, 3))
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        """Return the activations behind every convolution."""
        x = (2 * x - 1 - self.scaling_layer.get_buffer("shift")) / self.scaling_layer.get_buffer("scale")
        found: list[Tensor] = []
        for name, _, before, after in _TRUNK:
            for blur in before:
                x = self.net.get_submodule(blur)(F.max_pool2d(x, 3, 1))
            x = self.net.get_submodule(name)(x)
            for blur in after:
                x = self.net.get_submodule(blur)(x)
            x = x.relu()
            found.append(x)
        return found


class _Blur(nn.Module):
    """A fixed 3x3 blur of every plane, at every second pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(width, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2,) * 4, mode="reflect"), self.get_buffer("filt"), stride=2, groups=x.shape[1])


class LearnedLikeness:
    """How alike frames and truth look; 1 is equal. Raises UsageError where the weights are not installed."""

    def __init__(self, *, tolerance: float = 0.05) -> None:
        """Take the distance ``tolerance`` for the one at which the score falls to 1/e."""
        self.path, self.tolerance = weights_path(), tolerance

    def score(self, frames_bcthw: Tensor, truth_bcthw: Tensor) -> Tensor:
        """Return ``[B, T]`` in (0, 1]."""
        batch, frames = frames_bcthw.shape[0], frames_bcthw.shape[2]
        planes = [clip.float().transpose(1, 2).flatten(0, 1) for clip in (frames_bcthw, truth_bcthw)]
        height, width = planes[0].shape[2:]
        missing = [max(0, LEAST_PX - side) for side in (width, height)]
        padding = (missing[0] // 2, missing[0] - missing[0] // 2, missing[1] // 2, missing[1] - missing[1] // 2)
        a, b = (F.pad(x, padding, mode="reflect") if any(missing) else x for x in planes)
        network = _network(self.path, a.device)
        with torch.autocast(a.device.type, enabled=False):
            return torch.exp(-network(a, b) / self.tolerance).unflatten(0, (batch, frames))


@functools.cache
def _network(path: Path, device: torch.device) -> LikenessNet:
    network = LikenessNet()
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: no readable weights ({error}). Reinstall stlpips-pytorch.") from error
    load_strictly(network, tensors, name=path.name)
    return network.to(device).eval().requires_grad_(False)


def weights_path() -> Path:
    """Return the file of the weights in the installed package. Raises UsageError where there is none."""
    found = find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        if (Path(folder) / WEIGHTS).is_file():
            return Path(folder) / WEIGHTS
    raise UsageError(
        "the reward 'lpips' needs the weights in stlpips-pytorch, which is not installed: "
        "`pip install --no-deps stlpips-pytorch`."
    )
