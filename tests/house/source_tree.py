"""The product's modules, their packages and their imports, read from the source
alone."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["ROOT", "Module", "product_modules"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "ultraflash_cli", ROOT / "kernels" / "ultraflash_kernels")


@dataclass(frozen=True)
class Module:
    """One source file."""

    path: Path
    name: str
    """Dotted import name."""
    tree: ast.Module

    @property
    def is_test(self) -> bool:
        """Whether the file is not part of the wheel."""
        return self.path.name.startswith("test_") or self.path.name == "conftest.py"

    @property
    def room(self) -> str:
        """The package it belongs to: a subpackage, a single module at the top level, or
        ``ultraflash_kernels``."""
        return room_of(self.name)

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and dotted target of every import, including those inside functions and
        type-checking blocks."""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parents, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)

    def attributes(self) -> Iterator[tuple[int, str]]:
        """Line and text of every attribute access such as ``os.environ``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                yield node.lineno, ast.unparse(node)

    def where(self, line: int) -> str:
        """``path:line`` below the repository, for messages."""
        return f"{self.path.relative_to(ROOT)}:{line}"


def room_of(name: str) -> str:
    """Return the package that a dotted name of the product belongs to; empty for the
    top-level package."""
    parts = name.split(".")
    if parts[0] == "ultraflash_kernels":
        return parts[0]
    return parts[1] if len(parts) > 1 else ""


@cache
def product_modules() -> tuple[Module, ...]:
    """Read every Python file of the product."""
    found: list[Module] = []
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module(path, name, ast.parse(path.read_text(encoding="utf-8"), str(path))))
    return tuple(found)
