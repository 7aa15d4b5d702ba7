"""XPSNR: PSNR weighted by the visibility of errors (C. R. Helmrich et al., *XPSNR*,
ICASSP 2020), by ffmpeg's filter."""

import math
import re

from ultraflash_cli.metrics.ffmpeg import View, scores_of_pairs

__all__ = ["BEST_DB", "xpsnr_frames"]

BEST_DB = 100.0
"""Score of equal frames, for which the filter prints inf."""

_ROW = re.compile(r"XPSNR y: *(\S+)")


def xpsnr_frames(output: View, reference: View) -> list[float]:
    """Return the XPSNR of luma in dB, one number per frame.

    Raises InputError if a clip cannot be read or the sizes differ.
    """
    rows = _ROW.findall(scores_of_pairs(output, reference, "xpsnr=stats_file"))
    values = [float(row) for row in rows if not row.startswith("0.0000 ")]
    return [BEST_DB if math.isinf(value) else value for value in values]
