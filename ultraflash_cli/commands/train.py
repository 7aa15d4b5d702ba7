"""`ultraflash train`: the recipes, and the steps before and after them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ultraflash_cli.commands.train_run import pairs_of, recipe_command
from ultraflash_cli.console import Console
from ultraflash_cli.errors import UsageError
from ultraflash_cli.help_page import HeadedCommand, HeadedGroup
from ultraflash_cli.options import JsonOption, ThreadsOption, as_path, with_console
from ultraflash_cli.train.recipes import RECIPES

if TYPE_CHECKING:
    from ultraflash_cli.train.encode import Progress

__all__ = ["app"]

_PREVIEW_FRAMES = 17
"""Number of frames per clip in a preview."""

app = typer.Typer(
    cls=HeadedGroup,
    no_args_is_help=True,
    help="Train models: material, recipes, export.",
)


@app.command("list", cls=HeadedCommand)
@with_console(hidden=True)
def list_recipes(console: Console, json: JsonOption = False) -> None:
    """List the recipes."""
    for recipe in RECIPES.values():
        if json:
            console.data({"name": recipe.name, "summary": recipe.summary, "learns_from": recipe.learns_from})
        else:
            console.text(f"{recipe.name:20}  {recipe.summary}")


@app.command("prepare", cls=HeadedCommand)
@with_console(hidden=True)
def prepare_material(
    console: Console,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")],
    manifests: Annotated[
        list[Path] | None,
        typer.Option("--manifest", metavar="FILE", help="JSON with files, licences and splits; repeatable."),
    ] = None,
    with_photos: Annotated[bool, typer.Option("--with-photos", help="Also use the manifests' photos.")] = False,
    photos: Annotated[
        list[str] | None,
        typer.Option("--photos", metavar="DIR=LICENCE", help="Folder of photos and its licence; repeatable."),
    ] = None,
    fonts: Annotated[
        Path | None, typer.Option("--fonts", metavar="DIR", help="Fonts for rendered pages (default: no pages).")
    ] = None,
    texts: Annotated[
        list[Path] | None, typer.Option("--text", metavar="FILE", help="Text to fill the pages with; repeatable.")
    ] = None,
    scenes: Annotated[int, typer.Option("--scenes", metavar="N", help="Number of rendered scenes, with captions.")] = 0,
    scene_sizes: Annotated[
        list[str] | None,
        typer.Option("--scene-size", metavar="WxH", help="Size of the scenes (default: 416x240); repeat to alternate."),
    ] = None,
    scene_frames: Annotated[int, typer.Option("--scene-frames", metavar="N", help="Frames per scene.")] = 20,
    scene_window: Annotated[
        int | None, typer.Option("--scene-window", metavar="PX", help="Keep a square of this size of each scene.")
    ] = None,
) -> None:
    """Prepare material: clips, photos, pages, rendered scenes."""
    from ultraflash_cli.train.prepare import PhotoSource, PrepareJob, prepare

    sources = [PhotoSource(folder=Path(folder), licence=licence) for folder, licence in pairs_of("--photos", photos)]
    job = PrepareJob(
        manifests=tuple(manifests or []),
        with_photos=with_photos,
        photos=tuple(sources),
        fonts=fonts,
        texts=tuple(texts or []),
        scenes=scenes,
        scene_sizes=tuple(_size("--scene-size", size) for size in scene_sizes or ["416x240"]),
        scene_frames=scene_frames,
        scene_window=scene_window,
    )
    entries = prepare(job, out, on_entry=lambda entry: console.detail(f"{entry.kind:8} {entry.name}"))
    console.info(f"{len(entries)} pieces of material in {out}")


@app.command("make-pairs", cls=HeadedCommand)
@with_console(hidden=True)
def make_degraded_pairs(
    console: Console,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Prepared material.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder; existing pairs are kept.")],
    count: Annotated[int, typer.Option("--count", metavar="N", help="Number of pairs.")],
    scale: Annotated[
        Literal["2", "3"], typer.Option("--scale", help="Downscale factor of the low-resolution copy.")
    ] = "2",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the degradations.")] = 1,
) -> None:
    """Make degraded training pairs once and keep them."""
    from ultraflash_cli.train.pairs import MakePairsJob, make_pairs
    from ultraflash_cli.train.recipes.perceptual import kept_pairs

    if count < 1:
        raise UsageError(f"--count must be at least 1, got {count}")
    job = MakePairsJob(data=data, out=out, count=count, scale=int(scale), pairs=kept_pairs(int(scale)), seed=seed)
    make_pairs(job, on_pair=lambda done: console.detail(f"{done} of {count} pairs"))
    console.info(f"{count} pairs at x{scale} in {out}")


@app.command("blend", cls=HeadedCommand)
@with_console(hidden=True)
def blend_weights(
    console: Console,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs of one recipe.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder, ready to export.")],
    grey: Annotated[bool, typer.Option("--grey", help="Let a pixel path add luma only.")] = False,
) -> None:
    """Average the EMA weights of several runs."""
    from ultraflash_cli.train.blend import blend_runs

    record = blend_runs(runs, out, grey=grey)
    console.info(f"{out}: the mean of {len(runs)} runs of {record.recipe}, {record.steps} steps in all")


@app.command("report", cls=HeadedCommand)
@with_console(hidden=True)
def report_runs(
    console: Console,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of training runs.")],
) -> None:
    """Write the report of a run: settings, curves, samples."""
    from ultraflash_cli.train.report import write_report

    for run in runs:
        console.text(str(write_report(run)))


@app.command("export", cls=HeadedCommand)
@with_console(hidden=True)
def export_weights(
    console: Console,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder; its name becomes the model's.")],
    listing: Annotated[Path, typer.Option("--list", metavar="FILE", help="List of weights to update.")],
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME=VALUE", help="Measurement for the metadata; repeatable."),
    ] = None,
) -> None:
    """Export the EMA weights of a run, one file per network."""
    from ultraflash_cli.train.export import ExportJob, export

    job = ExportJob(run=run, folder=out, listing=listing, metrics=tuple(pairs_of("--metric", metrics)))
    for entry in export(job):
        console.text(f"{entry.name:24}  {entry.bytes:10}  {entry.sha256:.12}")


@app.command("preview-scenes", cls=HeadedCommand)
@with_console(hidden=True)
def preview_scenes(
    console: Console,
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="PNG file to write.")],
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Number of the first scene.")] = 0,
    count: Annotated[int, typer.Option("--count", metavar="N", help="Number of scenes.")] = 12,
) -> None:
    """Render some training scenes and print their captions."""
    from ultraflash_cli.train.captions import caption
    from ultraflash_cli.train.drawing import contact_sheet
    from ultraflash_cli.train.scenes import random_scene
    from ultraflash_cli.video.stills import write_png

    if count < 1:
        raise UsageError(f"--count must be at least 1, got {count}")
    scenes = [random_scene(number) for number in range(seed, seed + count)]
    for number, scene in enumerate(scenes, seed):
        console.text(f"{number:6}  {caption(scene)}")
    write_png(out, contact_sheet(scenes))


@app.command("encode-scenes", cls=HeadedCommand)
@with_console(hidden=True)
def encode_drawn_scenes(
    console: Console,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder; existing files are kept.")],
    start_from: Annotated[
        Path, typer.Option("--start-from", metavar="FILE", help="EMA weights of a run with an encoder.")
    ],
    count: Annotated[int, typer.Option("--count", metavar="N", help="Number of scenes.")],
    first: Annotated[int, typer.Option("--first", metavar="N", help="Number of the first scene.")] = 0,
    latents: Annotated[int, typer.Option("--latents", metavar="N", help="Latent frames per scene.")] = 6,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the scenes.")] = 1,
    toy: Annotated[bool, typer.Option("--toy", help="Use the recipes' toy sizes.")] = False,
    scale: Annotated[int, typer.Option("--scale", metavar="N", help="Scale relative to the generator's size.")] = 1,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option("--precision", help="Precision of the encoder.")
    ] = "fp32",
    threads: ThreadsOption = None,
) -> None:
    """Render scenes and store them as latents."""
    import torch

    from ultraflash_cli.engine.profiles import LITE
    from ultraflash_cli.host import keep_freed_memory, usable_cores
    from ultraflash_cli.train.latents import EncodeScenesJob, encode_scenes
    from ultraflash_cli.train.roles import TOY
    from ultraflash_cli.weights.load import read_tensors

    profile = TOY if toy else LITE
    job = EncodeScenesJob(
        out=out,
        weights=read_tensors(start_from),
        count=count,
        first=first,
        latents=latents,
        size=(scale * profile.base_size[0], scale * profile.base_size[1]),
        seed=seed,
        profile=profile,
        precision=precision,
    )
    keep_freed_memory()
    torch.set_num_threads(threads or usable_cores())
    encode_scenes(job, on_file=lambda done: console.info(f"{done} of {count} scenes"))


@app.command("answer-scenes", cls=HeadedCommand)
@with_console(hidden=True)
def answer_drawn_scenes(
    console: Console,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of encoded scenes.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder; existing files are kept.")],
    start_from: Annotated[
        list[Path],
        typer.Option("--start-from", metavar="FILE", help="EMA weights of a run of `generator`; repeatable."),
    ],
    level: Annotated[
        float,
        typer.Option("--level", metavar="SHARE", help="Noise level to start from; 1: pure noise."),
    ] = 1.0,
    scale: Annotated[
        Literal["1", "2", "3"],
        typer.Option("--scale", help="2, 3: also upsample and refine, with the weights of both stages."),
    ] = "1",
    latents: Annotated[
        int | None,
        typer.Option(
            "--latents", metavar="N", min=1, help="Latent frames per scene; default: all.", show_default=False
        ),
    ] = None,
    toy: Annotated[bool, typer.Option("--toy", help="Use the recipes' toy sizes.")] = False,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option("--precision", help="Precision of the generator.")
    ] = "fp32",
    threads: ThreadsOption = None,
) -> None:
    """Generate clips from captions and keep them."""
    import torch

    from ultraflash_cli.engine.profiles import LITE
    from ultraflash_cli.host import keep_freed_memory, usable_cores
    from ultraflash_cli.train.recipes.tv2v_flow_matching import of_scales
    from ultraflash_cli.train.roles import TOY, TOY_WORDS, CascadeRoles
    from ultraflash_cli.train.scene_pairs import AnswerScenesJob, answer_scenes
    from ultraflash_cli.weights.load import read_tensors

    if not 0 < level <= 1:
        raise UsageError(f"--level must be above 0 and at most 1, got {level:g}")
    factor, parts = int(scale), ["generator", "text_encoder"]
    parts += ["upsamplers", "sr_dit"] if factor > 1 else []
    profile, words = (TOY, TOY_WORDS) if toy else (LITE, LITE.prompt_encoder)
    roles = CascadeRoles(profile, tuple(parts), scales=(factor,), words=words)
    given = {name: value for path in start_from for name, value in read_tensors(path).items()}
    stages = "`generator`" if factor == 1 else "`generator`, `latent_upsampler` and `causal_dmd`"
    roles.load(of_scales(given, (factor,)), hint=f"average.safetensors of a run of {stages}")
    keep_freed_memory()
    torch.set_num_threads(threads or usable_cores())
    job = AnswerScenesJob(scenes=data, out=out, roles=roles, level=level, scale=factor, latents=latents)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        answer_scenes(job, on_file=lambda done: console.info(f"{done} scenes"))


@app.command("encode", cls=HeadedCommand)
@with_console(hidden=True)
def encode_captioned_clips(
    console: Console,
    clips: Annotated[Path, typer.Argument(metavar="CLIPS", help="Folder of captioned clips.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder; an interrupted run resumes.")],
    model: Annotated[
        str, typer.Option("--profile", metavar="NAME|FILE", help="Model whose networks encode.")
    ] = "ultraflash",
    scale: Annotated[Literal["2", "3"], typer.Option("--scale", help="Downscale factor of degraded copies.")] = "2",
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="TEXT", help="Licence of clips that state none.")
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="WxH", help="Size of clips; repeat for several shapes."),
    ] = None,
    latents: Annotated[
        list[int] | None,
        typer.Option("--latents", metavar="N", help="Latent frames per sample; repeatable."),
    ] = None,
    conditions: Annotated[int, typer.Option("--conditions", metavar="K", help="Degraded copies of each sample.")] = 2,
    aigc: Annotated[
        float, typer.Option("--aigc", metavar="SHARE", help="Share of copies degraded to look like generated video.")
    ] = 0.6,
    regenerate: Annotated[
        float, typer.Option("--regenerate", metavar="SHARE", help="Share of clips that the generator redraws.")
    ] = 0.0,
    fps: Annotated[int, typer.Option("--fps", metavar="N", help="Frames per second.")] = 16,
    shard_clips: Annotated[int, typer.Option("--shard-clips", metavar="N", help="Clips per shard.")] = 100,
    part: Annotated[str, typer.Option("--part", metavar="I/N", help="This machine's share of the shards.")] = "1/1",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of degradations.")] = 1,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where the networks run.")
    ] = "auto",
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option("--precision", help="Precision of the networks.")
    ] = "fp32",
    threads: ThreadsOption = None,
) -> None:
    """Encode captioned clips into shards for training."""
    import torch

    from ultraflash_cli.host import keep_freed_memory, usable_cores
    from ultraflash_cli.jobs.weights.pull import open_store
    from ultraflash_cli.models.shelf import Shelf
    from ultraflash_cli.train.captioned import captioned_clips
    from ultraflash_cli.train.encode import EncodeJob, encode
    from ultraflash_cli.train.encoders import Encoders
    from ultraflash_cli.train.settings import find_profile

    share = re.fullmatch(r"(\d+)/(\d+)", part)
    if share is None or not 1 <= int(share[1]) <= int(share[2]):
        raise UsageError(f"--part must be I/N with I from 1 to N, got {part!r}")
    profile = find_profile(model)
    height, width = (int(scale) * side for side in profile.base_size)
    shapes = [_size("--size", size) for size in sizes or []]
    job = EncodeJob(
        clips=tuple(captioned_clips(clips, licence=licence)),
        out=out,
        scale=int(scale),
        sizes=tuple(shapes or [(height, width), (width, height)]),
        latents=tuple(latents or [6 * profile.group_latents, 2 * profile.group_latents]),
        conditions=conditions,
        aigc_share=aigc,
        regenerated_share=regenerate,
        fps=fps,
        shard_clips=shard_clips,
        seed=seed,
        share=(int(share[1]) - 1, int(share[2])),
    )
    keep_freed_memory()
    torch.set_num_threads(threads or usable_cores())
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    encoders = Encoders(
        Shelf(open_store(console.settings).root),
        profile,
        device=torch.device("cuda" if on_gpu else "cpu"),
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        regenerates=regenerate > 0,
        warn=console.warning,
    )

    def told(done: "Progress") -> None:
        console.detail(f"{done.shard.name}: {done.clips} clips, {done.samples} samples")
        if done.skipped:
            console.warning(f"{done.skipped}; skipped")

    encode(job, encoders, on_clip=told)
    console.info(f"{len(job.clips)} clips encoded in {out}")


@app.command("preview-degradation", cls=HeadedCommand)
@with_console(hidden=True)
def preview_degradation(
    console: Console,
    clip: Annotated[Path, typer.Argument(metavar="CLIP", parser=as_path, help="A video file.")],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="PNG file to write.")],
    scale: Annotated[
        Literal["2", "3"], typer.Option("--scale", help="Downscale factor of the low-resolution copy.")
    ] = "2",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the degradations.")] = 0,
    count: Annotated[int, typer.Option("--count", metavar="N", help="Number of degradations.")] = 3,
    json: JsonOption = False,
) -> None:
    """Show a clip degraded like generated video."""
    from itertools import islice

    import numpy as np

    from ultraflash_cli.train.degradation import AigcConfig, contact_sheet
    from ultraflash_cli.video.decode import read_frames
    from ultraflash_cli.video.probe import probe
    from ultraflash_cli.video.stills import write_png

    if count < 1:
        raise UsageError(f"--count must be at least 1, got {count}")
    frames = [frame.rgb_hwc for frame in islice(read_frames(probe(clip), warn=console.warning), _PREVIEW_FRAMES)]
    shown = np.stack([(frame >> (8 * frame.dtype.itemsize - 8)).astype(np.uint8) for frame in frames])
    times = 2 * int(scale)
    shown = shown[:, : shown.shape[1] // times * times, : shown.shape[2] // times * times]
    sheet, logs = contact_sheet(shown, int(scale), AigcConfig(), seed=seed, count=count)
    write_png(out, sheet)
    for number, log in enumerate(logs):
        if json:
            console.data({"column": number, "operators": log})
        else:
            console.text(f"{number:3}  {', '.join(entry['operator'] for entry in log)}")


def _size(option: str, value: str) -> tuple[int, int]:
    """Return height and width."""
    sides = re.fullmatch(r"(\d+)x(\d+)", value)
    if sides is None or min(int(side) for side in sides.groups()) < 16:
        raise UsageError(f"{option} must be WIDTHxHEIGHT, at least 16 pixels each, got {value!r}")
    return int(sides[2]), int(sides[1])


_run = typer.Typer(cls=HeadedGroup, no_args_is_help=True, help="Run a recipe.")
app.add_typer(_run, name="run")
for _recipe in RECIPES.values():
    _run.command(_recipe.name, cls=HeadedCommand, help=_recipe.summary)(recipe_command(_recipe))
    app.command(_recipe.name, cls=HeadedCommand, hidden=True)(recipe_command(_recipe, old=True))
