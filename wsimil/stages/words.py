"""Counts and names as notes tell them."""

from __future__ import annotations

from collections.abc import Sequence


def unit_words(unit: str, count: int) -> str:
    """ "1 slide", "3 patients"."""
    return f"{count} {unit}{'' if count == 1 else 's'}"


def quoted(names: Sequence[str], most: int = 5) -> str:
    """The first of several names."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
