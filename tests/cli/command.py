"""The installed command in a subprocess."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

__all__ = ["COMMAND", "REPORT_KEYS", "interrupted", "ultraflash"]

COMMAND = (sys.executable, "-m", "ultraflash_cli")


REPORT_KEYS = {
    "input",
    "output",
    "model",
    "device",
    "frames_in",
    "frames_out",
    "width",
    "height",
    "fps_wall",
    "fps_model",
    "seconds",
    "peak_rss_bytes",
    "peak_vram_bytes",
    "warnings",
}


def ultraflash(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def interrupted(arguments: Sequence[object], number: signal.Signals, when: Callable[[dict[str, object]], bool]) -> int:
    """Run the command and send it the signal at the first event that `when` accepts;
    return its exit code."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--progress", "json"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    heard: list[str] = []
    for line in process.stderr:
        heard.append(line)
        if when(json.loads(line)):
            process.send_signal(number)
            break
    else:
        pytest.fail(f"the moment never came: {heard}")
    _, rest = process.communicate(timeout=300)
    if number != signal.SIGKILL:
        last = json.loads(rest.splitlines()[-1])
        assert last["event"] == "error"
        assert "the same command" in last["message"]
    return process.returncode
