"""The troubleshooting page quotes messages that exist in the program."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
LEAST_SHARE = 0.35
"""Minimum share of a quoted message that a template's fixed text must make up; the rest
is names and numbers."""


def quoted() -> list[str]:
    headings = re.findall(r"^### (`+) ?(.+?) ?\1$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [message for _, message in headings]


@cache
def templates() -> tuple[tuple[re.Pattern[str], int], ...]:
    """Return every string of the program as a regular expression whose gaps match
    anything, and the length of its fixed text."""
    root = PAGE.parents[1] / "ultraflash_cli"
    found = [text for path in sorted(root.rglob("*.py")) for text in strings(ast.parse(path.read_text("utf-8")))]
    return tuple((re.compile(".*".join(map(re.escape, text))), sum(map(len, text))) for text in found)


def strings(tree: ast.AST) -> Iterator[list[str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield [node.value]
        elif isinstance(node, ast.JoinedStr):
            parts = [""]
            for value in node.values:
                if isinstance(value, ast.Constant):
                    parts[-1] += str(value.value)
                else:
                    parts.append("")
            yield parts


def is_known(message: str) -> bool:
    return any(own >= LEAST_SHARE * len(message) and pattern.search(message) for pattern, own in templates())


def test_there_are_messages_for_every_kind_of_failure() -> None:
    assert len(quoted()) >= 25
    page = PAGE.read_text(encoding="utf-8")
    assert [code for code in range(1, 9) if f"(exit code {code})" not in page] == []


@pytest.mark.parametrize("message", quoted())
def test_the_program_has_the_message(message: str) -> None:
    assert is_known(message)


def test_a_message_that_the_program_has_not_would_be_found() -> None:
    assert not is_known("holiday.mp4: the flux capacitor is empty; fill it with plutonium")
