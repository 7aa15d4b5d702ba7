"""Documentation, help and messages are free of phrases that only translations
contain."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.reference import reference

TELL_TALES = (
    r"time stamps?",
    r"anew",
    r"afresh",
    r"(?:go|goes|went|going) on (?:from|with|after|where|later|in)",
    r"by (?:the )?way of",
    r"unless said",
    r"is said",
    r"is told",
    r"(?:lies|lie) (?:beside|in|inside|below|above|behind|there)",
    r"so many",
    r"(?:frames|pictures|times) a second",
    r"in one piece",
    r"as it is asked",
    r"(?:is|are) no (?:file|video|text|number|time|folder|plain)",
    r"(?:leave|leaves) (?:it|them|--[a-z-]+) out",
    r"takes no words",
    r"is not to be",
    r"has to be had",
    r"can(?:not)? be had",
    r"made out of words",
    r"for nothing",
    r"stands? for (?:one|a) clip",
    r"names another",
    r"starts? at new",
    r"what there is",
    r"holds? what (?:it|this)",
    r"comes? along",
    r"one behind the other",
    r"beside (?:each other|one another)",
    r"too\b(?=, as)",
)
"""Phrases, as regular expressions of whole words."""

EVERYWHERE = re.compile(rf"\b(?:{'|'.join(TELL_TALES)})\b", re.IGNORECASE)
PAGES = ("*.md", "docs/**/*.md", "demo/*.md", "kernels/README.md")


def prose(page: str) -> str:
    """Return the text of a page without code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)


def found_in(text: str) -> list[str]:
    return [match.group() for match in EVERYWHERE.finditer(re.sub(r"\s+", " ", text))]


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every string of words in a module, except docstrings
    and assertions."""
    tree = ast.parse(source)
    passed: set[int] = set()
    for node in ast.walk(tree):
        inner = node.msg if isinstance(node, ast.Assert) else node.value if isinstance(node, ast.Expr) else None
        if inner is not None and not isinstance(inner, ast.Call | ast.Await):
            passed |= {id(each) for each in ast.walk(inner)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed:
            yield node.lineno, node.value


@pytest.mark.parametrize("text", ["three time stamps", "made anew", "24 frames a second", "it lies beside the output"])
def test_a_tell_tale_is_found(text: str) -> None:
    assert found_in(text)


def test_pages_have_no_tell_tales(repository: Path) -> None:
    found = {
        str(page.relative_to(repository)): phrases
        for pattern in PAGES
        for page in repository.glob(pattern)
        if (phrases := found_in(prose(page.read_text(encoding="utf-8"))))
    }
    assert not found


def test_help_has_no_tell_tales() -> None:
    assert not found_in(reference())


def test_messages_have_no_tell_tales(repository: Path) -> None:
    found = [
        f"{path.relative_to(repository)}:{line}: {phrases[0]!r} in {text!r}"
        for path in sorted((repository / "ultraflash_cli").rglob("*.py"))
        for line, text in messages(path.read_text(encoding="utf-8"))
        if (phrases := found_in(text))
    ]
    assert not found, "\n".join(found)


def test_messages_of_errors_end_without_a_period(repository: Path) -> None:
    found: list[str] = []
    for path in sorted((repository / "ultraflash_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = node.exc.args[0]
                last = text.values[-1] if isinstance(text, ast.JoinedStr) and text.values else text
                if isinstance(last, ast.Constant) and isinstance(last.value, str) and last.value.endswith("."):
                    found.append(f"{path.relative_to(repository)}:{node.lineno}")
    assert not found
