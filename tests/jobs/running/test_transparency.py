"""Transparency through a whole run."""

from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from tests.jobs.clips import moving_picture
from tests.jobs.doubler import job, upscale


def test_transparency_is_enlarged_and_kept(tmp_path: Path) -> None:
    source = tmp_path / "in.mov"
    with av.open(source, "w") as container:
        video = container.add_stream("prores_ks", rate=25, options={"profile": "4"})
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = 64, 48, "yuva444p10le"
        for number in range(4):
            rgba = np.dstack([moving_picture(number, width=64, height=48), np.zeros((48, 64), np.uint8)])
            rgba[:, 32:, 3] = 255
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        container.mux(video.encode(None))
    report = upscale(job(source, tmp_path / "out.mov", codec="prores", crf=None))
    with av.open(report.output) as container:
        alphas = [frame.reformat(format="rgba").to_ndarray()[:, :, 3] for frame in container.decode(video=0)]
    assert len(alphas) == 4
    for alpha in alphas:
        assert alpha.shape == (96, 128)
        assert alpha[:, :56].max() <= 8 and alpha[:, 72:].min() >= 247
    assert not any("transparen" in warning for warning in report.warnings)
    flat = upscale(job(source, tmp_path / "flat.mp4"))
    assert any("transparen" in warning for warning in flat.warnings)
