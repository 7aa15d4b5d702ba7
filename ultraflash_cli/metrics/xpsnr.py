"""XPSNR: PSNR weighted by where errors are seen (C. R. Helmrich et al., *XPSNR*, ICASSP 2020), by ffmpeg's filter."""

import math
import re
import tempfile
from pathlib import Path

from ultraflash_cli.metrics.ffmpeg import View, paired, run_ffmpeg

__all__ = ["BEST_DB", "xpsnr_frames"]

BEST_DB = 100.0
"""Score of equal frames, for which the filter prints inf."""

_ROW = re.compile(r"XPSNR y: *(\S+)")


def xpsnr_frames(output: View, reference: View) -> list[float]:
    """Return the XPSNR of luma in dB, one number per frame.

    Raises InputError if one of them cannot be read or the sizes differ.
    """
    with tempfile.TemporaryDirectory(prefix="xpsnr_") as folder:
        graph = f"{paired(output, reference)};[out][ref]xpsnr=stats_file=scores.log"
        arguments = ["-i", str(output.path.resolve()), "-i", str(reference.path.resolve()), "-lavfi", graph]
        run_ffmpeg(
            [*arguments, "-fps_mode", "passthrough", "-f", "null", "-"],
            what=f"{output.path} against {reference.path}",
            folder=Path(folder),
        )
        rows = _ROW.findall((Path(folder) / "scores.log").read_text())
    values = [float(row) for row in rows if not row.startswith("0.0000 ")]
    return [BEST_DB if math.isinf(value) else value for value in values]
