"""What planning asks of the models, and which model a job takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ultraflash_cli.models.generation import ClipPlan

__all__ = ["ModelFacts", "choose_model"]


class ModelFacts(Protocol):
    """Answers about models; most answers load torch."""

    def can_run_ultraflash(self, store: Path, *, scale: int, parts: tuple[str, ...]) -> bool:
        """Return whether the weights of these parts of the published model are in `store` and a GPU is there."""
        ...

    def invents_texture(self, model: str) -> bool:
        """Return whether a model paints texture onto flat colours."""
        ...

    def plan_clip(self, model: str, **requested: Any) -> "ClipPlan":
        """As `models.generation.plan_clip`."""
        ...


def choose_model(
    model: str, store: Path | None, device: str, *, scale: int, parts: tuple[str, ...], facts: ModelFacts
) -> str:
    """Turn ``auto`` into the published model where it can run from ``store``, else into ``lite``."""
    if model != "auto":
        return model
    if store is None or device.partition(":")[0] in ("cpu", "mps", "xpu") or not (store / "weights").is_dir():
        return "lite"
    return "ultraflash" if facts.can_run_ultraflash(store, scale=scale, parts=parts) else "lite"
