"""Settings of the cascade that `benchmarks.curves` varies, one at a time."""

import sys
from dataclasses import dataclass, replace

from ultraflash_cli.engine.cache_policy import CacheManagement
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import GenerationPlan
from ultraflash_cli.engine.sparsity import (
    BlockGrid,
    allowed_blocks,
    causal_blocks,
    key_budget,
    window_blocks,
)
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.models.profile import with_cache_rules

__all__ = ["Setting", "generator_of", "key_blocks", "settings_of"]

BUDGETS = (0.04, 0.06, 0.12, 0.25, 0.50, 1.0)
"""Values of ``top_k_ratio``; with the last one the window alone limits attention."""
KV_LENS = (0, 1, 2, 3)
RULES = ("off", "kv", "steps", "refresh")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A point of a curve."""

    curve: str
    """One of ``CURVES``."""
    name: str
    profile: Profile
    refresh: float | None = None
    """Threshold of the gate that skips context passes; None for no gate."""

    def same_work(self, other: "Setting", stage: str) -> bool:
        """Return whether a stage does the same work under both settings."""
        if stage == "generator":
            mine = self.profile.generator, self.refresh
            return mine == (other.profile.generator, other.refresh)
        return stage != "sr_dit" or self.profile.sr_dit == other.profile.sr_dit

    def equals(self, other: "Setting") -> bool:
        """Return whether both generate the same clips in the same way."""
        return self.profile == other.profile and self.refresh == other.refresh


def settings_of(curve: str, profile: Profile, plan: GenerationPlan) -> list[Setting]:
    """Return the points of a curve; those of the SR transformer are none without
    one."""
    sr_dit = profile.sr_dit
    if curve == "rules":
        groups = -(-plan.total_latents // profile.group_latents)
        return [_under_rule(rule, profile, groups) for rule in RULES]
    if sr_dit is None:
        return []

    if curve == "budget":
        varied = {
            f"{100 * share:.3g} %": replace(sr_dit, top_k_ratio=share)
            for share in sorted({*BUDGETS, sr_dit.top_k_ratio})
        }
    else:
        varied = {str(length): replace(sr_dit, kv_len=length) for length in sorted({*KV_LENS, sr_dit.kv_len})}
    return [Setting(curve=curve, name=name, profile=replace(profile, sr_dit=config)) for name, config in varied.items()]


def _under_rule(text: str, profile: Profile, groups: int) -> Setting:
    """Apply a rule, which `generate` may refuse with this model because it saves too
    little."""
    rules = CacheManagement.parse(text)
    under = with_cache_rules(profile, rules, long=False, groups=groups)
    before, after = generator_of(profile), generator_of(under)
    if after.steps_of_chunk(1) == before.steps_of_chunk(1):
        under = replace(under, generator=before)
    return Setting(curve="rules", name=text, profile=under, refresh=rules.refresh)


def generator_of(profile: Profile) -> GeneratorConfig:
    assert profile.generator is not None, f"{profile.name} generates"
    return profile.generator


def key_blocks(config: SrDitConfig, height: int, width: int) -> float:
    """Return how many key blocks a query block attends to on average once the cache is
    full, for latents of this size."""
    grid = BlockGrid(config.group_latents, *config.patches(height, width), config.block)
    temporal, rows, cols = grid.blocks
    window = window_blocks(rows, cols, config.local_range)
    remembered = config.kv_len_after(sys.maxsize)
    chunk = max(1, config.chunk_frames // config.block[0])
    allowed = allowed_blocks(window, causal_blocks(temporal, remembered, chunk))
    budget = key_budget(
        grid,
        ratio=config.top_k_ratio,
        reference_tokens=config.ref_spatial_tokens,
        override=config.top_k,
    )
    pairs = min(temporal * budget, int(allowed.sum()))
    return max(1.0, pairs / (temporal * grid.spatial_blocks))
