"""Finding and reading transparency."""

from pathlib import Path

import numpy as np
import pytest

from tests.video.clips import ffmpeg, mean_error
from tests.video.sources import made, read

CLEAR = "color=red:size=64x48:rate=25:duration=0.2,format={0},geq=lum='X*3':cb=128:cr=128:a='Y*5'"


CLEAR_RGB = "color=red:size=64x48:rate=25:duration=0.2,format={0},geq=r='X*3':g='Y':b=50:a='Y*5'"


@pytest.mark.parametrize(
    ("suffix", "pix_fmt", "arguments"),
    [
        (".webm", "yuva420p", "-c:v libvpx-vp9 -lossless 1 -auto-alt-ref 0"),
        (".webm", "yuva420p", "-c:v libvpx -auto-alt-ref 0"),
        (".mkv", "yuva420p", "-c:v ffv1"),
        (".mkv", "yuva422p", "-c:v ffv1"),
        (".mkv", "yuva444p", "-c:v ffv1"),
        (".mov", "yuva444p", "-c:v prores_ks -alpha_bits 8 -pix_fmt yuva444p10le"),
        (".mkv", "rgba", "-c:v ffv1 -pix_fmt bgra"),
        (".mov", "rgba", "-c:v qtrle -pix_fmt argb"),
        (".mov", "rgba", "-c:v png -pix_fmt rgba"),
        (".mov", "rgba", "-c:v png -pix_fmt rgba64be"),
        (".mov", "rgba", "-c:v png -pix_fmt ya8"),
        (".mov", "rgba", "-c:v png -pix_fmt ya16be"),
        (".apng", "rgba", "-pix_fmt rgba"),
        (".png", "rgba", "-frames:v 1"),
        (".webp", "rgba", "-frames:v 1 -c:v libwebp -lossless 1"),
        (".mkv", "rgba", "-c:v ffv1 -pix_fmt gbrap10le -strict -2"),
        (".mkv", "rgba", "-c:v ffv1 -pix_fmt gbrap16le -strict -2"),
    ],
)
def test_transparency_comes_in_the_depth_of_the_picture(
    tmp_path: Path, suffix: str, pix_fmt: str, arguments: str
) -> None:
    path = tmp_path / f"a{suffix}"
    source = (CLEAR_RGB if pix_fmt == "rgba" else CLEAR).format(pix_fmt)
    chosen = [] if "-pix_fmt" in arguments else ["-pix_fmt", pix_fmt]
    ffmpeg("-f", "lavfi", "-i", source, *arguments.split(), *chosen, str(path))
    info, frames, warnings, _ = read(path, alpha=True)
    assert info.has_alpha and not warnings
    assert len(frames) == (1 if "-frames:v 1" in arguments else 5)
    most = 65535 if info.bit_depth > 8 else 255
    for frame in frames:
        assert frame.alpha_hw is not None and frame.alpha_hw.shape == (48, 64)
        assert frame.alpha_hw.dtype == frame.rgb_hwc.dtype
        expected = np.arange(48)[:, None] * 5 / 255 * np.ones((48, 64))
        assert np.abs(frame.alpha_hw / most - expected).max() < 0.006
    if suffix != ".webp":
        plain = read(path)[1]
        assert all(frame.alpha_hw is None for frame in plain)
        assert all(mean_error(a.rgb_hwc, b.rgb_hwc) <= most / 255 for a, b in zip(frames, plain, strict=True))


def test_a_gif_is_transparent_where_it_says_so_and_opaque_else(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    source = "color=red:size=64x48:rate=10:duration=0.3,format=rgba,geq=r=200:g=X:b=0:a='if(lt(X,32),0,255)'"
    ffmpeg("-f", "lavfi", "-i", source, "-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse", str(path))
    info, frames, _, _ = read(path, alpha=True)
    assert info.has_alpha
    for frame in frames:
        assert frame.alpha_hw is not None
        assert (frame.alpha_hw[:, :31] == 0).all() and (frame.alpha_hw[:, 33:] == 255).all()
    ffmpeg(*made(), str(path))
    info, frames, warnings, _ = read(path, alpha=True)
    assert not info.has_alpha and frames[0].alpha_hw is None and not warnings
