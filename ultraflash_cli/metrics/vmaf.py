"""PSNR, SSIM and VMAF of a clip against its reference, all from one pass of libvmaf."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultraflash_cli.errors import InputError
from ultraflash_cli.metrics.ffmpeg import View, paired, run_ffmpeg

__all__ = ["LibvmafScores", "libvmaf_frames", "libvmaf_scores"]

MODELS = {"vmaf": "vmaf_v0.6.1", "vmaf_neg": "vmaf_v0.6.1neg"}
FEATURES = ("psnr", "float_ssim")


@dataclass(frozen=True, kw_only=True)
class LibvmafScores:
    """Means over the frames of one clip, on 8-bit 4:2:0 pictures."""

    psnr_y: float
    """Of the luma, in dB; equal pictures score 60."""
    ssim: float
    """Of the luma, 0..1."""
    vmaf: float
    """0..100. Sharpening raises it: read it together with ``vmaf_neg``."""
    vmaf_neg: float
    """0..100, VMAF without the reward for enhancement."""
    frames: int
    """How many pairs were scored."""


def libvmaf_scores(output: Path, reference: Path, *, threads: int = 1) -> LibvmafScores:
    """Compare two clips of one size frame by frame, in the order of their frames, whatever their timestamps.

    Raises InputError if one of them cannot be read or the sizes differ.
    """
    for path in (output, reference):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    with tempfile.TemporaryDirectory(prefix="vmaf_") as folder:
        arguments = ["-i", str(output.resolve()), "-i", str(reference.resolve())]
        graph = filter_graph(View(output), View(reference), "scores.json", threads)
        arguments += ["-lavfi", graph, "-fps_mode", "passthrough", "-f", "null", "-"]
        run_ffmpeg(arguments, what=f"{output} against {reference}", folder=Path(folder))
        report = json.loads((Path(folder) / "scores.json").read_text())
    means = {name: float(values["mean"]) for name, values in report["pooled_metrics"].items()}
    return LibvmafScores(
        psnr_y=means["psnr_y"],
        ssim=means["float_ssim"],
        vmaf=means["vmaf"],
        vmaf_neg=means["vmaf_neg"],
        frames=len(report["frames"]),
    )


def libvmaf_frames(
    output: View,
    reference: View,
    *,
    models: Mapping[str, str],
    features: Sequence[str],
    threads: int = 1,
) -> dict[str, list[float]]:
    """Score every pair of frames; a name of ``models`` or of libvmaf's own metrics to one number per frame.

    Raises InputError if one of them cannot be read or the sizes differ.
    """
    with tempfile.TemporaryDirectory(prefix="vmaf_") as folder:
        graph = filter_graph(output, reference, "scores.json", threads, models=models, features=features)
        arguments = ["-i", str(output.path.resolve()), "-i", str(reference.path.resolve()), "-lavfi", graph]
        run_ffmpeg(
            [*arguments, "-fps_mode", "passthrough", "-f", "null", "-"],
            what=f"{output.path} against {reference.path}",
            folder=Path(folder),
        )
        log = Path(folder) / "scores.json"
        if not log.exists():  # libvmaf gives up on small pictures without an error
            raise InputError(f"{output.path} against {reference.path}: too small for {', '.join((*models, *features))}")
        report = json.loads(log.read_text())
    rows = [frame["metrics"] for frame in report["frames"]]
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}


def filter_graph(
    output: View,
    reference: View,
    log: str,
    threads: int,
    *,
    models: Mapping[str, str] = MODELS,
    features: Sequence[str] = FEATURES,
) -> str:
    """Return the graph that pairs frames by number and writes libvmaf's report to ``log``."""
    wanted = "|".join(rf"version={version}\:name={name}" for name, version in models.items())
    named = "|".join(f"name={name}" for name in features)
    settings = f"model='{wanted}':feature='{named}':n_threads={threads}:log_fmt=json:log_path={log}"
    return f"{paired(output, reference)};[out][ref]libvmaf={settings}"
