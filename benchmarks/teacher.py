"""Compare the one-step block-sparse SR transformer with its many-step dense teacher, on
captions of held-out rendered scenes, from the generator's latents to frames at 1K.

    python -m benchmarks.teacher --count 4                # the runs kept in benchmarks/training/lite2
    python -m benchmarks.teacher --weights FOLDER --steps 1 4 8

FOLDER holds the files of the runs, as for `benchmarks.cascade`, and the teacher in
FOLDER/teacher. The exit status is 1 if the student's LPIPS exceeds that of the teacher
with the most steps by more than 10 %.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.cascade import held_out_scenes
from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, LATENT_PX
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.host import keep_freed_memory
from ultraflash_cli.train.flows import normal, one_step
from ultraflash_cli.train.latents import draw_scene, scene_caption
from ultraflash_cli.train.loop import generator_of
from ultraflash_cli.train.recipes import generator, tv2v_flow_matching
from ultraflash_cli.train.recipes.tv2v_flow_matching import Tv2vConfig
from ultraflash_cli.train.roles import CascadeRoles
from ultraflash_cli.train.validation import Scores, mean_scores, scores_of
from ultraflash_cli.weights.load import read_tensors

__all__ = ["compared", "load", "main"]

KEPT = Path(__file__).parent / "training" / "lite2"
SCALE = 2
SHIFT = 5.0
"""Of the teacher's noise levels, as in its recipe."""
ALLOWED = 1.1
PARTS = ("generator", "text_encoder", "upsamplers", "sr_dit", "decoder")

Refine = Callable[[CascadeRoles, Tensor, Tensor, torch.Generator], Tensor]


def load(folder: Path, config: Tv2vConfig) -> tuple[CascadeRoles, CascadeRoles]:
    """Return the cascade, and the teacher alone. Raises WeightsError for missing or unsuitable files."""
    pair: list[CascadeRoles] = []
    for place, own, parts in (
        (folder, config.profile, PARTS),
        (folder / "teacher", config.dense_profile, ("sr_dit",)),
    ):
        files = sorted(place.glob("*.safetensors"))
        if not files:
            raise WeightsError(f"{place}: no safetensors files")
        roles = CascadeRoles(own, parts, scales=(SCALE,), words=config.words)
        tensors = {name: x.float() for path in files for name, x in read_tensors(path).items()}
        roles.load({name: x for name, x in tensors.items() if not name.startswith("upsamplers.3.")})
        pair.append(roles.eval().requires_grad_(False))
    return pair[0], pair[1]


def _student(roles: CascadeRoles, cond: Tensor, context: Tensor, rng: torch.Generator) -> Tensor:
    return one_step(roles.sr_dit, cond, context, rng)


def _in_steps(steps: int) -> Refine:
    def refine(roles: CascadeRoles, cond: Tensor, context: Tensor, rng: torch.Generator) -> Tensor:
        return tv2v_flow_matching.sample(roles.sr_dit, normal(cond, rng), cond, context, steps=steps, shift=SHIFT)

    return refine


@torch.inference_mode()
def compared(
    cascade: CascadeRoles,
    teacher: CascadeRoles,
    numbers: Sequence[int],
    *,
    latents: int,
    steps: Sequence[int],
    size: tuple[int, int],
) -> dict[str, Scores]:
    """Return the scores of the student and of the teacher with each number of steps;
    ``size`` is the base size in pixels."""
    height, width = size
    arms: dict[str, tuple[CascadeRoles, Refine]] = {"student, one step, sparse": (cascade, _student)}
    arms |= {f"teacher, {count} step{'s' * (count > 1)}, dense": (teacher, _in_steps(count)) for count in steps}
    found: dict[str, list[Scores]] = {name: [] for name in arms}
    for number in numbers:
        captions = (scene_caption(0, number, np.random.default_rng(number)),)
        shape = torch.Size(
            (1, cascade.decoder.config.latent_channels, latents, height // LATENT_PX, width // LATENT_PX)
        )
        low = generator.roll_out(cascade, captions, shape, generator_of(0, "clip", number))
        cond, context = cascade.upsample(low, SCALE), cascade.context(captions)
        first = FRAMES_PER_LATENT - 1  # the first frame of a stream comes four times
        truth = draw_scene(0, number, latents, (SCALE * height, SCALE * width))[None, :, first:]
        for name, (roles, refine) in arms.items():
            clean = refine(roles, cond, context, generator_of(0, "refine", number)).float()
            found[name].append(scores_of(cascade.decode(clean)[:, :, first:], truth))
    return {name: mean_scores(scores) for name, scores in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return 1 if the student is too far behind the teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=KEPT, help="folder of the runs (benchmarks/training/lite2)")
    parser.add_argument("--count", type=int, default=4, help="scenes (4)")
    parser.add_argument("--latents", type=int, default=6, help="of each clip, four frames each (6)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4], help="of the teacher (1 4)")
    settings = parser.parse_args(arguments)
    keep_freed_memory()
    cascade, teacher = load(settings.weights, tv2v_flow_matching.configure(steps=1, seed=0))
    rows = compared(
        cascade,
        teacher,
        held_out_scenes(settings.count),
        latents=settings.latents,
        steps=sorted(settings.steps),
        size=LITE.base_size,
    )
    print("| | PSNR, dB | LPIPS | edges | change |\n|---|---:|---:|---:|---:|")
    for name, scores in rows.items():
        lpips = "-" if scores.lpips is None else f"{scores.lpips:.4f}"
        print(f"| {name} | {scores.psnr:.2f} | {lpips} | {scores.edges:.2f} | {scores.change:.2f} |")
    student, *_, most = rows.values()
    if student.lpips is None or most.lpips is None:
        return 0
    print(f"\nLPIPS of the student relative to the teacher with the most steps: {student.lpips / most.lpips:.2f}")
    return int(student.lpips > ALLOWED * most.lpips)


if __name__ == "__main__":
    sys.exit(main())
