"""Settings from the environment, read once, and variables set for libraries; no other
module accesses it."""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

__all__ = ["DEFAULT_ENDPOINT", "Settings", "keep_compiled_kernels", "quieten_libraries", "wait_passively"]

DEFAULT_ENDPOINT = "https://huggingface.co"
"""The default hub for weights, unless `HF_ENDPOINT` is set."""

_LEAST_SECRET = 6
_NO_HOME = "/nonexistent"
"""Debian's home directory for users without one."""
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that control how OpenMP threads wait for one another; the first that is set
counts."""

_TRUE = {"1", "on", "yes", "true"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The environment variables that affect the program."""

    no_color: bool = False
    """Whether `NO_COLOR` is set and not empty (https://no-color.org)."""
    home: Path = field(default_factory=lambda: _default_hf_home() / "ultraflash")
    """Folder of downloaded weights and cached data: `ULTRAFLASH_HOME`, else inside
    `HF_HOME`."""
    hub_cache: Path = field(default_factory=lambda: _default_hf_home() / "hub")
    """Cache of the hub's own tools: `HF_HUB_CACHE`, else inside `HF_HOME`; only read,
    never written."""
    hub_endpoint: str = DEFAULT_ENDPOINT
    """`HF_ENDPOINT`, without a trailing slash."""
    hub_token: str | None = field(default=None, repr=False)
    """`HF_TOKEN`; without it the hub library looks for a saved login."""
    offline: bool = False
    """Whether `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` is set, which disables network
    access."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Secrets that are never printed: the token, and user name and password in the
        hub's address."""
        login, at, _ = urlsplit(self.hub_endpoint).netloc.rpartition("@")
        password = login.partition(":")[2]
        # A shorter one would occur in many words.
        alone = (secret for secret in (self.hub_token or "", password) if len(secret) >= _LEAST_SECRET)
        return tuple(filter(None, (login + at, *alone)))

    waiting: str = "passive"
    """Wait policy of CPU threads: that of the environment, or passive."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the settings from `environ`, once."""
        hf_home = _folder(environ.get("HF_HOME")) or _default_hf_home(environ.get("XDG_CACHE_HOME"))
        hub_cache = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
        offline = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
        return cls(
            no_color=bool(environ.get("NO_COLOR")),
            home=_folder(environ.get("ULTRAFLASH_HOME")) or hf_home / "ultraflash",
            hub_cache=_folder(hub_cache) or hf_home / "hub",
            hub_endpoint=(environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/"),
            hub_token=(environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip() or None,
            offline=offline.strip().lower() in _TRUE,
            waiting=_waiting(environ) or "passive",
        )


def quieten_libraries(environ: MutableMapping[str, str] = os.environ) -> None:
    """Prevent SVT-AV1 from printing twenty lines per segment, and the hub library and
    Ray from sending telemetry. They can only be configured through the environment.
    """
    environ.setdefault("SVT_LOG", "1")
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def wait_passively(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make waiting CPU threads sleep; to be called before torch is imported. By default
    they spin for a while, which on a busy machine takes up the very core that they wait
    for: a network on two threads was 40 times slower on two shared cores. Variables
    that are already set are kept.
    """
    if _waiting(environ) is None:
        environ["OMP_WAIT_POLICY"] = "PASSIVE"


def keep_compiled_kernels(home: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Make Triton cache compiled kernels below `home`, so that only the first run on a
    machine compiles. It can only be configured through the environment;
    `TRITON_CACHE_DIR` is kept if set.
    """
    environ.setdefault("TRITON_CACHE_DIR", str(home / "kernels"))


def _waiting(environ: Mapping[str, str]) -> str | None:
    for name in _WAITING:
        if value := environ.get(name, "").strip():
            return value.lower() if name == _WAITING[0] else f"{name}={value}"
    return None


def _folder(text: str | None) -> Path | None:
    return _expanded(os.path.expandvars(text)) if text else None


def _default_hf_home(cache_home: str | None = None) -> Path:
    return (_folder(cache_home) or _expanded("~/.cache")) / "huggingface"


def _expanded(text: str) -> Path:
    """Return a path with `~` replaced; a user without a home, as in a container, has `/nonexistent`."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(_NO_HOME, *Path(text).parts[1:])
