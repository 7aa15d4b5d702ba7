"""A local hub that implements the real one's protocol, with configurable failures."""

import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

__all__ = ["COMMIT", "FakeHub", "Request", "git_blob", "running_hub"]

COMMIT = "c0ffee" * 6 + "c0ff"
_PLAIN_SUFFIXES = {".json", ".md", ".txt"}


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Request:
    """A request of a client."""

    method: str
    path: str
    range: str | None
    authorization: str | None

    @property
    def is_look(self) -> bool:
        """Whether a range with an end was requested."""
        return self.range is not None and not self.range.endswith("-")


@dataclass
class FakeHub:
    """Files by ``owner/name`` and path, and the failures to simulate."""

    address: str = ""
    cdn: str = ""
    """Second host name of the server, like that of the hub's storage."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """Repositories that require a token, with the token."""
    gated: set[str] = field(default_factory=set)
    moved: dict[str, str] = field(default_factory=dict)
    """Old names of repositories."""
    broken: dict[str, int] = field(default_factory=dict)
    """File names for which requests return an error status; with ``GET name`` only
    transfers do."""
    silent: set[str] = field(default_factory=set)
    """File names without the hub's own headers, as from any web server."""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """File names whose transfers end after so many bytes, one number for each request."""
    stored: dict[str, bytes] = field(default_factory=dict)
    """Content in the storage that differs from the hub's metadata, by file name."""
    hold: threading.Event | None = None
    """If given, an interrupted transfer stays open without data until this is set."""
    serves_ranges: bool = True
    """Whether range requests are supported."""
    requests: list[Request] = field(default_factory=list)

    def put(self, repository: str, **files: bytes) -> None:
        self.files.setdefault(repository, {}).update(files)

    def transfers(self) -> list[Request]:
        """Return the requests for whole files, or for the rest of one."""
        return [each for each in self._contents() if not each.is_look]

    def looks(self) -> list[Request]:
        """Return the requests for a piece of a file."""
        return [each for each in self._contents() if each.is_look]

    def _contents(self) -> list[Request]:
        places = ("/resolve/", "/storage/", "/api/resolve-cache/")
        return [each for each in self.requests if each.method == "GET" and any(p in each.path for p in places)]


@contextmanager
def running_hub() -> Generator[FakeHub]:
    """Serve a hub until the block ends."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    hub.cdn = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        if hub.hold is not None:
            hub.hold.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = PurePosixPath(unquote(urlsplit(self.path).path)).parts[1:]
        get = self.headers.get
        self.hub.requests.append(Request(self.command, self.path, get("Range"), get("Authorization")))
        if parts[:2] == ("api", "models"):
            self._tree("/".join(parts[2:4]))
        elif parts[0] == "storage":
            self._content("/".join(parts[1:3]), "/".join(parts[3:]))
        elif parts[:2] == ("api", "resolve-cache"):
            self._plain("/".join(parts[2:4]), "/".join(parts[5:]))
        elif parts[2:3] != ("resolve",):
            self._refuse(404, "")
        else:
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _resolve(self, repository: str, revision: str, path: str) -> None:
        if repository in self.hub.moved:
            return self._redirect(307, f"/{self.hub.moved[repository]}/resolve/{revision}/{path}")
        if self._refused(repository):
            return None
        name = PurePosixPath(path).name
        if status := self.hub.broken.get(name) or self.hub.broken.get(f"{self.command} {name}"):
            return self._refuse(status, "")
        content = self.hub.files[repository].get(path)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        if PurePosixPath(path).suffix in _PLAIN_SUFFIXES:
            return self._redirect(307, f"/api/resolve-cache/{repository}/{COMMIT}/{path}")
        headers = {} if path in self.hub.silent else _linked(content)
        return self._redirect(302, f"{self.hub.cdn}/storage/{repository}/{path}?signature=x", headers)

    def _refused(self, repository: str) -> bool:
        token = self.hub.tokens.get(repository)
        if token is not None and self.headers.get("Authorization") is None:
            self._refuse(401, "RepoNotFound")
        elif token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            self._refuse(403, "")
        elif repository in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif repository not in self.hub.files:
            self._refuse(401, "RepoNotFound")
        else:
            return False
        return True

    def _tree(self, repository: str) -> None:
        if self._refused(repository):
            return
        rows = [
            {"type": "file", "path": path, "size": len(content), "oid": git_blob(content)}
            for path, content in self.hub.files[repository].items()
        ]
        body = json.dumps(rows).encode()
        self._send(200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    def _plain(self, repository: str, path: str) -> None:
        content = self.hub.files[repository][path]
        headers = {"ETag": f'"{git_blob(content)}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}
        self._send(200, headers, self.hub.stored.get(path.split("/")[-1], content))

    def _content(self, repository: str, path: str) -> None:
        name = PurePosixPath(path).name
        content = self.hub.stored.get(name, self.hub.files[repository][path])
        first, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")
        start = int(first)
        if start and start >= len(content):
            return self._refuse(416, "")
        if last and not self.hub.serves_ranges:
            start, last = 0, ""
        elif last:
            return self._piece(content, start, int(last) + 1)
        headers = {"Content-Length": str(len(content) - start), "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self.hub.cuts.get(name)
        body = content[start:] if not cuts else content[start : start + cuts.pop(0)]
        self._send(206 if start else 200, headers, body)
        if len(body) < len(content) - start:
            if self.hub.hold is not None:
                self.hub.hold.wait()
            self.close_connection = True
        return None

    def _piece(self, content: bytes, start: int, end: int) -> None:
        piece = content[start:end]
        span = f"bytes {start}-{start + len(piece) - 1}/{len(content)}"
        self._send(206, {"Content-Length": str(len(piece)), "Content-Range": span}, piece)

    def _redirect(self, status: int, location: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, {"Location": location, "Content-Length": "0", **(headers or {})}, b"")

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, {"Content-Length": "0"} | ({"X-Error-Code": code} if code else {}), b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            try:
                self.wfile.write(body)
                self.wfile.flush()
            except OSError:
                self.close_connection = True


def _linked(content: bytes) -> dict[str, str]:
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "X-Repo-Commit": COMMIT,
        "X-Linked-Etag": f'"{sha256}"',
        "X-Linked-Size": str(len(content)),
        "ETag": f'"{git_blob(content)}"',
    }
