"""A causal stream in plain numpy for seeking tests, with groups, a lag, and a state
that depends on the whole scene."""

import pickle
from typing import Any

import numpy as np

__all__ = ["CausalToy"]


class CausalToy:
    """Doubles frames and adds to each a trace of the earlier frames of its scene, and
    of where the scene began."""

    groups = (3, 4)
    """Number of frames in the first group of a scene and in later ones; one frame of
    each is held back."""

    def __init__(self) -> None:
        self.frames_in = self.frames_out = 0
        self.steps = 0
        self._scene = 0
        self._trace = 0
        self._waiting: list[np.ndarray] = []
        self._held: list[np.ndarray] = []

    def step(self, frames_thwc: np.ndarray) -> np.ndarray:
        done: list[np.ndarray] = []
        for frame in frames_thwc:
            self.steps += 1
            self.frames_in += 1
            self._waiting.append(frame)
            is_first = self.frames_in - len(self._waiting) == self._scene
            if len(self._waiting) == self.groups[0 if is_first else 1]:
                done += self._group()
        return self._given(done, frames_thwc)

    def flush(self) -> np.ndarray:
        shape = (self._waiting + self._held)[:1]
        done = self._group() + self._held
        given = self._given(done, np.stack(shape or [np.zeros((1, 1, 3), np.uint8)]))
        self.begin_scene(self.frames_in)
        return given

    def save(self) -> bytes:
        return pickle.dumps({name: value for name, value in vars(self).items() if name != "steps"})

    def load(self, state: bytes) -> None:
        vars(self).update(pickle.loads(state))

    def begin_scene(self, frame: int) -> None:
        self.frames_in = self.frames_out = self._scene = frame
        self._trace = 0
        self._waiting, self._held = [], []

    def _group(self) -> list[np.ndarray]:
        done = self._held
        for frame in self._waiting:
            self._trace = (self._trace * 5 + int(frame.sum()) + self._scene) % 251
            done = [*done, frame + frame.dtype.type(self._trace)]
        self._waiting = []
        self._held = done[-1:]
        return done[:-1]

    def _given(self, done: list[np.ndarray], like: np.ndarray) -> Any:
        self.frames_out += len(done)
        whole = np.stack(done) if done else np.empty((0, *like.shape[1:]), like.dtype)
        return whole.repeat(2, axis=1).repeat(2, axis=2)
