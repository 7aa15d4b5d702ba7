"""Questions that planning asks about models, and the choice of a job's model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ultraflash_cli.models.generation import ClipPlan

__all__ = ["ModelFacts", "choose_model"]


class ModelFacts(Protocol):
    """Provides facts about models; most methods import torch."""

    def can_run_ultraflash(self, store: Path, *, scale: int, parts: tuple[str, ...]) -> bool:
        """Return whether the weights of these parts of the published model are in
        `store` and there is a GPU."""
        ...

    def has_cuda(self) -> bool:
        """Return whether torch can use an NVIDIA GPU, which `--device auto` chooses."""
        ...

    def invents_texture(self, model: str) -> bool:
        """Return whether a model adds texture to flat colours."""
        ...

    def check_upscaling(self, model: str, *, prompt: str | None, detail: float | None) -> None:
        """Raise UsageError for options that upscaling with a model does not use."""
        ...

    def plan_clip(self, model: str, **requested: Any) -> "ClipPlan":
        """See `models.generation.plan_clip`."""
        ...


def choose_model(
    model: str, store: Path | None, device: str, *, scale: int, parts: tuple[str, ...], facts: ModelFacts
) -> str:
    """Resolve ``auto`` to the published model if it can run from ``store``, else to
    ``lite``."""
    if model != "auto":
        return model
    if store is None or device.partition(":")[0] in ("cpu", "mps", "xpu") or not (store / "weights").is_dir():
        return "lite"
    return "ultraflash" if facts.can_run_ultraflash(store, scale=scale, parts=parts) else "lite"
