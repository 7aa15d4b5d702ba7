"""Perceptual similarity of frames by a network fitted to human judgements
(shift-tolerant LPIPS).

Its weights come with the stlpips-pytorch wheel. Nothing else of that package is used, and nothing is downloaded.

Sources: R. Zhang et al., *The unreasonable effectiveness of deep features as a perceptual metric*, 2018;
A. Ghildyal, F. Liu, *Shift-tolerant perceptual similarity metric*, 2022.
"""

import functools
import pickle
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.errors import UsageError, WeightsError

__all__ = ["PACKAGE", "WEIGHTS", "LikenessNet", "Trunk", "learned_distance", "weights_path"]

PACKAGE = "stlpips_pytorch"
WEIGHTS = Path("weights") / "vST0.0"
LEAST_PX = 24
"""Minimum side for the network; smaller frames are padded by reflection."""

Trunk = Literal["alex", "vgg"]
"""Trunk whose convolutions provide the features."""


class _Layer(NamedTuple):
    """A convolution of a trunk, named as in the weights, with the surrounding
    operations."""

    name: str
    channels: tuple[int, int]
    side: int
    padding: int
    pool: tuple[str, int] | None = None
    """Name of the downsampling blur before it, and the side of the max pooling before
    that."""
    blur_after: str | None = None
    """Name of a blur after it, which also downsamples."""
    is_feature: bool = True
    """Whether its activations are compared."""


_TRUNKS: dict[Trunk, tuple[_Layer, ...]] = {
    "alex": (
        _Layer("slice1.0", (3, 64), 11, 2, blur_after="slice1.1"),
        _Layer("slice2.5", (64, 192), 5, 2, ("slice2.4", 3)),
        _Layer("slice3.9", (192, 384), 3, 1, ("slice3.8", 3)),
        _Layer("slice4.11", (384, 256), 3, 1),
        _Layer("slice5.13", (256, 256), 3, 1),
    ),
    "vgg": (
        _Layer("slice1.0", (3, 64), 3, 1, is_feature=False),
        _Layer("slice1.2", (64, 64), 3, 1),
        _Layer("slice2.6", (64, 128), 3, 1, ("slice2.5", 2), is_feature=False),
        _Layer("slice2.8", (128, 128), 3, 1),
        _Layer("slice3.12", (128, 256), 3, 1, ("slice3.11", 2), is_feature=False),
        _Layer("slice3.14", (256, 256), 3, 1, is_feature=False),
        _Layer("slice3.16", (256, 256), 3, 1),
        _Layer("slice4.20", (256, 512), 3, 1, ("slice4.19", 2), is_feature=False),
        _Layer("slice4.22", (512, 512), 3, 1, is_feature=False),
        _Layer("slice4.24", (512, 512), 3, 1),
        _Layer("slice5.28", (512, 512), 3, 1, ("slice5.27", 2), is_feature=False),
        _Layer("slice5.30", (512, 512), 3, 1, is_feature=False),
        _Layer("slice5.32", (512, 512), 3, 1),
    ),
}


class LikenessNet(nn.Module):
    """A trunk's convolutions with blurs instead of strides, and a weight for every
    feature."""

    def __init__(self, trunk: Trunk = "alex") -> None:
        super().__init__()
        self.layers = _TRUNKS[trunk]
        self.scaling_layer = nn.Module()
        self.scaling_layer.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.scaling_layer.register_buffer("scale", torch.ones(1, 3, 1, 1))
        self.net = nn.Module()
        for layer in self.layers:
            wide, out = layer.channels
            self._put(layer.name, nn.Conv2d(wide, out, layer.side, padding=layer.padding))
            if layer.pool is not None:
                self._put(layer.pool[0], _Blur(wide))
            if layer.blur_after is not None:
                self._put(layer.blur_after, _Blur(out))
        for number, layer in enumerate(layer for layer in self.layers if layer.is_feature):
            head = nn.Module()
            head.model = nn.Sequential(nn.Identity(), nn.Conv2d(layer.channels[1], 1, 1, bias=False))
            self.add_module(f"lin{number}", head)

    def _put(self, name: str, module: nn.Module) -> None:
        """Add a module of the trunk under its name in the weights."""
        part, index = name.split(".")
        if not hasattr(self.net, part):
            self.net.add_module(part, nn.Module())
        self.net.get_submodule(part).add_module(index, module)

    def forward(self, a_n3hw: Tensor, b_n3hw: Tensor) -> Tensor:
        """Return the distance ``[N]`` between RGB frames in [0, 1]; 0 is equal.
        Features are computed in the dtype of the weights and compared in float32. If
        ``b`` needs no gradients, its activations are not kept.
        """
        total = a_n3hw.new_zeros(len(a_n3hw), dtype=torch.float32)
        with torch.set_grad_enabled(torch.is_grad_enabled() and b_n3hw.requires_grad):
            wanted = list(self._features(b_n3hw))
        for number, (a, b) in enumerate(zip(self._features(a_n3hw), wanted, strict=True)):
            head = self.get_submodule(f"lin{number}.model.1").get_parameter("weight").float()
            away = (_unit(a) - _unit(b)).square()
            total = total + F.conv2d(away, head).mean((1, 2, 3))
        return total

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the activations of every convolution that provides features."""
        x = (2 * x - 1 - self.scaling_layer.get_buffer("shift")) / self.scaling_layer.get_buffer("scale")
        first = self.net.get_submodule(self.layers[0].name).get_parameter("weight")
        x = x.to(first.dtype).contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            if layer.pool is not None:
                x = self.net.get_submodule(layer.pool[0])(F.max_pool2d(x, layer.pool[1], 1))
            x = self.net.get_submodule(layer.name)(x)
            if layer.blur_after is not None:
                x = self.net.get_submodule(layer.blur_after)(x)
            x = x.relu()
            if layer.is_feature:
                yield x


def _unit(planes: Tensor) -> Tensor:
    """Return features normalised to length 1 at every position, in float32."""
    wide = planes.float()
    return wide / (wide.square().sum(1, keepdim=True) + 1e-16).sqrt()


class _Blur(nn.Module):
    """A fixed 3x3 blur of every plane, evaluated at every second pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(width, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2,) * 4, mode="reflect"), self.get_buffer("filt"), stride=2, groups=x.shape[1])


def learned_distance(
    frames_bcthw: Tensor, truth_bcthw: Tensor, trunk: Trunk = "alex", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the perceptual distance of frames from the ground truth, ``[B, T]``,
    computed in ``dtype``; 0 is equal.

    Raises UsageError if its weights are not installed.
    """
    batch, frames = frames_bcthw.shape[0], frames_bcthw.shape[2]
    planes = [clip.float().transpose(1, 2).flatten(0, 1) for clip in (frames_bcthw, truth_bcthw)]
    height, width = planes[0].shape[2:]
    missing = [max(0, LEAST_PX - side) for side in (width, height)]
    padding = (missing[0] // 2, missing[0] - missing[0] // 2, missing[1] // 2, missing[1] - missing[1] // 2)
    a, b = (F.pad(x, padding, mode="reflect") if any(missing) else x for x in planes)
    network = _network(weights_path(trunk), trunk, a.device, dtype)
    with torch.autocast(a.device.type, enabled=False):
        return network(a, b).unflatten(0, (batch, frames))


@functools.cache
@torch.inference_mode(mode=False)  # a later call may need gradients through the same network
def _network(path: Path, trunk: Trunk, device: torch.device, dtype: torch.dtype) -> LikenessNet:
    network = LikenessNet(trunk)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: weights cannot be read ({error}); reinstall stlpips-pytorch") from error
    network.to(device, dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network.eval().requires_grad_(False)


def weights_path(trunk: Trunk = "alex") -> Path:
    """Return the weight file of the installed package. Raises UsageError if there is
    none."""
    found = find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        path = Path(folder) / WEIGHTS / f"{trunk}_shift_tolerant.pth"
        if path.is_file():
            return path
    raise UsageError(
        "'lpips' needs the weights in stlpips-pytorch, which is not installed; run `pip install --no-deps "
        "stlpips-pytorch`"
    )
