"""A clip of flat colours is distinguished from a filmed one, and the published model
warns about it once."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from ultraflash_cli.jobs.planning.upscale import UpscaleJob
from ultraflash_cli.jobs.running.prepare import prepare
from ultraflash_cli.video.flatness import first_lumas, is_flat_coloured
from ultraflash_cli.video.probe import probe

HEIGHT, WIDTH = 96, 128
Frame = NDArray[np.uint8]
Picture = Callable[[int], Frame]
"""Function from a frame's number to the frame."""


def drawn(moved: int) -> Frame:
    """Return a game-like picture: four flat colours, hard edges."""
    frame = np.full((HEIGHT, WIDTH, 3), (90, 160, 220), dtype=np.uint8)
    frame[61:] = (30, 70, 30)
    frame[30:61, 21 + moved : 45 + moved] = (160, 20, 20)
    frame[9:22, 83:119] = (250, 250, 250)
    return frame


def filmed(moved: int) -> Frame:
    """Return a picture of gradients and grain, in which no two blocks are alike."""
    noise = np.random.default_rng(3).normal(0, 6, (HEIGHT, WIDTH, 3))
    slope = np.linspace(40, 200, WIDTH)[None, :, None] + np.linspace(0, 40, HEIGHT)[:, None, None]
    return np.clip(np.roll(slope + noise, moved, axis=1), 0, 255).astype(np.uint8)


def clip(path: Path, picture: Picture) -> Path:
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "12", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(4):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("picture", "flat"), [pytest.param(drawn, True, id="drawn"), pytest.param(filmed, False, id="filmed")]
)
def test_flat_colours_are_identified_by_tones_and_edges(tmp_path: Path, picture: Picture, flat: bool) -> None:
    assert is_flat_coloured(first_lumas(probe(clip(tmp_path / "clip.mp4", picture)), 3)) is flat


def test_a_dark_filmed_clip_is_not_flat_and_nothing_is_no_clip() -> None:
    night = [np.random.default_rng(1).integers(2, 6, (HEIGHT, WIDTH)).astype(np.uint8)]
    night[0][40:48, 40:60] = 200
    assert not is_flat_coloured(night)
    assert not is_flat_coloured([])


@pytest.mark.parametrize(
    ("model", "picture", "count"), [("ultraflash", drawn, 1), ("ultraflash", filmed, 0), ("lite", drawn, 0)]
)
def test_only_the_model_that_invents_texture_warns_and_once(
    tmp_path: Path, model: str, picture: Picture, count: int
) -> None:
    job = UpscaleJob(source=clip(tmp_path / "clip.mp4", picture), output=tmp_path / "out.mp4", model=model, res="2x")
    said = [message for message in prepare(job).warnings if "invents texture" in message]
    assert len(said) == count
    assert all("--model lite does not" in message for message in said)


def test_the_shared_screens_and_games_are_flat_and_films_are_not(shared_data: Path) -> None:
    flat = {
        path.name
        for folder in ("eval", "train/video")
        for path in sorted((shared_data / folder).glob("*.mp4"))
        if path.name.startswith(("e", "game", "screen", "people", "ai1k_s"))
        and is_flat_coloured(first_lumas(probe(path), 1))
    }
    games = {"game_city.mp4", "game_forest.mp4", "game_mars.mp4"}
    screens = {"screen_article_dark.mp4", "screen_code_dark.mp4", "screen_code_light.mp4"}
    assert flat == {"e4_text_article.mp4", *games, *screens}
