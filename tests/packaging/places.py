"""Separate environments for tests, which use this environment's libraries; and a
different user to run them."""

import os
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

__all__ = ["NOBODY", "count_as_installed", "make_venv", "open_folder", "outer_packages", "somebody_else"]

NOBODY = 12345
"""ID of a user that exists on no machine."""


def outer_packages() -> list[str]:
    """Return the folders of this environment's packages."""
    return [path for path in sys.path if path in site.getsitepackages() or path.endswith("site-packages")]


def count_as_installed(environment: Path) -> None:
    """Make this environment's packages count as installed in a different one, instead
    of its old setuptools."""
    (packages,) = (environment / "lib").glob("python*/site-packages")
    for path in [*packages.glob("setuptools*"), *packages.glob("pkg_resources")]:
        shutil.rmtree(path)
    (packages / "libraries.pth").write_text("\n".join(outer_packages()))


def make_venv(folder: Path, wheel: Path) -> Path:
    """Install a wheel into a new environment with the real pip, and return its `ultraflash`."""
    venv.create(folder, symlinks=True)
    count_as_installed(folder)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", "--no-compile", str(wheel)], check=True, capture_output=True)
    return folder / "bin" / "ultraflash"


def somebody_else() -> list[str]:
    """Return a prefix that runs a command as a user who may read everything and write
    only to public files. Reading is allowed, because the interpreter may be in a
    private home.
    """
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can be somebody else, by setpriv")
    who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *who, "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]


@contextmanager
def open_folder() -> Generator[Path]:
    """Return a new folder that every user can reach and write to; those of pytest are
    private."""
    with TemporaryDirectory(prefix="every body é ") as name:
        Path(name).chmod(0o777)
        yield Path(name)
