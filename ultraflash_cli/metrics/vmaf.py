"""PSNR, SSIM and VMAF of a clip against its reference, in one pass of libvmaf."""

import json
from collections.abc import Sequence

from ultraflash_cli.errors import InputError
from ultraflash_cli.metrics.ffmpeg import View, scores_of_pairs

__all__ = ["libvmaf_frames"]


def libvmaf_frames(
    output: View, reference: View, *, models: Sequence[str], features: Sequence[str], threads: int = 1
) -> dict[str, list[float]]:
    """Score every pair of frames; return one number per frame for each name of
    ``models`` and of libvmaf's own metrics.

    Raises InputError if a clip cannot be read or the sizes differ.
    """
    wanted = "|".join(rf"version={model}\:name={model}" for model in models)
    named = "|".join(f"name={name}" for name in features)
    settings = f"model='{wanted}':feature='{named}':n_threads={threads}:log_fmt=json:log_path"
    report = scores_of_pairs(output, reference, f"libvmaf={settings}")
    if not report:  # libvmaf gives up on small pictures without an error
        raise InputError(f"{output.path} against {reference.path}: too small for {', '.join((*models, *features))}")
    rows = [frame["metrics"] for frame in json.loads(report)["frames"]]
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}
