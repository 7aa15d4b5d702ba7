"""What the environment says, read once, and what libraries are told through it; no other module touches it."""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

__all__ = ["DEFAULT_ENDPOINT", "Settings", "keep_compiled_kernels", "quieten_libraries", "wait_passively"]

DEFAULT_ENDPOINT = "https://huggingface.co"
"""The hub that weights come from, unless `HF_ENDPOINT` names another."""

_LEAST_SECRET = 6
_NO_HOME = "/nonexistent"
"""Where Debian puts the homes of users who have none."""
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What tells OpenMP how its threads wait for one another, the first that is set counting."""

_TRUE = {"1", "on", "yes", "true"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The part of the environment that the program listens to."""

    no_color: bool = False
    """`NO_COLOR` is set to anything but nothing (https://no-color.org)."""
    home: Path = field(default_factory=lambda: _default_hf_home() / "ultraflash")
    """Where downloaded weights and what is computed once are kept: `ULTRAFLASH_HOME`, else inside `HF_HOME`."""
    hub_cache: Path = field(default_factory=lambda: _default_hf_home() / "hub")
    """Where the hub's own tools keep their files: `HF_HUB_CACHE`, else inside `HF_HOME`; read, never written."""
    hub_endpoint: str = DEFAULT_ENDPOINT
    """`HF_ENDPOINT`, without a slash at its end."""
    hub_token: str | None = field(default=None, repr=False)
    """`HF_TOKEN`; without it the hub library looks for a saved login."""
    offline: bool = False
    """`HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` says yes: nothing is asked of the network."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is never printed: the token, and who logs in with which password in the hub's address."""
        login, at, _ = urlsplit(self.hub_endpoint).netloc.rpartition("@")
        password = login.partition(":")[2]
        # A shorter one would be found in half of all words.
        alone = (secret for secret in (self.hub_token or "", password) if len(secret) >= _LEAST_SECRET)
        return tuple(filter(None, (login + at, *alone)))

    waiting: str = "passive"
    """How CPU threads wait for one another: as the environment says, else passively."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read `environ`; nothing is read again later."""
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
    """Keep SVT-AV1 from printing twenty lines per segment, the hub library and Ray from telling of this machine.

    They listen to nothing but this.
    """
    environ.setdefault("SVT_LOG", "1")
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def wait_passively(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let CPU threads that wait for one another sleep; call it before torch is imported.

    By default they spin for a while, which on a machine with other work takes away the very core that they wait for:
    a network on two threads was 40 times slower on two cores that were shared. What the environment says stays.
    """
    if _waiting(environ) is None:
        environ["OMP_WAIT_POLICY"] = "PASSIVE"


def keep_compiled_kernels(home: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Let Triton keep what it compiles below `home`, so that only a first run on a machine compiles.

    It listens to nothing but this; `TRITON_CACHE_DIR` if it is set, stays.
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
