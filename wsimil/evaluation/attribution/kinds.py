"""The kinds of scores that tiles can have, by name; see `scoring.score` for what each says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from wsimil.errors import ConfigError

if TYPE_CHECKING:
    from wsimil.mil.base import MILModel

ScoreKind: TypeAlias = Literal[
    "contribution", "single", "leave_one_out", "integrated_gradients", "gradient_x_input", "attention"
]
SCORE_KINDS: Final[tuple[ScoreKind, ...]] = get_args(ScoreKind)
LEAVE_ONE_OUT_TILES: Final = 4096
"""Bags of up to so many tiles are answered anew without each of them where nobody allows more; time grows with the square."""


def default_kinds(model: MILModel) -> tuple[ScoreKind, ...]:
    """The kinds of scores that tiles get where nobody asks for others, what a heatmap shows first.

    Contributions; but each instance's own logit of TransMIL and of a maximum, where contributions say less.
    """
    return ("single" if model.shows_each_alone else "contribution", "attention")


def kinds_of(text: str) -> tuple[ScoreKind, ...]:
    """The kinds that a list with commas names. Raises ConfigError."""
    names = [name for part in text.split(",") if (name := part.strip())]
    known = {str(kind): kind for kind in SCORE_KINDS}
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown kind of score {name!r}; known are {', '.join(SCORE_KINDS)}")
    if not names:
        raise ConfigError(f"no kind of score is named; known are {', '.join(SCORE_KINDS)}")
    return tuple(dict.fromkeys(known[name] for name in names))
