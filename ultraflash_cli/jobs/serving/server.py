"""A small local HTTP server that shows a running job in a browser, through a link that
works once."""

import errno
import hmac
import http.server
import ipaddress
import json
import os
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from typing import ClassVar, cast

from ultraflash_cli.errors import Interrupted, UltraflashError, UsageError
from ultraflash_cli.jobs.events import Event, Serving, Warned
from ultraflash_cli.jobs.serving.show import Show

__all__ = ["parse_address", "serving"]

_LOOPBACK = "127.0.0.1"
_MOST_CONNECTIONS = 24
_PATIENCE_S = 20
"""Timeout of connections that neither send a request nor read the response."""
_LAST_WORDS_S = 5
"""Seconds to wait at the end for viewers to receive the rest."""
_MOST_BODY_BYTES = 1024
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def parse_address(text: str) -> tuple[str, int]:
    """Parse HOST:PORT or PORT; without a host only this machine can connect. Raises
    UsageError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or _LOOPBACK
    is_port = port.isdecimal() and port.isascii() and len(port) <= 5 and int(port) <= 65535
    if not is_port or (text.count(":") > 1 and "[" not in text):
        raise UsageError(f"--serve must be a port or HOST:PORT such as 127.0.0.1:8000, got {text!r}")
    return host, int(port)


@contextmanager
def serving(address: str, listener: Callable[[Event], None]) -> Generator[Show]:
    """Serve the progress of the jobs in the block at an address; the link is reported
    as an event when the first one begins. Raises UsageError if the address is not
    available.
    """
    host, port = parse_address(address)
    server = _bound(host, port)

    def tell() -> None:
        listener(Serving(input="", url=server.new_link()))

    def begin() -> None:
        if not _is_loopback(str(server.server_address[0])):
            message = f"--serve {address}: whoever reaches this machine and has the link sees the job, unencrypted"
            listener(Warned(input="", message=message))
        tell()

    show = Show(listener, on_begin=begin)
    server.show, server.tell = show, tell
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="serving", daemon=True)
    thread.start()
    state, message = "stopped", ""
    try:
        yield show
        state = "done"
    except UltraflashError as error:
        state, message = ("stopped" if isinstance(error, Interrupted) else "failed"), str(error)
        raise
    finally:
        audience = server.audience
        show.end(state, message)
        server.wait_for_viewers(audience, _LAST_WORDS_S)
        server.shutdown()
        server.server_close()
        thread.join()


def _bound(host: str, port: int) -> "_Server":
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return _Server(family, cast("tuple[str, int]", place[:2]), host)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        unknown = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        instead = "an address of this machine" if unknown else "another port, or 0 for any that is free"
        raise UsageError(f"--serve {host}:{port}: {why}; choose {instead}") from error


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = os.name != "nt"  # on Windows it would let two programs share a port
    show: Show
    tell: Callable[[], None]

    def __init__(self, family: int, place: tuple[str, int], name: str) -> None:
        self.address_family = family
        super().__init__(place, _Handler)
        self.port = int(self.server_address[1])
        self._name = name.lower()
        self._links: set[str] = set()
        self._keys: set[str] = set()
        self._lock = threading.Condition()
        self._connections = 0
        self._viewers = 0
        self._listening: Counter[str] = Counter()
        self._served: set[tuple[str, int]] = set()
        self._gone: set[str] = set()

    def server_bind(self) -> None:
        """Bind without HTTPServer's name-server lookup of this host."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def new_link(self) -> str:
        """Return a link that works once."""
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._links.add(token)
        bound = str(self.server_address[0])
        host = self._name if not _is_any(bound) else (_LOOPBACK if self.address_family == socket.AF_INET else "::1")
        host = f"[{host}]" if ":" in host else host
        # As a fragment it appears in no log and no Referer.
        return f"http://{host}:{self.port}/#{token}"

    def exchange(self, token: str) -> str | None:
        """Exchange the token of a link, which is then used up, for a key; None for a
        wrong one."""
        with self._lock:
            found = next((each for each in self._links if hmac.compare_digest(each.encode(), token.encode())), None)
            if found is None:
                return None
            self._links.remove(found)
            key = secrets.token_urlsafe(24)
            self._keys.add(key)
            return key

    def knows(self, key: str) -> bool:
        """Return whether a key was issued."""
        with self._lock:
            return any(hmac.compare_digest(each.encode(), key.encode()) for each in self._keys)

    def is_ours(self, host: str) -> bool:
        """Return whether a Host header names this server; other names may belong to a
        site that resolves to it (DNS rebinding)."""
        name, _, port = host.rpartition(":")
        if port != str(self.port):
            return False
        name = name.removeprefix("[").removesuffix("]").lower()
        bound = str(self.server_address[0])
        if name == self._name or (name == "localhost" and (_is_any(bound) or _is_loopback(bound))):
            return True
        with suppress(ValueError):
            address = ipaddress.ip_address(name)
            return _is_any(bound) or address == ipaddress.ip_address(bound)
        return False

    @property
    def audience(self) -> set[str]:
        """The keys of viewers that follow the events."""
        with self._lock:
            return set(+self._listening)

    @contextmanager
    def viewing(self, key: str, clip: int | None = None) -> Generator[None]:
        """Record that a viewer receives the stream of a clip (completely, if the block
        succeeds) or the events."""
        with self._lock:
            self._viewers += 1
            self._listening[key] += clip is None
            self._gone.discard(key)
        try:
            yield
            if clip is not None:
                self._served.add((key, clip))
        except OSError:
            self._gone.add(key)
            raise
        finally:
            with self._lock:
                self._viewers -= 1
                self._listening[key] -= clip is None
                self._lock.notify_all()

    def wait_for_viewers(self, audience: set[str], timeout_s: float) -> None:
        """Wait until all viewers have received the last clip, up to a time limit."""
        clip = self.show.clip
        number = clip.number if clip is not None and clip.head else None

        def is_over() -> bool:
            waiting = {key for key in audience - self._gone if number is not None and (key, number) not in self._served}
            return self._viewers == 0 and not waiting

        with self._lock:
            self._lock.wait_for(is_over, timeout_s)

    def process_request(self, request: object, client_address: object) -> None:
        with self._lock:
            is_full = self._connections >= _MOST_CONNECTIONS
            self._connections += not is_full
        if is_full:
            self.shutdown_request(cast(socket.socket, request))
            return
        super().process_request(cast(socket.socket, request), client_address)

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(cast(socket.socket, request), client_address)
        finally:
            with self._lock:
                self._connections -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing: a browser that disconnects is not a failure of the job."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE_S
    server_version = "ultraflash"
    sys_version = ""
    _page: ClassVar[str | None] = None

    @property
    def ours(self) -> _Server:
        return cast(_Server, self.server)

    def do_GET(self) -> None:
        if self._is_foreign():
            return
        if self.path == "/":
            self._send_page()
        elif not self.ours.knows(key := self.headers.get("Authorization", "").removeprefix("Bearer ")):
            self._send(403, "text/plain", b"open the link that ultraflash printed; each works once\n")
        elif self.path == "/events":
            lines = (json.dumps(state).encode() + b"\n" for state in self.ours.show.states())
            with self.ours.viewing(key):
                self._stream("application/x-ndjson", lines)
        elif (clip := self.ours.show.clip) is not None and self.path == f"/video/{clip.number}":
            with self.ours.viewing(key, clip.number):
                self._stream("video/mp4", clip.parts())
        else:
            self._send(404, "text/plain", b"there is nothing here\n")

    def do_POST(self) -> None:
        if self._is_foreign():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/session" or not length.isdecimal() or int(length) > _MOST_BODY_BYTES:
            self.close_connection = True
            self._send(404, "text/plain", b"there is nothing here\n")
            return
        key = self.ours.exchange(self.rfile.read(int(length)).decode("ascii", "replace"))
        if key is None:
            self._send(403, "text/plain", b"this link was used; ultraflash has printed another one\n")
            return
        self._send(200, "application/json", json.dumps({"key": key}).encode())
        self.ours.tell()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: stderr belongs to the job."""

    def _is_foreign(self) -> bool:
        """Return whether the request was triggered by another site, and reject it if
        so."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if self.ours.is_ours(host) and origin in (None, f"http://{host}") and site in ("same-origin", "none"):
            return False
        self.close_connection = True
        self._send(403, "text/plain", b"requests of other sites are refused\n")
        return True

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        page = page_text().replace("__NONCE__", nonce)
        self._send(200, "text/html; charset=utf-8", page.encode(), policy=_POLICY.format(nonce=nonce))

    def _send(self, status: int, kind: str, content: bytes, *, policy: str = "default-src 'none'") -> None:
        self._begin(status, kind, {"Content-Length": str(len(content)), "Content-Security-Policy": policy})
        self.wfile.write(content)

    def _begin(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind} | _HEADERS | headers).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _stream(self, kind: str, parts: Iterator[bytes]) -> None:
        self._begin(200, kind, {"Transfer-Encoding": "chunked"})
        for part in parts:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")


def page_text() -> str:
    """Return the page, with `__NONCE__` in place of the policy's nonce."""
    return resources.files("ultraflash_cli.jobs.pages").joinpath("watch.html").read_text(encoding="utf-8")


def _is_any(host: str) -> bool:
    return host in ("0.0.0.0", "::")


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
