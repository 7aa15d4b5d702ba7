"""Measure how well an encoder and its decoder reproduce held-out rendered scenes, at
480p and at 1K.

Peak signal-to-noise ratios are means over clips, for the whole picture and for the
moving thing alone; learned distances (shift-tolerant LPIPS, AlexNet) are means over
frames. Rain and snow, whose drops are unpredictable, are listed separately. WEIGHTS is
the average of a run of `autoencoder`, or `lite` for the shipped weights; `pca` is a
linear code of the same rate, 16 numbers for a block of 8x8 pixels in 4 frames, fitted
to scenes that recipes may learn from.

    python -m benchmarks.autoencoder runs/autoencoder/average.safetensors lite pca --sheet autoencoder.png
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import ultraflash_cli
from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.metrics.lpips import learned_distance
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.roles import CascadeRoles
from ultraflash_cli.train.scenes import Scene, random_scene
from ultraflash_cli.video.stills import write_png
from ultraflash_cli.weights.load import read_tensors

__all__ = ["HELD_OUT", "Clip", "Score", "held_out", "linear_code", "main", "score", "trained"]

HELD_OUT = 70_000_000
"""Number of the first scene; the recipes' scenes begin at 0 and at 100,000,000."""
SIZES = {"480p": (480, 832), "1K": (960, 1664)}
FPS = 16
LATENTS = 3
"""Latent frames per clip."""
SEEN_LEVELS = 8
"""Minimum difference of a thing from the background, in grey levels."""
FALLING = ("rain", "snow")

Code = Callable[[Tensor], Tensor]
"""Function from clips [B, 3, T, H, W] to their reconstructions."""


@dataclass(frozen=True)
class Clip:
    """A rendered scene and a mask of its thing."""

    scene: Scene
    frames_cthw: Tensor
    thing_thw: Tensor


@dataclass(frozen=True, kw_only=True)
class Score:
    """Quality of the reconstructed clips."""

    code: str
    size: str
    weather: str
    """Kind of weather: with rain or snow, or without."""
    clips: int
    psnr: float
    """PSNR of the whole picture, in dB."""
    thing_psnr: float
    """PSNR of the moving thing and the area within its outline, in dB."""
    lpips: float
    """Learned distance."""


def held_out(count: int, size: tuple[int, int], *, falling: bool) -> Iterator[Clip]:
    """Yield the first ``count`` held-out scenes with or without rain or snow; each has
    a thing."""
    number = HELD_OUT
    while count:
        scene = random_scene(number)
        number += 1
        if (scene.weather in FALLING) != falling or scene.thing is None:
            continue
        shown, bare = (Renderer(each, height_px=size[0], width_px=size[1]) for each in (scene, _bare(scene)))
        frames: list[npt.NDArray[np.uint8]] = []
        things: list[npt.NDArray[np.bool_]] = []
        for at in range(4 * LATENTS):
            frames.append(shown.frame(2 + at / FPS))
            apart = np.abs(frames[-1].astype(np.int16) - bare.frame(2 + at / FPS)).max(axis=-1)
            things.append(apart > SEEN_LEVELS)
        picture = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float() / 255
        yield Clip(scene, picture, torch.from_numpy(np.stack(things)))
        count -= 1


def _bare(scene: Scene) -> Scene:
    return replace(scene, thing=None)


@torch.no_grad()
def score(name: str, code: Code, clips: Sequence[Clip], size: str, weather: str) -> tuple[Score, list[Tensor]]:
    """Return the quality of a code on clips, and its pictures [C, T, H, W]."""
    whole: list[float] = []
    thing: list[float] = []
    far: list[float] = []
    pictures: list[Tensor] = []
    for clip in clips:
        with torch.autocast("cpu", torch.bfloat16):
            out = code(clip.frames_cthw[None])[0].float().clamp(0, 1)
        square = (out - clip.frames_cthw).square().mean(0)
        whole.append(_decibels(square.mean()))
        if clip.thing_thw.any():
            thing.append(_decibels(square[clip.thing_thw].mean()))
        for at in (1, 4 * LATENTS - 2):
            shown, truth = out[None, :, at : at + 1], clip.frames_cthw[None, :, at : at + 1]
            far.append(float(learned_distance(shown, truth, dtype=torch.bfloat16)))
        pictures.append(out)
    means = (round(float(np.mean(values)), 4) for values in (whole, thing, far))
    psnr, thing_psnr, lpips = means
    found = Score(
        code=name, size=size, weather=weather, clips=len(clips), psnr=psnr, thing_psnr=thing_psnr, lpips=lpips
    )
    return found, pictures


def _decibels(mean_square: Tensor) -> float:
    return -10 * float(torch.log10(mean_square.clamp_min(1e-10)))


def trained(path: Path) -> Code:
    """Return the code of a run's weights."""
    roles = CascadeRoles(LITE, ("encoder", "decoder"))
    roles.load(read_tensors(path), hint="a run of `autoencoder`")
    return lambda clips: roles.decode_base(roles.encode(clips))


def shipped() -> Code:
    """Return the code of the built-in model."""
    parts = ("encoder", "decoder")
    roles = CascadeRoles(LITE, parts)
    folder = Path(ultraflash_cli.__file__).parent / "weights" / "lite"
    files = {part: read_tensors(folder / f"{part}.safetensors") for part in parts}
    roles.load({f"{part}.{key}": value.float() for part, file in files.items() for key, value in file.items()})
    return lambda clips: roles.decode_base(roles.encode(clips))


def linear(*, scenes: int = 60, channels: int = 16) -> Code:
    """Return the best linear code for some of the training scenes."""
    clips: list[Tensor] = []
    for number in range(scenes):
        renderer = Renderer(random_scene(number), height_px=480, width_px=832)
        frames = np.stack([renderer.frame(2 + at / FPS) for at in range(4)])
        clips.append(torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 255)
    return linear_code(torch.stack(clips), channels=channels)


def linear_code(taught_bcthw: Tensor, *, channels: int) -> Code:
    """Return the principal components of blocks of 8x8 pixels in 4 frames of some
    clips, as a function that encodes and decodes."""
    size = taught_bcthw.shape[1] * 4 * 8 * 8
    total, products, count = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64), 0
    for clip in taught_bcthw.split(1):
        blocks = _blocks(clip).double()
        total, products, count = total + blocks.sum(0), products + blocks.T @ blocks, count + len(blocks)
    mean = total / count
    axes = torch.linalg.eigh(products / count - mean[:, None] * mean)[1][:, -channels:].float()
    middle = mean.float()

    def code(clips: Tensor) -> Tensor:
        blocks = _blocks(clips) - middle
        batch, planes, frames, height, width = clips.shape
        back = (blocks @ axes @ axes.T + middle).view(batch, frames // 4, height // 8, width // 8, planes, 4, 8, 8)
        return back.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(clips.shape)

    return code


def _blocks(clips_bcthw: Tensor) -> Tensor:
    parts = clips_bcthw.unfold(2, 4, 4).unfold(3, 8, 8).unfold(4, 8, 8)
    return parts.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(0, 3).flatten(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codes", nargs="+", metavar="WEIGHTS")
    parser.add_argument("--clips", type=int, default=8, help="at 480p; a third as many of the others (8)")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--sheet", type=Path, help="picture: scenes, and below each what comes back")
    settings = parser.parse_args(arguments)
    known: dict[str, Callable[[], Code]] = {"lite": shipped, "pca": linear}
    codes = {name: known[name]() if name in known else trained(Path(name)) for name in settings.codes}
    few = max(1, settings.clips // 3)
    scores: list[Score] = []
    rows: list[Tensor] = []
    print("| code | size | weather | clips | PSNR, dB | thing, dB | LPIPS |\n|---|---|---|---:|---:|---:|---:|")
    for size, falling, count in (("480p", False, settings.clips), ("480p", True, few), ("1K", False, few)):
        clips = list(held_out(count, SIZES[size], falling=falling))
        shown = [[clip.frames_cthw for clip in clips]]
        for name, code in codes.items():
            weather = "rain, snow" if falling else "other"
            found, pictures = score(Path(name).parent.name or name, code, clips, size, weather)
            scores.append(found)
            shown.append(pictures)
            cells = [found.code, size, weather, str(found.clips)]
            cells += [f"{found.psnr:.2f}", f"{found.thing_psnr:.2f}", f"{found.lpips:.4f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
        if size == "480p":
            rows += [torch.cat([each[:, 6] for each in column], dim=1) for column in zip(*shown, strict=True)]
    if settings.out:
        settings.out.write_text(json.dumps([asdict(each) for each in scores], indent=1) + "\n", encoding="utf-8")
    if settings.sheet:
        picture = torch.cat(rows, dim=2).permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
        write_png(settings.sheet, np.ascontiguousarray(picture))


if __name__ == "__main__":
    sys.exit(main())
