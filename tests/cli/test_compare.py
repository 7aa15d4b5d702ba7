"""`ultraflash compare`: scores against an original or a source, a page that works, refusals in one line."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ultraflash_cli.main import main
from ultraflash_cli.metrics.ffmpeg import run_ffmpeg

WIDTH, HEIGHT, FRAMES = 256, 192, 4
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make(path: Path, *, size: str = f"{WIDTH}x{HEIGHT}", frames: int = FRAMES, graph: str = "null") -> Path:
    source = f"testsrc2=size={WIDTH}x{HEIGHT}:rate=25"
    shaped = f"scale={size.replace('x', ':')}:flags=bicubic,{graph}"
    arguments = ["-f", "lavfi", "-i", source, "-frames:v", str(frames), "-vf", shaped]
    run_ffmpeg([*arguments, "-c:v", "libx264", "-crf", "8", "-pix_fmt", "yuv420p", str(path)], what=str(path))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    small = "scale=128:96:flags=bicubic"
    return {
        "original": make(folder / "original.mp4"),
        "soft": make(folder / "soft.mp4", graph="gblur=sigma=1.5"),
        "darker": make(folder / "darker.mp4", graph="lutyuv=y=val-6"),
        "source": make(folder / "source.mp4", size="128x96"),
        "enlarged": make(folder / "enlarged.mp4", graph=f"{small},scale=256:192:flags=lanczos"),
        "short": make(folder / "short.mp4", frames=3),
        "wide": make(folder / "wide.mp4", size="320x96"),
    }


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert main(["compare", *map(str, arguments), "--json", "-q"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_scores_order_results_as_the_eye_does_and_name_every_model(
    clips: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    same = report(capsys, clips["original"], clips["original"])
    soft = report(capsys, clips["original"], clips["soft"])
    assert (same["mode"], same["frames"], same["width"]) == ("original", FRAMES, WIDTH)
    perfect, worse = same["means"], soft["means"]
    assert isinstance(perfect, dict) and isinstance(worse, dict)
    assert {"vmaf_v0.6.1", "vmaf_v0.6.1neg", "vmaf_v1.0.16_3d0h", "ms_ssim", "xpsnr_y"} <= perfect.keys()
    for name in ("psnr_y", "ssim", "ms_ssim", "xpsnr_y", "vmaf_v0.6.1", "vmaf_v0.6.1neg", "vmaf_v1.0.16_3d0h"):
        assert perfect[name] > worse[name], name
    assert perfect["tdiff"] == 0 < worse["tdiff"]
    series = soft["series"]
    assert isinstance(series, dict) and all(len(values) == FRAMES for values in series.values())


def test_a_smaller_reference_is_the_source_and_drift_is_seen(
    clips: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    faithful = report(capsys, clips["source"], clips["enlarged"])
    assert (faithful["mode"], faithful["width"], faithful["height"]) == ("source", 128, 96)
    darker = report(capsys, clips["original"], clips["darker"])["means"]
    assert isinstance(darker, dict)
    assert darker["drift_y"] == pytest.approx(-6, abs=0.7)
    assert darker["drift_cb"] == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize(
    ("names", "code", "message"),
    [
        pytest.param(("original", "short"), 3, "short.mp4 ends after 3 frames", id="other lengths"),
        pytest.param(("original", "wide"), 2, "they have other shapes", id="other shapes"),
        pytest.param(("original", "source"), 2, "the result is the smaller one", id="the wrong way round"),
        pytest.param(("original", "missing"), 3, "no such file", id="a missing file"),
        pytest.param(("words", "original"), 3, "words.txt", id="no video"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    clips: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, str],
    code: int,
    message: str,
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("no video at all\n" * 40)
    known = clips | {"missing": tmp_path / "missing.mp4", "words": words}
    assert main(["compare", *(str(known[name]) for name in names), "-q"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_page_is_not_replaced_without_y_and_asks_for_nothing_outside(
    clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "look.html"
    assert main(["compare", str(clips["original"]), str(clips["soft"]), "--html", str(page), "-q"]) == 0
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:)[a-z]+:", text)
    assert main(["compare", str(clips["original"]), str(clips["soft"]), "--html", str(page), "-q"]) == 2
    assert "-y replaces it" in capsys.readouterr().err
    assert page.read_text() == text
    nowhere = tmp_path / "no" / "look.html"
    assert main(["compare", str(clips["original"]), str(clips["soft"]), "--html", str(nowhere), "-q"]) == 7


def test_a_page_never_replaces_a_clip_or_a_folder(
    clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, result = (Path(shutil.copy(clips[name], tmp_path)) for name in ("original", "soft"))
    linked = tmp_path / "link.html"
    linked.symlink_to(original)
    before = original.read_bytes(), result.read_bytes()
    for place in (original, result, linked, tmp_path):
        assert main(["compare", str(original), str(result), "--html", str(place), "-y", "-q"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "with --html" in line
    assert (original.read_bytes(), result.read_bytes()) == before


DRIVER = """
<script>
const press = key => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const picked = () => [...$("picks").children].findIndex(b => b.getAttribute("aria-pressed") === "true");
const first = before.src, seen = [picked()];
for (let i = 0; i < PRESSES; i++) press("ArrowRight");
press("]");
seen.push(picked());
$("curves").children[2].click();
document.body.dataset.result = JSON.stringify({
  seen,
  cut: stage.style.getPropertyValue("--cut"),
  changed: before.src !== first,
  reading: $("reading").textContent,
  asked: performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length,
  crops: document.querySelectorAll("#crops figure").length,
});
</script>
"""


def browse(page: Path, profile: Path, *options: str) -> str:
    """Open a page in headless Chromium and return what it prints."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_the_slider_moves_and_the_picture_changes(clips: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    assert main(["compare", str(clips["original"]), str(clips["soft"]), "--html", str(page), "-q"]) == 0
    text = page.read_text()
    pictures: list[bytes] = []
    driven = tmp_path / "driven.html"
    for presses in (0, 15):
        driven.write_text(text.replace("</body>", DRIVER.replace("PRESSES", str(presses)) + "</body>"))
        shot = tmp_path / f"{presses}.png"
        browse(driven, tmp_path / "profile", f"--screenshot={shot}", "--window-size=800,900")
        pictures.append(shot.read_bytes())
    found = re.search(r'data-result="([^"]*)"', browse(driven, tmp_path / "profile", "--dump-dom"))
    assert found is not None, "the script did not run to its end"
    result = json.loads(found[1].replace("&quot;", '"'))
    assert result["cut"] == "80%"
    assert result["seen"][0] == 0 and result["seen"][1] == 1 and result["changed"]
    assert result["reading"].startswith("MS-SSIM")
    assert result["asked"] == 0 and result["crops"] > 0
    assert pictures[0] != pictures[1], "the slider moved and nothing changed on the screen"
