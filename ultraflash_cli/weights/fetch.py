"""Files from the hub: locate, identify, download and check them."""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ultraflash_cli.errors import UsageError, WeightsError
from ultraflash_cli.weights.manifest import WeightEntry
from ultraflash_cli.weights.store import VerifiedBy, writing
from ultraflash_cli.weights.verify import git_blob_of, sha256_of

__all__ = ["Hub", "NotThere", "RemoteFile", "check_download", "fetch", "fetch_range", "list_files", "locate"]

_BRANCH = "main"
_GIT_ID = r"[0-9a-f]{40}"
_SHA256 = r"[0-9a-f]{64}"
_UPDATE = "update ultraflash, or import the file with --from FILE"


@dataclass(frozen=True, kw_only=True)
class Hub:
    """The hub, and its local cache."""

    endpoint: str
    """Address of the hub, without a trailing slash."""
    token: str | None
    """Access token; None uses the login saved by the hub library."""
    cache: Path
    """The hub library's cache folder; its files are used in place."""
    offline: bool
    """Whether network access is disabled."""

    def __post_init__(self) -> None:
        address = urlsplit(self.endpoint)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise UsageError(f"HF_ENDPOINT must be a URL such as https://huggingface.co, got {self.endpoint!r}")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise UsageError("HF_TOKEN contains a space, a line break or another invalid character; copy it again")

    @property
    def is_private(self) -> bool:
        """Whether the connection to the endpoint is encrypted or local."""
        address = urlsplit(self.endpoint)
        return address.scheme == "https" or address.hostname in ("localhost", "127.0.0.1", "::1")

    @property
    def login(self) -> str | bool | None:
        """Token for the hub library; False prevents it from sending even a saved
        one."""
        return self.token if self.is_private else False

    @property
    def withheld(self) -> str | None:
        """A warning if there is a token that will not be sent."""
        from huggingface_hub import get_token

        if self.is_private or not (self.token or get_token()):
            return None
        return f"HF_ENDPOINT {self.endpoint} is not encrypted, so the token is not sent; use an https address"


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file on the hub at one commit."""

    repository: str
    """``owner/name``."""
    path: str
    """Path in the repository."""
    revision: str
    """The commit."""
    bytes: int
    """Size in bytes."""
    sha256: str | None
    """SHA-256; None for a small file that the hub stores in git."""
    git_blob: str | None
    """Git blob id; None for a file with a SHA-256."""
    verified_by: VerifiedBy
    """Origin of size and hash."""
    cached: Path | None = None
    """Path of the file in the hub library's cache, if present."""

    @property
    def identity(self) -> str:
        """Identifier of the content: sha256, or the git blob id."""
        return self.sha256 or self.git_blob or ""

    def __str__(self) -> str:
        return f"{self.repository}/{self.path}"


def locate(hub: Hub, entry: WeightEntry, *, revision: str | None = None) -> RemoteFile:
    """Return the file at an entry's own location; alternatives are handled by
    ``search.HubSearch``. A locked entry stands for one commit, size and sha256, any
    other for the hub's current file at its path, or at ``revision`` if given. Raises
    NotThere if the hub has no such file, WeightsError for any other refusal, or if the
    file is not in the hub library's cache when offline.
    """
    assert entry.repository is not None, "a file of the package is not on the hub"
    found = _in_cache(hub, entry) if hub.offline or entry.locked else None
    if found is not None:
        return found
    if hub.offline:
        raise WeightsError(
            f"{entry.name}: {entry.repository}/{entry.file} is not on this machine and the network is disabled; "
            "pull it without --offline and HF_HUB_OFFLINE, or import a file with --from FILE"
        )

    remote = _head(hub, entry.repository, entry.file, entry.revision or revision or _BRANCH)
    if entry.locked:
        got = (remote.revision, remote.bytes, remote.sha256 or entry.sha256)
        expected = (entry.revision, entry.bytes, entry.sha256)
        if got != expected:
            raise WeightsError(
                f"{entry.name}: the hub has {remote.bytes} bytes, {_kind(remote)} {remote.identity[:12]}, at commit "
                f"{remote.revision[:12]}, expected {entry.bytes} bytes, sha256 {(entry.sha256 or '')[:12]}, at "
                f"{(entry.revision or '')[:12]}; update ultraflash, or report it"
            )
        return replace(remote, sha256=entry.sha256, verified_by="lock")

    return replace(remote, cached=_blob_in_cache(hub, remote))


def list_files(hub: Hub, repository: str, revision: str | None = None) -> list[str]:
    """Return the paths of all files in a repository. Raises WeightsError for hub and
    network errors."""
    from huggingface_hub import HfApi

    with _hub_errors(hub, repository):
        api = HfApi(endpoint=hub.endpoint, token=hub.login)
        return sorted(api.list_repo_files(repository, revision=revision or _BRANCH))


def fetch_range(hub: Hub, remote: RemoteFile, start: int, end: int) -> bytes | None:
    """Return bytes ``start`` to ``end`` (exclusive) of a file; None if the server only
    sends whole files."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    _silence()
    url = hf_hub_url(remote.repository, remote.path, revision=remote.revision, endpoint=hub.endpoint)
    headers = build_hf_headers(token=hub.login)
    headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    with (
        _hub_errors(hub, f"{remote}"),
        get_session().stream("GET", url, headers=headers, follow_redirects=True) as response,
    ):
        hf_raise_for_status(response)
        whole = response.status_code == 200 and (start, end) != (0, remote.bytes)
        return None if whole else response.read()


def fetch(hub: Hub, remote: RemoteFile, part: Path, on_bytes: Callable[[int], None]) -> str:
    """Download a file to ``part``, resuming after the bytes already there; check it and return its sha256.

    ``on_bytes`` is called with the number of bytes so far. The hub library handles the
    transfer (redirects, login, retries), but we control where to resume, since it would
    start over after a kill. Raises WeightsError for errors of the hub, the network or
    the check; the partial file is kept unless it is wrong. Raises OutputError for disk
    errors.
    """
    with writing(part):
        part.touch()
        if part.stat().st_size > remote.bytes:
            part.unlink()
            part.touch()
    while True:
        before = part.stat().st_size
        on_bytes(before)
        try:
            _transfer(hub, remote, part, on_bytes)
            break
        except _Disconnected:
            if part.stat().st_size <= before:
                raise
    try:
        return check_download(remote, part)
    except WeightsError:
        part.unlink()
        raise


def check_download(remote: RemoteFile, path: Path) -> str:
    """Compare a file with the hub's record and return its sha256. Raises WeightsError
    if they differ."""
    size = path.stat().st_size
    if size != remote.bytes:
        raise WeightsError(f"{remote}: received {size} bytes, expected {remote.bytes}; run the same command again")
    sha256 = sha256_of(path)
    got = sha256 if remote.sha256 is not None else git_blob_of(path)
    if got != remote.identity:
        raise WeightsError(
            f"{remote}: {_kind(remote)} of the download starts with {got[:12]}, expected "
            f"{remote.identity[:12]}; it was "
            "removed, run the same command again; if it happens again, something is altering the download"
        )
    return sha256


class _Disconnected(WeightsError):
    """The connection was lost; resuming may help."""


class NotThere(WeightsError):
    """The hub has no such file at this location."""


def _transfer(hub: Hub, remote: RemoteFile, part: Path, on_bytes: Callable[[int], None]) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    disable_progress_bars()
    _silence()
    # The URL of the file itself, not its redirect, which is signed for only an hour.
    url = hf_hub_url(remote.repository, remote.path, revision=remote.revision, endpoint=hub.endpoint)
    headers = build_hf_headers(token=hub.login) | {"Accept-Encoding": "identity"}
    with writing(part):
        file = part.open("rb+", buffering=0)
    with file, _hub_errors(hub, f"{remote}"):
        have = file.seek(0, 2)
        counted: Any = _Counted(file, on_bytes)
        try:
            http_get(url, counted, resume_size=have, headers=headers, expected_size=remote.bytes)
        except OSError as error:
            # The library's own length check has no error number; ours follows.
            if error.errno is not None or type(error) is not OSError:
                raise


class _Counted:
    """A file that reports its length and distinguishes its own write errors from
    network errors."""

    def __init__(self, file: Any, on_bytes: Callable[[int], None]) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def write(self, content: bytes) -> int:
        view = memoryview(content)
        with writing(Path(self._file.name)):
            while view:
                view = view[self._file.write(view) :]
        self._on_bytes(self._file.tell())
        return len(content)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, *place: int) -> int:
        return self._file.seek(*place)

    def truncate(self, *size: int) -> int:
        return self._file.truncate(*size)


def _head(hub: Hub, repository: str, path: str, revision: str) -> RemoteFile:
    """Return the hub's metadata of a file. Raises WeightsError if it is incomplete, or
    for an error."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    _silence()
    url = hf_hub_url(repository, path, revision=revision, endpoint=hub.endpoint)
    with _hub_errors(hub, f"{repository}/{path}"):
        said = get_hf_file_metadata(url, token=hub.login, endpoint=hub.endpoint)
    commit, identity, size = said.commit_hash or "", said.etag or "", said.size
    is_sha256 = re.fullmatch(_SHA256, identity) is not None
    if size is None or not re.fullmatch(_GIT_ID, commit) or not (is_sha256 or re.fullmatch(_GIT_ID, identity)):
        raise WeightsError(
            f"{repository}/{path}: {hub.endpoint} does not report commit, size and hash as the hub does; "
            "check HF_ENDPOINT"
        )
    return RemoteFile(
        repository=repository,
        path=path,
        revision=commit,
        bytes=size,
        sha256=identity if is_sha256 else None,
        git_blob=None if is_sha256 else identity,
        verified_by="hub" if is_sha256 else "git",
    )


def _in_cache(hub: Hub, entry: WeightEntry) -> RemoteFile | None:
    """Return an entry's file if the hub's own tools have downloaded it. They name files
    by sha256 or git id, so that they can be checked without contacting the hub.
    """
    from huggingface_hub import try_to_load_from_cache

    assert entry.repository is not None
    found = try_to_load_from_cache(
        entry.repository, entry.file, cache_dir=hub.cache, revision=entry.revision or _BRANCH
    )
    if not isinstance(found, str):
        return None
    snapshot, blob = Path(found), Path(found).resolve()
    size, named_by_sha256 = blob.stat().st_size, re.fullmatch(_SHA256, blob.name) is not None
    git_blob = blob.name if re.fullmatch(_GIT_ID, blob.name) else None
    sha256 = entry.sha256 or (blob.name if named_by_sha256 else None)
    commit = _commit_of(snapshot, entry.file)
    if commit is None or sha256 is git_blob is None or (entry.locked and size != entry.bytes):
        return None
    return RemoteFile(
        repository=entry.repository,
        path=entry.file,
        revision=commit,
        bytes=size,
        sha256=sha256,
        git_blob=git_blob,
        verified_by="lock" if entry.locked else "hub" if sha256 else "git",
        cached=blob,
    )


def _commit_of(snapshot: Path, path: str) -> str | None:
    """Return the folder's name above a file's path in ``snapshots/COMMIT/PATH``."""
    folder = snapshot.parents[len(PurePosixPath(path).parts) - 1]
    return folder.name if re.fullmatch(_GIT_ID, folder.name) else None


def _blob_in_cache(hub: Hub, remote: RemoteFile) -> Path | None:
    blob = hub.cache / f"models--{remote.repository.replace('/', '--')}" / "blobs" / remote.identity
    return blob if blob.is_file() and blob.stat().st_size == remote.bytes else None


def _kind(remote: RemoteFile) -> str:
    return "sha256" if remote.sha256 is not None else "git blob id"


def _silence() -> None:
    """Silence the hub library; our own events and errors replace its warnings."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()


@contextmanager
def _hub_errors(hub: Hub, what: str) -> Generator[None]:
    """Convert errors of the hub library to a one-line WeightsError with advice."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RemoteEntryNotFoundError

    # The base class of connection errors; its package depends on the library's version.
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(error, RemoteEntryNotFoundError) or (status == 404 and type(error) is HfHubHTTPError):
            raise NotThere(f"{what}: the hub has no such file (404); {_UPDATE}") from error
        raise WeightsError(f"{what}: {_refusal(hub, what, error)}") from error
    except OfflineModeIsEnabled as error:
        raise WeightsError(f"{what}: HF_HUB_OFFLINE is set; unset it, or import the file") from error
    except (transport, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _Disconnected(
            f"{what}: no connection to {hub.endpoint} ({reason}); check the network, HF_ENDPOINT and proxies, "
            "then run the same command to resume"
        ) from error


def _refusal(hub: Hub, what: str, error: Any) -> str:
    """Return why the hub refused, and what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    page = f"{hub.endpoint}/{'/'.join(what.split('/')[:2])}"
    if isinstance(error, GatedRepoError):
        return f"the repository's terms must be accepted ({status}); accept them at {page}, set HF_TOKEN and pull again"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub does not have this revision ({status}); {_UPDATE}"
    if status == 401:
        return (
            f"the hub requires a login (401); set HF_TOKEN to a token that can read {page}, and check the name: "
            "a missing repository gets the same answer"
        )
    if status == 403:
        return f"the hub refuses access (403); set HF_TOKEN to a token that can read {page}"
    if status == 404 or isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository ({status}); look at {page}, or import the file with --from FILE"
    if status == 429:
        return (
            "too many requests to the hub (429); wait a few minutes or set HF_TOKEN, then run the same command "
            "to resume"
        )
    if status >= 500:
        return f"the hub has a server error ({status}); run the same command later to resume"
    return f"the hub answered {status}; look at {page}"
