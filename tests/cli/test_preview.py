"""`upscale --preview`: a page that compares the result with lanczos and predicts the
cost of the whole job, and single frames."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.jobs.clips import make_clip
from ultraflash_cli.main import main
from ultraflash_cli.video.plain import read_plain_frames

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUICK = ("--res", "2x", "--model", "lite", "--threads", "1", "-q")
DRIVER = """
<script>
const first = before.src, was = stage.style.getPropertyValue("--cut");
document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true}));
document.dispatchEvent(new KeyboardEvent("keydown", {key: "]", bubbles: true}));
document.body.dataset.result = JSON.stringify({
  moved: stage.style.getPropertyValue("--cut") !== was,
  changed: before.src !== first,
  names: data.names,
  forecast: $("forecast-box").innerText,
  asked: performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length,
});
</script>
"""


def page_data(page: Path) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def previewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip, its preview and the page."""
    folder = tmp_path_factory.mktemp("preview")
    clip = make_clip(folder / "in.mp4", frames=20)
    assert main(["upscale", str(clip), *QUICK, "--preview", "0.2s@0.4s", "--html"]) == 0
    return folder


def test_a_preview_comes_with_a_page_that_says_what_the_whole_costs(previewed: Path) -> None:
    assert (previewed / "in_2x_preview.mp4").is_file()
    data = page_data(previewed / "in_2x_preview.html")
    frames, forecast, made = data["frames"], data["forecast"], data["made"]
    assert isinstance(frames, list) and isinstance(forecast, dict) and isinstance(made, dict)
    assert [each["number"] for each in frames] == [0, 1, 2, 3, 4]
    assert frames[0]["label"] == "0.40 s", "times are those of the source"
    assert [name for name, _ in forecast["rows"]] == ["time", "size"]
    assert "the 5 frames of this preview" in forecast["basis"]
    assert made["commands"] == {"the whole clip": f"ultraflash upscale {previewed / 'in.mp4'} --res 2x --model lite"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_the_preview_slides_and_asks_for_nothing(previewed: Path, tmp_path: Path) -> None:
    driven = tmp_path / "driven.html"
    driven.write_text((previewed / "in_2x_preview.html").read_text().replace("</body>", DRIVER + "</body>"))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", driven.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found is not None, "the script did not run to its end"
    result = json.loads(found[1].replace("&quot;", '"'))
    assert result["moved"] and result["changed"] and result["asked"] == 0
    assert result["names"] == ["lanczos", "result"]
    assert "The whole job" in result["forecast"] and "about" in result["forecast"]


def test_a_page_is_checked_before_the_work(previewed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = str(previewed / "in.mp4")
    (previewed / "other.html").write_text("mine")
    for arguments, message in (
        (["-o", str(previewed / "other.mp4")], "other.html exists"),
        (["--side-by-side"], "remove --side-by-side"),
        (["-o", str(previewed / "%05d.png")], "needs a video"),
    ):
        assert main(["upscale", clip, *QUICK, "--preview", "0.2s", "--html", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert (previewed / "other.html").read_text() == "mine" and not (previewed / "other.mp4").exists()


def test_a_frame_becomes_two_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, output = make_clip(tmp_path / "in.mp4", frames=12), tmp_path / "new" / "folder"
    command = ["upscale", str(clip), *QUICK, "--preview", "frame@50%", "-o", f"{output}/"]
    assert main([*command, "--json"]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["in_2x_frame.png", "in_2x_frame_lanczos.png"]
    report = json.loads(capsys.readouterr().out)
    assert (report["width"], report["height"]) == (128, 96)
    assert report["time_s"] == pytest.approx(0.24, abs=0.041)
    pictures = [next(iter(read_plain_frames(Path(report[key])))) for key in ("output", "plain_output")]
    assert [picture.shape for picture in pictures] == [(96, 128, 3)] * 2
    apart = np.abs(pictures[0].astype(int) - pictures[1]).mean()
    assert 0.1 < apart < 25, "the same frame, by the model and by lanczos"
    assert main(command) == 2
    assert "exists; use -y to replace it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--html"], "remove --html", id="a page"),
        pytest.param(["-o", "out.mp4"], "use -o FRAME.png", id="a video"),
        pytest.param(["--preview", "frame@200%"], "at most 100%", id="no place"),
    ],
)
def test_what_a_single_frame_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=2)
    assert main(["upscale", str(clip), "-q", "--preview", "frame@0", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
