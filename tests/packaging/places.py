"""Environments of a test's own, whose libraries are those of this one; and somebody else to run them."""

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
"""A user whom no machine knows."""


def outer_packages() -> list[str]:
    """Return the folders of this environment's packages."""
    return [path for path in sys.path if path in site.getsitepackages() or path.endswith("site-packages")]


def count_as_installed(environment: Path) -> None:
    """Let this environment's packages count as installed in another, instead of its old setuptools."""
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
    """Return what runs a command as a user who may read everything and write only what is everybody's.

    Reading is left to him, since an interpreter in a private home is none of the program's making.
    """
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can be somebody else, by setpriv")
    who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *who, "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]


@contextmanager
def open_folder() -> Generator[Path]:
    """Give a new folder that everybody reaches and may write in; those of pytest are private."""
    with TemporaryDirectory(prefix="every body é ") as name:
        Path(name).chmod(0o777)
        yield Path(name)
