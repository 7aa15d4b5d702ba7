"""A model that is ready to run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Built"]

ModelT = TypeVar("ModelT")


@dataclass(frozen=True, kw_only=True)
class Built(Generic[ModelT]):
    """A loaded model, and facts about it."""

    model: ModelT
    device: str
    precision: str
    weights: dict[str, str]
    """The sha256 of every weight file by its name."""
    memory_plan: str = ""
    """Description of the memory plan as far as it changes the result; work is not
    resumed with a different one."""
    planned_bytes: int | None = None
    """Size of that plan; None if there is none."""
    planned_by_device: Mapping[str, int] = field(default_factory=dict[str, int])
    """Its size on each device where there are two."""
    state_bytes: int = 0
    """Size of a saved state in bytes."""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    """Settings of the model besides its weights: condition noise, timestep, cached
    blocks."""
    warnings: tuple[str, ...] = ()
    """Warnings from loading: a truncated prompt, a smaller plan for lack of memory."""
    frame_seconds: float | None = None
    """Predicted time per frame; None if unknown."""

    def predicted_seconds(self, total: int | None, done: int) -> float | None:
        """Return the predicted time for the rest of this many frames; None if unknown."""
        return None if total is None or self.frame_seconds is None else max(0, total - done) * self.frame_seconds
