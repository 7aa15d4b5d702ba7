"""The model in a separate process: `python -m tests.api.served`, and the stream on the
other side of the pipe.

VapourSynth's wheel and torch may be installed for different versions of Python.
"""

import pickle
import subprocess
import sys
from typing import Any

__all__ = ["ServedStream"]


class ServedStream:
    """A ``FrameStream`` that runs in another interpreter."""

    def __init__(self, interpreter: str, size: tuple[int, int], **options: Any) -> None:
        self._process = subprocess.Popen(
            [interpreter, "-m", "tests.api.served"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.frames_in = self.frames_out = 0
        self._call("open", size, options)

    def step(self, frames_thwc: Any) -> Any:
        return self._call("step", frames_thwc)

    def flush(self) -> Any:
        return self._call("flush")

    def save(self) -> bytes:
        return self._call("save")

    def load(self, state: bytes) -> None:
        self._call("load", state)

    def begin_scene(self, frame: int) -> None:
        self._call("begin_scene", frame)

    def close(self) -> None:
        self._process.communicate()

    def _call(self, name: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump((name, arguments), self._process.stdin)
        self._process.stdin.flush()
        answer, self.frames_in, self.frames_out = pickle.load(self._process.stdout)
        return answer


def main() -> None:
    """Serve requests until the other side closes the pipe."""
    from ultraflash_cli import open_stream

    stream: Any = None
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if name == "open":
            size, options = arguments
            stream = open_stream(size, **options)
            answer = None
        else:
            answer = getattr(stream, name)(*arguments)
        pickle.dump((answer, stream.frames_in, stream.frames_out), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
