"""Find the first plan of a job that fits its budget: the full one, or one with
increasingly many concessions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ultraflash_cli.engine.footprint.ledger import phases_of, saved_bytes
from ultraflash_cli.engine.footprint.plan import (
    MemoryPlan,
    MemorySettings,
    MemoryStep,
    MemoryWork,
)
from ultraflash_cli.errors import OutOfMemory

__all__ = ["plan_memory"]


def plan_memory(
    work: MemoryWork,
    *,
    budget_bytes: int | None = None,
    host_budget_bytes: int | None = None,
) -> MemoryPlan:
    """Find the first plan of the ladder that fits ``budget_bytes`` (None: the full
    plan).

    The ladder: everything on the device; text encoder freed after use; generator in
    host memory while a group is refined; decoding latent by latent; a smaller
    ``kv_len``; smaller groups. Concessions that a later one makes unnecessary are
    dropped. On a CPU nothing can be moved. ``host_budget_bytes`` bounds what may be
    moved to host memory (None: unknown). Raises OutOfMemory with the total if the
    smallest plan is too large.
    """
    full = _full(work)
    rungs = [_FULL, *_rungs(work, host_budget_bytes)]
    if budget_bytes is None:
        return _plan(work, full, (), None)
    taken: list[_Rung] = []
    for rung in rungs:
        taken.append(rung)
        if _total(work, _apply(full, taken)) <= budget_bytes:
            return _plan(work, full, _needed(work, full, taken, budget_bytes), budget_bytes)
    smallest = _plan(work, full, tuple(taken), budget_bytes)
    most = " and ".join(part.name for part in smallest.parts[:2])
    raise OutOfMemory(
        f"the smallest plan needs {_gb(smallest.total)} GB, most of it for {most}, and "
        f"{_gb(budget_bytes)} GB may be "
        "used; choose a smaller --res, a larger --max-memory, or a device with more memory"
    )


@dataclass(frozen=True)
class _Rung:
    """A change to the settings."""

    text: str
    changes_pixels: bool
    changes: tuple[tuple[str, Any], ...]


_FULL = _Rung("", False, ())


def _full(work: MemoryWork) -> MemorySettings:
    longest = work.sr_dit.longest_kv if work.sr_dit else None
    return MemorySettings(kv_len=longest, group_latents=work.group_latents)


def _rungs(work: MemoryWork, host_budget_bytes: int | None) -> Iterator[_Rung]:
    if work.text_encoder:
        yield _Rung(
            "text encoder freed after encoding the prompt", False, (("offload_text", True),)
        )

    if work.on_gpu and work.generator and (work.decoder or work.pixels):
        rung = _Rung(
            "generator kept in host memory between groups",
            False,
            (("offload_generator", True),),
        )
        moved_bytes = phases_of(work, _apply(_full(work), [rung]))[1]
        if host_budget_bytes is None or moved_bytes <= host_budget_bytes:
            yield rung

    if work.on_gpu and work.group_latents > 1 and work.decoder:
        yield _Rung("decoding latent by latent", False, (("decode_latents", 1),))
    if work.sr_dit:
        longest = work.sr_dit.longest_kv
        for kv_len in (k for k in (2, 1) if k < longest):
            yield _Rung(
                f"SR transformer remembers {kv_len} of {longest} blocks",
                True,
                (("kv_len", kv_len),),
            )

    for group in (size for size in (4, 2) if size < work.group_latents):
        text = f"groups of {group} instead of {work.group_latents} latent frames"
        yield _Rung(text, True, (("group_latents", group),))


def _apply(full: MemorySettings, rungs: Iterable[_Rung]) -> MemorySettings:
    changes = {name: value for rung in rungs for name, value in rung.changes}
    return replace(full, **changes)


def _needed(
    work: MemoryWork, full: MemorySettings, taken: list[_Rung], budget_bytes: int
) -> tuple[_Rung, ...]:
    """Drop concessions that proved unnecessary: pixel-changing ones first, latest
    first."""
    kept = list(taken)
    for rung in sorted(reversed(taken), key=lambda rung: not rung.changes_pixels):
        fewer = [other for other in kept if other is not rung]
        if _total(work, _apply(full, fewer)) <= budget_bytes:
            kept = fewer
    return tuple(kept)


def _plan(
    work: MemoryWork,
    full: MemorySettings,
    rungs: tuple[_Rung, ...],
    budget_bytes: int | None,
) -> MemoryPlan:
    settings = _apply(full, rungs)
    said: dict[tuple[str, ...], _Rung] = {}
    for rung in rungs:  # a later rung of the same kind replaces the earlier ones
        said[tuple(name for name, _ in rung.changes)] = rung
    phases, host_bytes = phases_of(work, settings)
    return MemoryPlan(
        phases=phases,
        settings=settings,
        steps=tuple(
            MemoryStep(text=r.text, changes_pixels=r.changes_pixels)
            for r in said.values()
            if r.text
        ),
        budget_bytes=budget_bytes,
        state_bytes=saved_bytes(work, settings),
        host_bytes=host_bytes,
    )


def _total(work: MemoryWork, settings: MemorySettings) -> int:
    return max(phase.total for phase in phases_of(work, settings)[0])


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f}"
