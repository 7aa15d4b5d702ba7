"""The codecs listed for each container are those that FFmpeg can write into it."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ultraflash_cli.errors import UsageError
from ultraflash_cli.host import keep_scheduling
from ultraflash_cli.video.codecs import CODECS, chroma_share
from ultraflash_cli.video.containers import FORMATS, plan_alone
from ultraflash_cli.video.encode import made_spec
from ultraflash_cli.video.encoders import encoder_options, prepare_encoder

CODED = [name for name in CODECS if name not in ("hevc", "y4m")]  # hevc in MP4 is written by other tests


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", CODED)
def test_a_container_that_is_accepted_can_be_written(name: str, suffix: str, tmp_path: Path) -> None:
    try:
        plan_alone(suffix, codec=name, frame_s=Fraction(1, 25))
    except UsageError as refused:
        assert f"{suffix} cannot hold {name} video" in str(refused)
        return
    spec = made_spec(width_px=64, height_px=64, rate=Fraction(25), codec=name, threads=1, suffix=suffix)
    with keep_scheduling(), av.open(tmp_path / f"x{suffix}", "w", format=FORMATS[suffix]) as container:
        stream = container.add_stream(spec.encoder, rate=25, options=encoder_options(spec))
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 64
        prepare_encoder(stream.codec_context, spec)
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert (tmp_path / f"x{suffix}").stat().st_size > 0


def test_a_picture_without_colour_has_no_chroma_to_lose() -> None:
    assert chroma_share("gray") == chroma_share("gray10le") == chroma_share("ya8") == 0
    assert chroma_share("yuv420p") == Fraction(1, 4) and chroma_share("pal8") == chroma_share("rgb24") == 1
