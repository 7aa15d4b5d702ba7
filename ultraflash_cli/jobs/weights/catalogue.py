"""What a name on the command line means in the list of weights."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from ultraflash_cli.errors import UsageError
from ultraflash_cli.weights.manifest import WeightEntry, WeightSet, read_manifest, read_sets

__all__ = ["Catalogue", "read_catalogue"]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The list of weights: single ones and sets."""

    entries: Mapping[str, WeightEntry]
    sets: Mapping[str, WeightSet]

    def choose(self, name: str) -> list[WeightEntry]:
        """Return the entries that a name means: one, a set's, or all below it (``wan``, ``wan/tokenizer``).

        Raises UsageError, with the nearest names, for one that means nothing.
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
    """Return the program's own list of weights."""
    return Catalogue(entries=read_manifest(), sets=read_sets())
