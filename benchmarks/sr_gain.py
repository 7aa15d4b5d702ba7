"""Measure what the SR transformer adds to whole generated clips: captions of held-out
rendered scenes are generated at 1K, 81 frames each, with and without it, and compared
with the renderer's frames.

    python -m benchmarks.sr_gain --count 60 --out sr_gain.json

Scenes are those of `benchmarks.cascade` (no rain, no snow). LPIPS is measured on the
frame in the middle of every second (AlexNet) or of every third (VGG, which takes much
longer), edges and change on all frames. The judge of
`benchmarks.generation` says whether subject, colour, time of day and motion are those
of the scene. With ``--work`` results of scenes are kept, for going on later.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.candidates import taken_from
from benchmarks.cascade import CPU, SCALE, held_out_scenes
from benchmarks.generation import JUDGED, built_in, shrunk, unsteadiness
from benchmarks.scene_judge import load_judge, verdict
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import GENERATED_FPS, LATENT_PX, latents_for, plan_generation
from ultraflash_cli.host import keep_freed_memory
from ultraflash_cli.metrics.lpips import Trunk, learned_distance
from ultraflash_cli.models.build import build_text_to_video
from ultraflash_cli.models.device import choose_precision
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.latents import scene_caption, training_scene
from ultraflash_cli.train.validation import change_error, edge_energy

__all__ = ["ARMS", "Clip", "Group", "Means", "groups_of", "main", "means_of", "measured", "table"]

ARMS = ("without", "with")
"""Names of the variants: without and with the SR transformer."""
TRUNKS: dict[Trunk, int] = {"alex": 1, "vgg": 3}
"""Networks of the learned distance, with the seconds from one measured frame to the
next."""

Group = tuple[Tensor, dict[str, Tensor]]
"""The renderer's frames ``[T, 3, H, W]`` in [0, 1] and those of each arm."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Measurements of one clip."""

    alex: float
    """LPIPS with AlexNet, on which the SR transformer was trained."""
    vgg: float
    """LPIPS with VGG."""
    psnr: float
    """In dB, over all frames."""
    edges: float
    """Energy of the finest detail relative to the renderer's."""
    change: float
    """Error of the change between frames, in 8-bit levels."""
    unsteady: float
    """Unsteadiness in 8-bit levels."""
    unsteady_drawn: float
    """The same for the renderer's frames."""
    right: dict[str, bool]
    """Whether the judge's words are those of the scene."""


@torch.inference_mode()
def groups_of(shelf: Shelf, profile: Profile, number: int, *, seconds: float) -> Iterator[Group]:
    """Generate the clip of a scene's caption in both arms, group by group."""
    config, words, size = profile.generator, profile.text_encoder, profile.base_size
    assert config is not None and words is not None, f"{profile.name} generates from words"
    plan = plan_generation(
        latents_for(seconds), chunk=config.chunk_latents, chunks_per_group=profile.chunks_per_group(config)
    )
    profiles = dict(zip(ARMS, (replace(profile, sr_dit=None), profile), strict=True))
    models = {
        name: build_text_to_video(shelf, each, plan, scale=SCALE, long=False, low_frames=False, device=CPU)
        for name, each in profiles.items()
    }
    encoder: Any = shelf.take(profile, "text_encoder", words, device=CPU, dtype=torch.float32)
    context = encoder.encode((scene_caption(0, number, np.random.default_rng(number)),))
    states = {
        name: model.init_state(
            height=size[0] // LATENT_PX,
            width=size[1] // LATENT_PX,
            seed=number,
            context=context.to(next(model.sampler.network.parameters()).dtype),
        )
        for name, model in models.items()
    }
    renderer = Renderer(training_scene(0, number), height_px=SCALE * size[0], width_px=SCALE * size[1])
    done = 0
    for _ in plan.groups:
        made: dict[str, Tensor] = {}
        for name, model in models.items():
            states[name], group = model.step(states[name])
            assert group.frames_bcthw is not None, "a group has frames"
            made[name] = group.frames_bcthw[0].transpose(0, 1).float().clamp(0, 1)
        count = len(made[ARMS[0]])
        drawn = np.stack([renderer.frame((done + i) / GENERATED_FPS) for i in range(count)])
        done += count
        yield torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255, made


@torch.inference_mode()
def measured(number: int, groups: Iterator[Group], dtype: torch.dtype) -> dict[str, Clip]:
    """Return the measurements of both arms of a clip; the learned distance is computed
    in ``dtype``."""
    scene, judge = training_scene(0, number), load_judge()
    assert scene.thing is not None, "held-out scenes have a thing"
    said = {"kind": scene.thing.kind, "colour": scene.thing.colour, "time": scene.time, "motion": scene.thing.motion}
    sums: dict[str, dict[str, list[tuple[float, int]]]] = {name: {} for name in ARMS}
    small: dict[str, list[Tensor]] = {name: [] for name in (*ARMS, "drawn")}
    edges_drawn, last, done = list[tuple[float, int]](), dict[str, Tensor](), 0
    for truth, made in groups:
        shown: dict[Trunk, list[int]] = {
            trunk: _middles(range(done, done + len(truth)), every_s) for trunk, every_s in TRUNKS.items()
        }
        done += len(truth)
        edges_drawn.append((edge_energy(truth.transpose(0, 1)[None]), len(truth)))
        small["drawn"].append(_small(truth))
        # The last frame of the group before belongs to the first change of this one.
        followed = torch.cat([last["drawn"], truth]) if last else truth
        for name, frames in made.items():
            whole = torch.cat([last[name], frames]) if last else frames
            found = {
                "square": (float((frames - truth).square().mean()), len(truth)),
                "edges": (edge_energy(frames.transpose(0, 1)[None]), len(truth)),
                "change": (
                    change_error(whole.transpose(0, 1)[None], followed.transpose(0, 1)[None]) ** 2,
                    len(whole) - 1,
                ),
            }
            for trunk, middles in shown.items():
                if not middles:
                    continue
                out, wanted = (clip[middles].transpose(0, 1)[None] for clip in (frames, truth))
                found[trunk] = float(learned_distance(out, wanted, trunk, dtype).mean()), len(middles)
            for key, value in found.items():
                sums[name].setdefault(key, []).append(value)
            small[name].append(_small(frames))
        last = {name: frames[-1:] for name, frames in (*made.items(), ("drawn", truth))}
    steady = unsteadiness(torch.cat(small["drawn"]).float())
    clips: dict[str, Clip] = {}
    for name in ARMS:
        seen = verdict(judge, torch.cat(small[name]).permute(0, 2, 3, 1).round().byte().numpy(), fps=GENERATED_FPS)
        mean = {key: _average(values) for key, values in sums[name].items()}
        clips[name] = Clip(
            alex=mean["alex"],
            vgg=mean["vgg"],
            psnr=float(-10 * np.log10(max(mean["square"], 1e-10))),
            edges=mean["edges"] / _average(edges_drawn),
            change=mean["change"] ** 0.5,
            unsteady=unsteadiness(torch.cat(small[name]).float()),
            unsteady_drawn=steady,
            right={key: seen[key] == word for key, word in said.items()},
        )
    return clips


def _middles(frames: range, every_s: int) -> list[int]:
    """Return the positions of frames in the middle of a second, one second in
    ``every_s``."""
    period = GENERATED_FPS * every_s
    return [i for i, frame in enumerate(frames) if frame % period == GENERATED_FPS // 2]


def _average(values: Sequence[tuple[float, int]]) -> float:
    """Return the mean of values by their weights."""
    numbers, weights = zip(*values, strict=True)
    return float(np.average(numbers, weights=weights))


def _small(frames_tchw: Tensor) -> Tensor:
    """Return frames at the size of the judge, as levels ``[T, 3, H, W]``."""
    return shrunk((frames_tchw.permute(0, 2, 3, 1) * 255).round().byte().numpy())


Means = dict[str, float]


def means_of(clips: Sequence[Clip]) -> Means:
    """Return the mean of each number, the share of right answers of each of the judge's
    heads, and the ratio of the mean unsteadiness to the renderer's."""
    names = ("psnr", "alex", "vgg", "edges", "change", "unsteady", "unsteady_drawn")
    means = {name: float(np.mean([getattr(clip, name) for clip in clips])) for name in names}
    right = {name: float(np.mean([clip.right[name] for clip in clips])) for name in JUDGED}
    return means | right | {"unsteady_ratio": means["unsteady"] / means["unsteady_drawn"]}


def table(rows: Sequence[dict[str, Clip]]) -> str:
    """Return the summary as a Markdown table, a row per arm."""
    heads = ["PSNR, dB", "LPIPS (AlexNet)", "LPIPS (VGG)", "edges", "change", "unsteady, ratio"]
    heads += ["subject", "colour", "time of day", "motion"]
    lines = ["| SR transformer | " + " | ".join(heads) + " |", "|---" + "|---:" * len(heads) + "|"]
    for name in ARMS:
        mean = means_of([row[name] for row in rows])
        cells = [f"{mean['psnr']:.2f}", *(f"{mean[trunk]:.3f}" for trunk in TRUNKS), f"{mean['edges']:.2f}"]
        cells += [f"{mean['change']:.2f}", f"{mean['unsteady_ratio']:.2f}"]
        cells += [f"{100 * mean[head]:.0f} %" for head in JUDGED]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(numbers: Sequence[int], rows: Sequence[dict[str, Clip]], seconds: float) -> dict[str, Any]:
    """Return all measurements, settings and the environment as one JSON object."""
    means = {name: means_of([row[name] for row in rows]) for name in ARMS}
    lower = {
        trunk: sum(getattr(row["with"], trunk) < getattr(row["without"], trunk) for row in rows) for trunk in TRUNKS
    }
    return {
        "schema": 1,
        "date": date.today().isoformat(),
        "device": {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("numpy", "torch", "ultraflash")},
        "settings": {"seconds": seconds, "scenes": list(numbers)},
        "summary": means,
        "lower_with": lower,
        "clips": [{name: asdict(clip) for name, clip in row.items()} for row in rows],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table to stdout and progress to stderr, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of weights of runs (what ships)")
    parser.add_argument("--count", type=int, default=60, help="scenes (60)")
    parser.add_argument("--seconds", type=float, default=5, help="of each clip (5, which makes 81 frames)")
    parser.add_argument("--work", type=Path, help="folder that keeps results, for going on later")
    parser.add_argument("--out", type=Path, help="JSON file for everything")
    settings = parser.parse_args(arguments)
    keep_freed_memory()
    shelf, profile = taken_from(settings.weights)
    numbers, rows = held_out_scenes(settings.count), list[dict[str, Clip]]()
    dtype = choose_precision("auto", CPU)
    with tempfile.TemporaryDirectory(prefix="sr_gain_") as temporary:
        folder = settings.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            kept = folder / f"{_key(settings.weights, settings.seconds)}_{number}.json"
            if not kept.exists():
                clips = measured(number, groups_of(shelf, profile, number, seconds=settings.seconds), dtype)
                kept.write_text(json.dumps({name: asdict(clip) for name, clip in clips.items()}))
            rows.append({name: Clip(**found) for name, found in json.loads(kept.read_text()).items()})
            ratio = rows[-1]["with"].alex / rows[-1]["without"].alex
            print(f"{len(rows)}/{len(numbers)} scene {number}: LPIPS x {ratio:.2f}", file=sys.stderr, flush=True)
    print(table(rows))
    if settings.out:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text(json.dumps(report(numbers, rows, settings.seconds), indent=1) + "\n")
    return 0


def _key(weights: Path | None, seconds: float) -> str:
    folder = weights or built_in()
    parts = [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(b"".join([str(seconds).encode(), *parts])).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
