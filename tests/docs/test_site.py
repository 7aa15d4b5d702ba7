"""The documentation site: it builds without warnings, its links and pictures exist, and
it is readable on phones and desktops."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.docs.site import ABOUT, LLMS, ROOT, llms, nav_pages, read_config, source_of

pytest.importorskip("yaml", reason="PyYAML is not installed")

SEEN = ("index.html", "guides/first-clip.html", "troubleshooting.html", "reference/json.html")
WIDTHS_PX = (400, 1200)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("the extra [docs] is not installed: mkdocs-material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", "packaging/mkdocs.yml", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Links(HTMLParser):
    """Collects the links of a page and the targets in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


# The sources


def test_every_page_has_its_place_in_the_navigation_and_in_llms_txt() -> None:
    listed = [page for _, _, page in nav_pages(read_config()["nav"])]
    assert len(listed) == len(set(listed))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert there <= set(listed), f"not in packaging/mkdocs.yml: {sorted(there - set(listed))}"
    assert all(source_of(page).is_file() for page in listed)
    assert set(listed) <= ABOUT.keys()
    assert LLMS.read_text(encoding="utf-8") == llms(), "run `python -m tests.docs.site`"


def test_every_link_of_llms_txt_leads_to_a_file() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", LLMS.read_text(encoding="utf-8"))
    assert len(targets) > 20
    assert not [target for target in targets if not (LLMS.parent / target).is_file()]


def test_no_line_of_a_paragraph_is_taken_for_a_list() -> None:
    found: list[str] = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), path.read_text("utf-8"), flags=re.DOTALL)
        lines = text.splitlines()
        for number, (before, line) in enumerate(pairwise(lines), 2):
            # A number and a period, or a sign, at the start of a line that continues a
            # sentence.
            if re.match(r"\s*(?:\d+[.)]|[-+]) \S", line) and re.match(r"\s*[A-Za-z`(*\[]", before):
                item = re.match(r"\s*(?:\*|\d+\.) ", before)
                in_list = any(re.match(r"\s*\d+\. ", earlier) for earlier in lines[max(number - 9, 0) : number - 1])
                if not item and not in_list:
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line}")
    assert not found, "\n".join(found)


# The site


def test_every_link_and_picture_of_the_site_is_there(site: Path) -> None:
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 25
    broken: list[str] = []
    for path, page in pages.items():
        for target in page.targets:
            place = urlsplit(target)
            if place.scheme or place.netloc:
                continue
            where = (path.parent / unquote(place.path)).resolve() if place.path else path
            if not where.is_file():
                broken.append(f"{path.relative_to(site)} -> {target}")
            elif place.fragment and where in pages and unquote(place.fragment) not in pages[where].anchors:
                broken.append(f"{path.relative_to(site)} -> {target}: no such anchor")
    assert not broken, "\n".join(broken)


def test_the_site_asks_nobody_else_for_anything(site: Path) -> None:
    for path in site.rglob("*.html"):
        for target in re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', path.read_text(encoding="utf-8")):
            pytest.fail(f"{path.relative_to(site)} loads {target}")


def test_programs_find_the_markdown_of_every_page(site: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text(encoding="utf-8"))
    assert not [target for target in targets if not (site / target).is_file()]


@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_pages_fit_their_window(site: Path, tmp_path: Path, width_px: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/user"]
    # One window for all pages: each in a frame of the width, asked how wide it would like to be.
    frames = "".join(f'<iframe src="{name}" width={width_px} height=900></iframe>' for name in SEEN)
    asked = (
        "<script>onload = () => { document.title = [...document.querySelectorAll('iframe')].map(frame =>"
        " frame.contentDocument.documentElement.scrollWidth).join(' ') }</script>"
    )
    (site / "frames.html").write_text(f"<!doctype html>{frames}{asked}", encoding="utf-8")
    files = ["--allow-file-access-from-files", f"file://{site}/frames.html"]
    shown = subprocess.run(
        [chromium, *options, "--window-size=1300,1000", "--virtual-time-budget=5000", "--dump-dom", *files],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    ).stdout
    found = re.search(r"<title>([\d ]+)</title>", shown)
    assert found, shown[-500:]
    assert [int(wide) for wide in found[1].split()] == [width_px] * len(SEEN)

    picture = tmp_path / "page.png"
    size = f"--window-size={max(width_px, 500)},900"
    subprocess.run(
        [chromium, *options, size, f"--screenshot={picture}", f"file://{site}/{SEEN[1]}"],
        capture_output=True,
        check=True,
        timeout=240,
    )
    grey = np.asarray(Image.open(picture).convert("L"))
    assert (grey < 128).mean() > 0.01 and (grey > 200).mean() > 0.5, "words on paper"
