"""Code is easy to scan: lines are short, long bodies have paragraphs."""

import ast
from collections.abc import Iterator

from tests.house.source_tree import Module, product_modules

MOST_MEDIAN, MOST_OF_NINE_IN_TEN = 44, 92
"""Columns of the lines that are not blank."""
LONG_BODY = 20
"""Lines of a body, without its docstring, from which on it has paragraphs."""
MOST_WITHOUT = 0.04
"""Share of long bodies that are one step."""


def columns(module: Module) -> list[int]:
    return [len(line) for line in module.path.read_text(encoding="utf-8").splitlines() if line.strip()]


def bodies(module: Module) -> Iterator[tuple[int, list[str]]]:
    """The line that a function begins with, and the lines of its body."""
    lines = module.path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                yield node.lineno, lines[body[0].lineno - 1 : body[-1].end_lineno]


def test_lines_are_short() -> None:
    widths = sorted(width for module in product_modules() for width in columns(module))
    assert widths[len(widths) // 2] <= MOST_MEDIAN
    assert widths[len(widths) * 9 // 10] <= MOST_OF_NINE_IN_TEN


def test_long_bodies_have_paragraphs() -> None:
    modules = [module for module in product_modules() if not module.is_test]
    long = {module.where(line): body for module in modules for line, body in bodies(module) if len(body) > LONG_BODY}
    without = [place for place, body in long.items() if all(line.strip() for line in body)]
    assert len(without) <= MOST_WITHOUT * len(long), f"a blank line between steps is missing: {without}"
