"""What is fitted to a model's outputs after training says on which slides, and these are never the ones that it is judged
by."""

from __future__ import annotations

from wsimil.errors import ConfigError

JUDGED = ("test", "external")


def refuse_test_split(fitted_on: str, what: str) -> None:
    """Raises ConfigError where `fitted_on` names no split, or one that answers are judged on."""
    if not fitted_on or fitted_on in JUDGED:
        raise ConfigError(
            f"{what} fitted on the split {fitted_on!r}: what is chosen on slides cannot be judged on them; fit it on the"
            " validation split"
        )
