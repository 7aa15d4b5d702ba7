"""Position embeddings in frames of reference that move, and a clock."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Course", "MovingPlaces", "PlacesAndTime"]

MEMBERS = 3
"""Number of objects in a group that have hops and swings of their own."""

_WAVES = 12
"""Number of wavelengths of sines and cosines that encode a coordinate."""

_LONGEST, _SHORTEST = 64.0, 1.0
"""The longest and the shortest wavelength, in tokens."""

_BESIDE = 18.0
"""Distance from the picture, in tokens, at which coordinates are clamped."""

_HARMONICS = 2
"""Number of harmonics of an object's swing."""

_SLOW = 2
"""Number of harmonics of the slow clock."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """Motion of a frame of reference, and of what swings in it.

    The ``m``-th object of a group is ``down * t - hop * |sin(rate * t + phases[m])|``
    tokens below and ``right * t`` tokens to the right of its position, at latent frame
    ``t``.
    """

    down: float = 0.0
    """Velocity in tokens per latent frame."""
    right: float = 0.0
    """Velocity in tokens per latent frame."""
    hop: float = 0.0
    """Height of hops in tokens."""
    rate: float = 0.0
    """Angular frequency of hops and wing beats, in radians per latent frame; 0 if
    nothing swings."""
    phases: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Phase of each object of a group at latent frame 0, in radians."""


class PlacesAndTime(NamedTuple):
    """Embeddings that ``MovingPlaces`` adds to the inputs of a network."""

    places: Tensor
    """Added to the tokens: ``[B, frames, rows, columns, dim]``."""
    time: Tensor
    """Added to the timestep embedding: ``[B, frames, dim]``."""


class MovingPlaces(nn.Module):
    """Position embeddings in a frame of reference whose course the prompt chooses,
    and a clock.

    ``laps`` are the rows and columns of tokens that a frame of reference moves until
    everything is back where it was. The clock stops after ``taught_frames`` latent
    frames; without laps everything stops with it. Beside it there may be a slow clock,
    which stops after ``slow_frames``, and waves that never stop, with ``rates`` in
    radians per latent frame.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        courses: tuple[Course, ...],
        taught_frames: int,
        *,
        laps: tuple[float, float] | None = None,
        slow_frames: int = 0,
        rates: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        self.grid, self.courses, self.taught_frames = grid, courses, taught_frames
        self.laps, self.slow_frames, self.rates = laps, slow_frames, rates
        beats = 2 * (taught_frames - 1 + _SLOW * bool(slow_frames) + len(rates))
        self.choice = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU("tanh"), nn.Linear(dim, len(courses))
        )
        self.rows = nn.Linear(MEMBERS * 2 * _WAVES, dim, bias=False)
        self.columns = nn.Linear(2 * _WAVES, dim, bias=False)
        self.clock, self.modulation = (nn.Linear(beats, dim, bias=False) for _ in range(2))
        self.swing, self.swing_modulation = (
            nn.Linear(MEMBERS * 2 * _HARMONICS, dim, bias=False) for _ in range(2)
        )

    def forward(self, text: Tensor, frames: int, position: int | Tensor) -> PlacesAndTime:
        """Return the embeddings of a chunk's positions and times.

        Args:
            text: The pooled prompt, ``[B, dim]``.
            frames: Latent frames of the chunk.
            position: Index in the stream of the chunk's first latent frame.
        """
        share = self.choice(text).float().softmax(dim=-1)
        time = (torch.arange(frames, device=text.device) + position).float()
        beats = self._beats(time).to(text.dtype)
        if self.laps is None:
            time = time.clamp(max=self.taught_frames - 1)
        down, right, hop, rate = (
            time.new_tensor([getattr(course, name) for course in self.courses])
            for name in ("down", "right", "hop", "rate")
        )
        phases = time.new_tensor([course.phases for course in self.courses])

        # [course, frame, member], [course, frame, member, sines and cosines]
        angle = rate[:, None, None] * time[:, None] + phases[:, None]
        swings = (rate[:, None, None, None] != 0) * _waves(angle, _counts(_HARMONICS, time))
        hops = hop[:, None, None] * angle.sin().abs()
        lap_down, lap_right = self.laps or (None, None)
        rows_at = self._along(self.grid[0], (down[:, None] * time).unsqueeze(2), lap_down)
        columns_at = self._along(self.grid[1], right[:, None] * time, lap_right)

        rows_at = rows_at + hops.unsqueeze(3)
        row_waves = _place_waves(rows_at, self.grid[0]).movedim(2, 3).flatten(3)
        column_waves = _place_waves(columns_at, self.grid[1])
        swing = _mixed(share, swings.flatten(2)).to(text.dtype)
        rows = self.rows(_mixed(share, row_waves).to(text.dtype))
        columns = self.columns(_mixed(share, column_waves).to(text.dtype))
        moment = self.clock(beats) + self.swing(swing)
        return PlacesAndTime(
            rows.unsqueeze(3) + columns.unsqueeze(2) + moment[:, :, None, None],
            self.modulation(beats) + self.swing_modulation(swing),
        )

    def _beats(self, time: Tensor) -> Tensor:
        """Return the sines and cosines of the clocks, ``[frames, waves]``."""
        waves = [_clock(time, self.taught_frames, self.taught_frames - 1)]
        if self.slow_frames:
            waves.append(_clock(time, self.slow_frames, _SLOW))
        if self.rates:
            waves.append(_waves(time, time.new_tensor(self.rates)))
        return torch.cat(waves, dim=-1)

    @staticmethod
    def _along(size: int, moved: Tensor, lap: float | None) -> Tensor:
        """Return the coordinates ``[..., size]`` of one axis in a frame of reference,
        for displacements of any shape."""
        at = torch.arange(size, device=moved.device) - moved.unsqueeze(-1)
        if lap is None:
            return at
        first = (size - 1 - lap) / 2
        return (at - first).remainder(lap) + first


def _place_waves(at: Tensor, size: int) -> Tensor:
    """Return the sines and cosines of coordinates of an axis of ``size`` tokens, in a
    new last dimension."""
    falling = torch.linspace(0, 1, _WAVES, device=at.device)
    wave_numbers = 2 * math.pi / (_LONGEST * (_SHORTEST / _LONGEST) ** falling)
    return _waves(at.clamp(-_BESIDE, size + _BESIDE), wave_numbers)


def _clock(time: Tensor, frames: int, waves: int) -> Tensor:
    """Return the sines and cosines of a clock that stops after ``frames`` frames."""
    wave_numbers = _counts(waves, time) * (math.pi / frames)
    return _waves(time.clamp(max=frames - 1), wave_numbers)


def _counts(last: int, like: Tensor) -> Tensor:
    return torch.arange(1, last + 1, device=like.device)


def _mixed(share: Tensor, of_courses: Tensor) -> Tensor:
    """Return the mean over the first dimension, weighted by ``share [B, courses]``."""
    return torch.einsum("bk,k...->b...", share, of_courses)


def _waves(at: Tensor, wave_numbers: Tensor) -> Tensor:
    """Return the sines and cosines of coordinates, in a new last dimension."""
    phase = at.unsqueeze(-1) * wave_numbers
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
