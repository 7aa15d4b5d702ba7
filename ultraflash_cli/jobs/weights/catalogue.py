"""Resolve names on the command line to entries of the list of weights."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from ultraflash_cli.errors import UsageError
from ultraflash_cli.weights.manifest import WeightEntry, WeightSet, read_manifest, read_sets

__all__ = ["Catalogue", "read_catalogue"]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The list of weights, with single entries and sets."""

    entries: Mapping[str, WeightEntry]
    sets: Mapping[str, WeightSet]

    def choose(self, name: str) -> list[WeightEntry]:
        """Return the entries for a name: a single one, those of a set, or all below a
        prefix (``wan``, ``wan/tokenizer``). Raises UsageError with similar names for an
        unknown one.
        """
        if name in self.entries:
            return [self.entries[name]]
        if name in self.sets:
            return [self.entries[member] for member in self.sets[name].members]
        below = [entry for each, entry in self.entries.items() if each.startswith(f"{name.rstrip('/')}/")]
        if not name or not below:
            near = difflib.get_close_matches(name, [*self.sets, *self.entries], n=2, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else "`ultraflash weights list` shows all"
            raise UsageError(f"unknown weights {name!r}; {hint}")
        return below


def read_catalogue() -> Catalogue:
    """Return the program's list of weights."""
    return Catalogue(entries=read_manifest(), sets=read_sets())
