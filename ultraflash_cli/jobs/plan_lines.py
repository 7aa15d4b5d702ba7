"""Plans in a few lines for people."""

from collections.abc import Sequence
from itertools import groupby

from ultraflash_cli.jobs.events import GenerationPlanned, Planned

__all__ = ["count_of", "describe", "headline"]

_PROMPT_COLUMNS = 60
"""Maximum width of a prompt in a line."""
_GROUPS_SHOWN = 6
"""Maximum number of groups that are listed one by one."""


def headline(plan: Planned) -> str:
    """Return a short description of what will be made."""
    frames = f", {count_of(plan.frames_total, 'frame')}" if plan.frames_total else ""
    size = f"{plan.width}x{plan.height}"
    if isinstance(plan, GenerationPlanned):
        return f"{size}, {plan.seconds:.2f} s{frames}, model {plan.model}, seed {plan.seed}"
    return f"{plan.source_width}x{plan.source_height} to {size}{frames}, model {plan.model}"


def describe(plan: Planned) -> list[str]:
    """Return a few lines that describe a plan."""
    if isinstance(plan, GenerationPlanned):
        return _describe_generation(plan)
    size = f"{plan.source_width}x{plan.source_height} -> {plan.width}x{plan.height}"
    lines = [
        f"{plan.input} -> {plan.output}",
        f"  {size}, model {plan.model} x{plan.scale}, {_encoding(plan)}",
    ]
    lines += [f"  kept: {', '.join(plan.kept)}"] if plan.kept else []
    return lines + [f"  left out: {reason}" for reason in plan.dropped]


def _describe_generation(plan: GenerationPlanned) -> list[str]:
    prompt = plan.input if len(plan.input) <= _PROMPT_COLUMNS else f"{plan.input[: _PROMPT_COLUMNS - 3]}..."
    variant = ", long variant" if plan.long else ""
    lines = [
        f"{prompt} -> {plan.output}",
        f"  {plan.width}x{plan.height}, {plan.seconds:.2f} s, {count_of(plan.frames_total or 0, 'frame')} in groups of "
        f"{_groups(plan.groups)}",
        f"  model {plan.model} x{plan.scale}{variant}, seed {plan.seed}, {_encoding(plan)}",
    ]
    lines += [f"  cache management: {plan.cache_management}"] if plan.cache_management != "off" else []
    return lines + ([f"  and {plan.source_width}x{plan.source_height} -> {plan.low_output}"] if plan.low_output else [])


def _encoding(plan: Planned) -> str:
    hardware = f" by {plan.encoder}" if plan.encoder.endswith("_nvenc") else ""
    return f"{plan.codec} {plan.pix_fmt}{hardware}"


def count_of(count: int, thing: str) -> str:
    """Return how many there are of a thing, in words: `1 frame`, `2 frames`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _groups(lengths: Sequence[int]) -> str:
    """Return the lengths of groups; those of a long clip that are alike once."""
    if len(lengths) <= _GROUPS_SHOWN:
        return ", ".join(map(str, lengths))
    runs = [(length, len(list(alike))) for length, alike in groupby(lengths)]
    return ", ".join(f"{length}" if times == 1 else f"{length} ({times} times)" for length, times in runs)
