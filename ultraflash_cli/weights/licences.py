"""Licences of weights and their terms."""

from dataclasses import dataclass

__all__ = ["LICENCES", "Licence", "licence_of"]


@dataclass(frozen=True, kw_only=True)
class Licence:
    """One licence as stated by a source."""

    name: str
    """SPDX identifier, or ``not confirmed``."""
    commercial: bool | None
    """Whether commercial use is allowed; None if the licence is not known."""
    redistribution: bool | None
    """Whether redistribution is allowed."""
    conditions: str
    """Short description of the conditions."""


LICENCES: dict[str, Licence] = {
    each.name: each
    for each in (
        Licence(
            name="Apache-2.0",
            commercial=True,
            redistribution=True,
            conditions="keep the licence and notices, state changes",
        ),
        Licence(name="MIT", commercial=True, redistribution=True, conditions="keep the licence and copyright notice"),
        Licence(
            name="CC-BY-NC-SA-4.0",
            commercial=False,
            redistribution=True,
            conditions="credit the authors, share alike",
        ),
        Licence(
            name="not confirmed", commercial=None, redistribution=None, conditions="ask the authors before any use"
        ),
    )
}
"""The licences that occur in the list of weights."""


def licence_of(name: str) -> Licence:
    """Return the terms of a licence; those of an unknown name are uncertain."""
    unknown = Licence(name=name, commercial=None, redistribution=None, conditions="read its text before any use")
    return LICENCES.get(name, unknown)
