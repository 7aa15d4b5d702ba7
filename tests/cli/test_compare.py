"""`ultraflash compare`: scores against an original or a source, a page that works, refusals in one line."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ultraflash_cli.jobs.pages import page as pages
from ultraflash_cli.main import main
from ultraflash_cli.metrics import sampled
from ultraflash_cli.metrics.comparison import COMPARED
from ultraflash_cli.metrics.ffmpeg import run_ffmpeg

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "compare.json"
WIDTH, HEIGHT, FRAMES = 256, 192, 4
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def make(path: Path, *, size: str = f"{WIDTH}x{HEIGHT}", frames: int = FRAMES, graph: str = "null") -> Path:
    source = f"testsrc2=size={WIDTH}x{HEIGHT}:rate=25"
    shaped = f"scale={size.replace('x', ':')}:flags=bicubic,{graph}"
    arguments = ["-f", "lavfi", "-i", source, "-frames:v", str(frames), "-vf", shaped]
    run_ffmpeg([*arguments, "-c:v", "libx264", "-crf", "8", "-pix_fmt", "yuv420p", str(path)], what=str(path))
    return path


def sound(path: Path) -> Path:
    run_ffmpeg(["-f", "lavfi", "-i", "sine=duration=0.1", str(path)], what=str(path))
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
        "sound": sound(folder / "sound.wav"),
    }


def compare(*arguments: object) -> int:
    return main(["compare", "--threads", "1", *map(str, arguments), "-q"])


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert compare(*arguments, "--json") == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the metrics that need networks."""
    monkeypatch.setattr(sampled, "find_spec", lambda name: None)
    monkeypatch.setattr(sampled, "missing_packages", lambda: ["cvvdp"])


def test_scores_order_results_as_the_eye_does_and_the_report_keeps_its_schema(
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
    if "st_lpips_alex" in perfect:
        assert perfect["st_lpips_alex"] == pytest.approx(0, abs=1e-6) and worse["st_lpips_alex"] > 0.01
    if "cvvdp" in perfect:
        assert perfect["cvvdp"] == pytest.approx(10, abs=1e-3) and worse["cvvdp"] < 9.5
    series = soft["series"]
    assert isinstance(series, dict) and all(len(values) == FRAMES for values in series.values())
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    for each in (same, soft):
        jsonschema.validate(each, schema)
    assert set(schema["$defs"]["score"]["enum"]) == set(COMPARED), "the schema lists every score"


@pytest.mark.usefixtures("cheap")
def test_what_is_not_installed_is_named_in_one_line_each(
    clips: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(clips["original"]), str(clips["soft"]), "--threads", "1"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == 2
    assert "LPIPS" in lines[0] and "pip install stlpips-pytorch" in lines[0]
    assert "ColorVideoVDP" in lines[1] and "pip install --no-deps cvvdp" in lines[1]


@pytest.mark.usefixtures("cheap")
def test_a_smaller_reference_is_the_source_and_drift_is_seen(
    clips: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    faithful = report(capsys, clips["source"], clips["enlarged"])
    assert (faithful["mode"], faithful["width"], faithful["height"]) == ("source", 128, 96)
    darker = report(capsys, clips["original"], clips["darker"])["means"]
    assert isinstance(darker, dict)
    assert darker["drift_y"] == pytest.approx(-6, abs=0.7)
    assert darker["drift_cb"] == pytest.approx(0, abs=0.3)


@pytest.mark.usefixtures("cheap")
def test_another_coding_of_the_same_colours_is_no_drift(
    clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = "scale=in_color_matrix=bt709:out_color_matrix=bt601:out_range=pc,format=yuv420p"
    pale = "eq=saturation=0.3:contrast=0.8"  # colours that no gamut clips
    tagged = tmp_path / "tagged.mkv"
    recoded = tmp_path / "full_range_bt601.mkv"
    for path, filters, tags in (
        (tagged, pale, ("bt709", "tv")),
        (recoded, f"{pale},{graph}", ("smpte170m", "pc")),
    ):
        arguments = ["-i", str(clips["original"]), "-vf", filters, "-c:v", "ffv1"]
        coded = ["-colorspace", tags[0], "-color_range", tags[1], str(path)]
        run_ffmpeg([*arguments, *coded], what=str(path))
    means = report(capsys, tagged, recoded)["means"]
    assert isinstance(means, dict)
    assert max(abs(means[name]) for name in ("drift_y", "drift_cb", "drift_cr")) < 1.5
    assert means["psnr_y"] > 32


@pytest.mark.usefixtures("cheap")
def test_odd_sizes_are_compared_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, result = tmp_path / "source.mkv", tmp_path / "result.mkv"
    for path, size in ((source, "101x75"), (result, "202x150")):
        picture = ["-f", "lavfi", "-i", f"testsrc=size={size}:rate=25", "-frames:v", "2"]
        run_ffmpeg([*picture, "-pix_fmt", "yuv420p", "-c:v", "ffv1", str(path)], what=str(path))
    found = report(capsys, source, result)
    assert (found["mode"], found["width"], found["height"]) == ("source", 101, 75)


@pytest.mark.parametrize(
    ("names", "code", "message"),
    [
        pytest.param(("original", "short"), 3, "short.mp4 ends after 3 frames", id="other lengths"),
        pytest.param(("original", "wide"), 2, "their shapes differ", id="other shapes"),
        pytest.param(("original", "source"), 2, "the result is smaller than the reference", id="the wrong way round"),
        pytest.param(("original", "missing"), 3, "no such file", id="a missing file"),
        pytest.param(("words", "original"), 3, "words.txt", id="no video"),
        pytest.param(("original", "words"), 3, "words.txt", id="a result that is none"),
        pytest.param(("original", "sound"), 3, "sound.wav", id="sound alone"),
        pytest.param(("folder", "folder"), 3, "compare one clip and its result at a time", id="folders"),
        pytest.param(("original", "images"), 3, "compare reads videos only", id="numbered images"),
        pytest.param(("original", "stdin"), 2, "save it to a file first", id="stdin"),
        pytest.param(("original", "soft", "--threads=0"), 2, "--threads must be between 1 and 1024", id="no threads"),
        pytest.param(
            ("original", "soft", "--html=/proc/a.html"), 7, "choose another location with --html", id="no place"
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    clips: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("no video at all\n" * 40)
    (tmp_path / "00001.png").touch()
    places = {"missing": tmp_path / "missing.mp4", "folder": tmp_path, "images": tmp_path / "%05d.png"}
    known = clips | {"words": words, "stdin": Path("-")} | places
    assert compare(*(known.get(name, name) for name in names)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.usefixtures("cheap")
def test_a_page_is_not_replaced_without_y_and_asks_for_nothing_outside(
    clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "look.html"
    assert compare(clips["original"], clips["soft"], "--html", page) == 0
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:)[a-z]+:", text)
    assert compare(clips["original"], clips["soft"], "--html", page) == 2
    assert "use -y to replace it" in capsys.readouterr().err
    assert page.read_text() == text
    nowhere = tmp_path / "no" / "look.html"
    assert compare(clips["original"], clips["soft"], "--html", nowhere) == 7


@pytest.mark.usefixtures("cheap")
def test_a_page_gets_coarser_rather_than_large(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, coarse = tmp_path / "fine.html", tmp_path / "coarse.html"
    assert compare(clips["original"], clips["soft"], "--html", fine) == 0
    monkeypatch.setattr(pages, "PICTURES_BYTES", 1)
    assert compare(clips["original"], clips["soft"], "--html", coarse) == 0
    assert coarse.stat().st_size < 0.8 * fine.stat().st_size


def test_a_page_never_replaces_a_clip_or_a_folder(
    clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, result = (Path(shutil.copy(clips[name], tmp_path)) for name in ("original", "soft"))
    linked = tmp_path / "link.html"
    linked.symlink_to(original)
    before = original.read_bytes(), result.read_bytes()
    for place in (original, result, linked, tmp_path):
        assert compare(original, result, "--html", place, "-y") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "with --html" in line
    assert (original.read_bytes(), result.read_bytes()) == before


DRIVER = """
<script>
const press = key => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const picked = () => [...$("picks").children].findIndex(b => b.getAttribute("aria-pressed") === "true");
const first = before.src, seen = [picked()];
for (let i = 0; i < PRESSES; i++) press("ArrowRight");
const cutBefore = stage.style.getPropertyValue("--cut");
press("]");
seen.push(picked());
$("curves").children[2].click();
point(2);
press("z");
const reading = $("reading").textContent, column = document.querySelector("main");
column.style.width = "368px";  // a phone's
draw();
const rim = column.getBoundingClientRect().right + 1, sticks = [...column.querySelectorAll("*")].filter(
  e => e.getBoundingClientRect().right > rim && !e.closest(".scroll, .stage, .tip"));
const scrolls = [...column.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth);
document.body.dataset.result = JSON.stringify({
  seen,
  cut: cutBefore,
  closer: stage.classList.contains("close"),
  tip: $("tip").querySelector("img").src.slice(0, 15),
  changed: before.src !== first,
  reading,
  asked: performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length,
  wide: [...sticks, ...scrolls].map(e => e.outerHTML.slice(0, 80)),
  crops: document.querySelectorAll("#crops button").length,
});
</script>
"""


def browse(page: Path, profile: Path, *options: str) -> str:
    """Open a page in headless Chromium and return what it prints."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120).stdout


@pytest.mark.usefixtures("cheap")
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_the_slider_moves_and_the_picture_changes(clips: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    assert compare(clips["original"], clips["soft"], "--html", page) == 0
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
    assert result["reading"].startswith("MS-SSIM, frame 2")
    assert result["tip"] == "data:image/webp" and result["closer"]
    assert result["asked"] == 0 and result["crops"] > 0
    assert result["wide"] == [], "wider than a phone"
    assert pictures[0] != pictures[1], "the slider moved and nothing changed on the screen"
