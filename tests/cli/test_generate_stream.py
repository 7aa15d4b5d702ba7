"""`ultraflash generate ... -o -`: frames are written to stdout while later ones are
generated."""

import io
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest

from tests.jobs.fakes import FakeGenerator, MadeState
from ultraflash_cli.jobs.planning.generate import PreparedGeneration
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameGenerator

CLUSTER = b"\x1f\x43\xb6\x75"
"""First bytes of a Matroska cluster, which holds frames."""


def test_a_clip_leaves_through_stdout_before_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ultraflash generate "..." -o - | mpv -` requires that the first cluster of
    frames is written early."""
    allowed = threading.Event()

    class Held(FakeGenerator):
        def step(self, state: MadeState) -> tuple[MadeState, list[np.ndarray], list[np.ndarray]]:
            assert state.groups < 2 or allowed.wait(60), "nothing came through the pipe"
            return super().step(state)

    def build(prepared: PreparedGeneration) -> Built[FrameGenerator]:
        model = Held(prepared.plan.pixel_frames, size=prepared.base_size)
        return Built(model=model, device="cpu", precision="fp32", weights={})

    def read(reader: BinaryIO) -> bytes:
        taken = b""
        while CLUSTER not in taken and (part := os.read(reader.fileno(), 1 << 16)):
            taken += part
        allowed.set()
        return taken + reader.read()

    monkeypatch.setattr(Models, "generator", staticmethod(build))
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(read, reader)
        with io.TextIOWrapper(open(writing, "wb")) as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            options = ["--res", "480p", "--seconds", "4", "--model", "tiny-random", "--enc-opt", "preset=ultrafast"]
            assert main(["generate", "a sea", "-o", "-", "--temp-dir", str(tmp_path), "-q", *options]) == 0
        stream = taken.result(60)
    with av.open(io.BytesIO(stream), "r") as container:
        assert sum(1 for _ in container.decode(video=0)) >= 4 * 16
        assert container.metadata["title"] == "a sea"
    assert list(tmp_path.iterdir()) == []
