"""Hooks of the documentation site: pages from the repository's root, links to its sources, llms.txt."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
"""Pages of the site that are files at the root."""
_PAGE_OF = {name: page for page, name in FROM_ROOT.items()}
_COMMANDS = re.compile(r"^\$? ?(?:ultraflash|pipx?|uv|make|docker|ffmpeg|python3?|apt-get|vspipe|mpv|nice|torchrun) ")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from the root."""
    for page, name in FROM_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at pages of the site; those to sources become links to the repository, or plain words."""
    source = page.file.src_uri
    # Where the text lies in the repository, which its links start from.
    folder = "" if source in FROM_ROOT else posixpath.dirname(f"docs/{source}")
    pieces = re.split(r"(^```.*?^```\s*$|^ +```.*?^ +```\s*$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        _labelled(piece) if number % 2 else _LINK.sub(lambda link: _rewritten(link, folder, source, config), piece)
        for number, piece in enumerate(pieces)
    )


def _labelled(block: str) -> str:
    """Give a block of commands without a language that of the shell."""
    first, *lines = block.splitlines(keepends=True)
    is_shell = first.strip() == "```" and any(_COMMANDS.match(line.strip() + " ") for line in lines)
    return "".join([first.replace("```", "```bash") if is_shell else first, *lines])


def on_post_build(config: Any) -> None:
    """Put each page's Markdown beside it, which llms.txt points to."""
    site, docs = Path(config.site_dir), Path(config.docs_dir)
    for path in docs.rglob("*.md"):
        (site / path.relative_to(docs)).write_bytes(path.read_bytes())
    listed = (site / "llms.txt").read_text(encoding="utf-8")
    for page, name in FROM_ROOT.items():
        (site / page).write_bytes((ROOT / name).read_bytes())
        listed = listed.replace(f"(../{name})", f"({page})")
    (site / "llms.txt").write_text(listed, encoding="utf-8")


def _rewritten(link: re.Match[str], folder: str, source: str, config: Any) -> str:
    picture, words, target = link.groups()
    path, hash_sign, anchor = target.partition("#")
    if "://" in target or not path:
        return link[0]
    place = posixpath.normpath(posixpath.join(folder, path))
    if place in _PAGE_OF or (place.startswith("docs/") and not (ROOT / place).is_dir()):
        inside = _PAGE_OF.get(place, place.removeprefix("docs/"))
        relative = posixpath.relpath(inside, posixpath.dirname(source) or ".")
        return f"{picture}[{words}]({relative}{hash_sign}{anchor})"
    repository = config.extra.get("repository")
    return f"[{words}]({repository}/blob/main/{place})" if repository else words
