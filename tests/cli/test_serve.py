"""`--serve`: a running job in a browser, by plain HTTP and in headless Chromium; other
clients are refused."""

import http.client
import io
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import pytest

from tests.jobs.clips import make_clip
from tests.jobs.doubler import Doubler, Trail
from tests.jobs.doubler import builder as upscaling
from tests.jobs.generating import builder as generating
from ultraflash_cli.console import Console
from ultraflash_cli.jobs.events import Event, Serving
from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.jobs.serving import server
from ultraflash_cli.main import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FRAMES, GATE_AT = 40, 20
PATIENCE_S = 120
"""Timeout, reached only on failure."""


class Gate(threading.Event):
    """Pauses the model until a viewer has made its checks while the job runs."""

    def builder(self) -> Callable[[Prepared], Any]:
        gate = self

        class Held(Doubler):
            def step(self, state: Trail, frames: list[np.ndarray]) -> tuple[Trail, list[np.ndarray]]:
                if state.seen >= GATE_AT:
                    assert gate.wait(PATIENCE_S), "nobody has opened the gate"
                return super().step(state, frames)

        return upscaling(Held)


class Viewer:
    """A client that has the key."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self.host, self.port, self.token = parts.hostname, parts.port, parts.fragment
        self.key = ""

    def ask(self, path: str, *, body: str | None = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        own = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        connection.request("GET" if body is None else "POST", path, body, own | named)
        return connection.getresponse()

    def enter(self) -> "Viewer":
        answer = self.ask("/session", body=self.token)
        assert answer.status == 200
        self.key = json.loads(answer.read())["key"]
        return self

    def follow(self) -> Iterator[dict[str, Any]]:
        """Yield every state sent over one connection."""
        with self.ask("/events") as answer:
            yield from map(json.loads, answer)


def run_served(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], watch: Callable[["Queue[str]"], None], *, at: str = "0"
) -> int:
    """Run a command with --serve while `watch` observes it in a separate thread."""
    urls: Queue[str] = Queue()
    shown = Console.on_event

    def listen(console: Console, event: Event) -> None:
        if isinstance(event, Serving):
            urls.put(event.url)
        shown(console, event)

    monkeypatch.setattr(Console, "on_event", listen)
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch, urls)
        code = main([*arguments, "--serve", at])
        watching.result(PATIENCE_S)
    return code


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=FRAMES)


def command(clip: Path, output: Path) -> list[str]:
    return ["upscale", str(clip), "-o", str(output), "--res", "2x", "--threads", "1"]


def frames_in(stream: bytes) -> int:
    with av.open(io.BytesIO(stream), "r") as container:
        return sum(1 for _ in container.decode(video=0))


def test_pictures_and_stage_times_come_while_the_job_runs_and_the_output_is_the_same(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = Gate()
    monkeypatch.setattr(Models, "upscaler", staticmethod(gate.builder()))
    told: list[str] = []

    def watch(urls: "Queue[str]") -> None:
        try:
            viewer = Viewer(urls.get(timeout=PATIENCE_S)).enter()
            told.append(urls.get(timeout=PATIENCE_S))
            states = viewer.follow()
            state = next(state for state in states if "clip" in state)
            assert state["input"] == "in.mkv" and state["state"] == "running"
            with viewer.ask(f"/video/{state['clip']}") as video:
                assert video.headers["Content-Type"] == "video/mp4"
                early = b""
                while early.count(b"moof") < 5:
                    early += video.read1()
                assert frames_in(early[: early.rindex(b"moof") - 4]) >= 4
                assert not (tmp_path / "out.mp4").exists()
                gate.set()
                whole = early + video.read()
            assert 5 <= frames_in(whole) <= FRAMES
            *_, last = states
            assert last["state"] == "done"
            assert last["frames_done"] == FRAMES and {"stamp", "reading", "model", "writing"} <= last["seconds"].keys()
            assert str(tmp_path) not in json.dumps(last)
        finally:
            gate.set()

    assert run_served(monkeypatch, command(clip, tmp_path / "out.mp4"), watch) == 0
    assert f"watch the job at {told[0]}" in capsys.readouterr().err
    assert main([*command(clip, tmp_path / "plain.mp4"), "-q"]) == 0
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in.mkv", "out.mp4", "plain.mp4"}


def test_a_link_works_once_and_requests_of_others_are_refused(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr(Models, "upscaler", staticmethod(gate.builder()))

    def watch(urls: "Queue[str]") -> None:
        try:
            viewer = Viewer(urls.get(timeout=PATIENCE_S))
            page = viewer.ask("/")
            assert page.status == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]
            assert viewer.token not in page.read().decode()
            for path in ("/events", "/video/1", "/session", "/../etc/passwd", "/page.js"):
                assert viewer.ask(path).status == 403, path
            assert viewer.ask("/session", body="guess").status == 403
            assert viewer.ask("/session", body="x" * 5000).status == 404
            viewer.enter()
            assert viewer.ask("/session", body=viewer.token).status == 403, "the link was used"
            here = f"{viewer.host}:{viewer.port}"
            for headers in (
                {"Host": f"evil.example:{viewer.port}"},
                {"Host": "127.0.0.1:1"},
                {"Host": ""},
                {"Origin": "http://evil.example"},
                {"Origin": "null"},
                {"Sec_Fetch_Site": "cross-site"},
                {"Sec_Fetch_Site": "same-site"},
            ):
                for path, body in (("/", None), ("/events", None), ("/session", "x")):
                    assert viewer.ask(path, body=body, **headers).status == 403, headers
            assert viewer.ask("/", Origin=f"http://{here}", Sec_Fetch_Site="same-origin").status == 200
            assert viewer.ask("/", Host=f"localhost:{viewer.port}").status == 200
            assert viewer.ask("/nothing").status == 404
            again = Viewer(urls.get(timeout=PATIENCE_S)).enter()
            assert again.key != viewer.key
        finally:
            gate.set()

    assert run_served(monkeypatch, [*command(clip, tmp_path / "out.mp4"), "-q"], watch) == 0


def test_a_generated_clip_is_shown_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "generator", staticmethod(generating()))

    def watch(urls: "Queue[str]") -> None:
        viewer = Viewer(urls.get(timeout=PATIENCE_S)).enter()
        states = viewer.follow()
        state = next(state for state in states if "clip" in state)
        assert state["input"] == "A sea/lake" and state["output"] == "sea.mp4" and state["codec"].startswith("avc1.")
        assert frames_in(viewer.ask(f"/video/{state['clip']}").read()) >= 1
        *_, last = states
        assert last["state"] == "done"

    generate = ["generate", "A sea/lake", "-o", str(tmp_path / "sea.mp4"), "--res", "480p", "--seconds", "0.5", "-q"]
    assert run_served(monkeypatch, [*generate, "--enc-opt", "preset=ultrafast"], watch, at="localhost:0") == 0


@pytest.mark.parametrize(
    "address", ["", "x", "127.0.0.1", "127.0.0.1:", ":99999", "::1:8000", "127.0.0.1:8 0", "no.invalid:0"]
)
def test_an_address_that_is_none_is_a_usage_error(address: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(clip), "--serve", address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--serve" in line


def test_a_port_in_use_is_one_line_before_any_work(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["upscale", str(clip), "--serve", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"127.0.0.1:{port}: address already in use; choose another port" in line
    assert [path.name for path in clip.parent.iterdir()] == ["in.mkv"]


def test_an_address_that_others_reach_is_warned_of(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(upscaling()))

    def watch(urls: "Queue[str]") -> None:
        Viewer(urls.get(timeout=PATIENCE_S)).enter()

    assert run_served(monkeypatch, command(clip, clip.with_name("out.mp4")), watch, at="0.0.0.0:0") == 0
    assert "whoever reaches this machine and has the link sees the job" in capsys.readouterr().err


DRIVER = """
<script nonce="__NONCE__">
const canvas = document.createElement("canvas");
const timer = setInterval(() => {
  if (video.error) { report({error: video.error.message}); return; }
  if (video.currentTime <= 0.2 || state.state !== "running" || !$("stages").rows.length) return;
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const drawing = canvas.getContext("2d");
  drawing.drawImage(video, 0, 0);
  const pixels = [...drawing.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data];
  const stages = [...$("stages").rows].map(row => row.cells[0].textContent);
  const asked = performance.getEntriesByType("resource").map(e => new URL(e.name))
    .filter(u => !["data:", "blob:"].includes(u.protocol) && u.origin !== location.origin).length;
  const {currentTime: at, paused} = video, {width} = canvas, {hash} = location, frames = state.frames_done;
  report({at, paused, width, pixels, stages, hash, asked, frames});
}, 50);
function report(found) {
  clearInterval(timer);
  fetch("/found", {method: "PUT", body: JSON.stringify(found)});
}
</script>
</body>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_the_video_plays_while_the_job_runs(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr(Models, "upscaler", staticmethod(gate.builder()))
    page = server.page_text().replace("</body>", DRIVER)
    monkeypatch.setattr(server, "page_text", lambda: page)
    reports: Queue[dict[str, Any]] = Queue()

    def take(handler: Any) -> None:
        reports.put(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        handler._send(200, "text/plain", b"")

    monkeypatch.setattr(server._Handler, "do_PUT", take, raising=False)

    def watch(urls: "Queue[str]") -> None:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        browser = [str(CHROMIUM), *options, "--remote-debugging-port=0", urls.get(timeout=PATIENCE_S)]
        process = subprocess.Popen(browser, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found = reports.get(timeout=PATIENCE_S)
        finally:
            gate.set()
            process.terminate()
            process.wait()
        assert "error" not in found, found
        assert found["at"] > 0.2 and not found["paused"] and found["width"] == 128
        assert found["frames"] < FRAMES, "the job still ran"
        assert len(set(found["pixels"][:3])) > 1, "a coloured picture"
        assert {"stamp", "writing"} <= set(found["stages"])
        assert found["hash"] == "" and found["asked"] == 0

    assert run_served(monkeypatch, [*command(clip, tmp_path / "out.mp4"), "-q"], watch) == 0
