"""Check and plan a job before its model is loaded; torch is imported only for facts
about models."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.planning.generate import GenerateJob, PreparedGeneration
from ultraflash_cli.jobs.planning.generate import prepare_generation as plan_generation
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob
from ultraflash_cli.jobs.planning.upscale import prepare as plan_upscale

if TYPE_CHECKING:
    from ultraflash_cli.models.generation import ClipPlan

__all__ = ["foreseen", "prepare", "prepare_generation"]


def prepare(job: UpscaleJob, *, to_write: bool = True, encodes_here: bool = True) -> Prepared:
    """See `planning.upscale.prepare`."""
    return plan_upscale(job, _Facts(), to_write=to_write, encodes_here=encodes_here)


def prepare_generation(job: GenerateJob, *, to_write: bool = True, encodes_here: bool = True) -> PreparedGeneration:
    """See `planning.generate.prepare_generation`."""
    return plan_generation(job, _Facts(), to_write=to_write, encodes_here=encodes_here)


def foreseen(prepared: Prepared | PreparedGeneration) -> list[str]:
    """Return the warnings that a run gives when it begins to read the clip or the prompt."""
    if isinstance(prepared, Prepared):
        from ultraflash_cli.video.decode import reading_warnings

        notes = reading_warnings(prepared.info, alpha=prepared.spec.alpha)
        return [f"{prepared.info.path.name}: {note}" for note in notes]

    from ultraflash_cli.models.profile import find_profile
    from ultraflash_cli.models.prompts import word_warnings

    notes = word_warnings(find_profile(prepared.model), prepared.prompt)
    return [f"{prepared.label}: {note}" for note in notes]


class _Facts:
    """Facts from the models, which are imported on demand."""

    def can_run_ultraflash(self, store: Path, *, scale: int, parts: tuple[str, ...]) -> bool:
        from ultraflash_cli.models.profile import ultraflash_runs

        return ultraflash_runs(store, scale=scale, parts=parts)

    def has_cuda(self) -> bool:
        import torch

        return torch.cuda.is_available()

    def invents_texture(self, model: str) -> bool:
        from ultraflash_cli.engine.profiles import PROFILES

        return model in PROFILES and PROFILES[model].invents_texture

    def check_upscaling(self, model: str, *, prompt: str | None, detail: float | None) -> None:
        from ultraflash_cli.engine.profiles import PROFILES

        if model not in PROFILES:
            return
        if prompt is not None and not PROFILES[model].upscales_by_words:
            raise UsageError(f"{model} does not use a prompt; remove --prompt")
        if detail is not None and PROFILES[model].pixels is None:
            raise UsageError(f"{model} has no adjustable detail; remove --detail")

    def plan_clip(self, model: str, **requested: Any) -> "ClipPlan":
        from ultraflash_cli.models.generation import plan_clip

        return plan_clip(model, **requested)
