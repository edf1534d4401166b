"""Errors of a replay by quantity, held against a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Bound:
    """Gap of Frobenius norms: at most `relative` of the recorded norm, and `absolute`, below which is only noise."""

    relative: float
    absolute: float


FLOAT32 = Bound(1e-5, 1e-7)
FLOAT64 = Bound(1e-10, 1e-12)
"""Two orders of the same sums of some thousand terms, in units of 1e-16."""


class Report:
    """What was compared: for each quantity its largest relative error beyond noise; `failures` says what exceeds its bound."""

    def __init__(self) -> None:
        self.errors: dict[str, float] = {}
        self.failures: list[str] = []

    def compare(
        self,
        quantity: str,
        ours: Tensor | float,
        theirs: NDArray[Any],
        *,
        bound: Bound = FLOAT32,
        detail: str = "",
        zero_by_theory: bool = False,
        own_rounding: float = 0.0,
    ) -> None:
        """Compare two tensors of as many numbers.

        `zero_by_theory` marks gradients in which both hold rounding noise alone. `own_rounding` is how far the recorded
        numbers are from the same in float64, where the file has them: nobody can be asked to be closer than that. It
        counts up to ten times the absolute bound, as no more than that is rounding.
        """
        got = torch.as_tensor(ours).detach().double().reshape(-1)
        wanted = torch.from_numpy(np.array(theirs, dtype=np.float64)).reshape(-1)
        name = f"{quantity} {detail}".strip()
        if got.shape != wanted.shape:
            self.failures.append(f"{name}: {len(got)} numbers, {len(wanted)} recorded")
            return
        gap, norm = float((got - wanted).norm()), float(wanted.norm())
        own_rounding = min(own_rounding, 10 * bound.absolute)
        allowed = bound.relative * norm + bound.absolute + own_rounding
        noise = bound.absolute
        if zero_by_theory:  # what both hold is the rounding of sums of terms of size 1
            noise *= 10
            allowed = max(allowed, noise)
        error = max(gap - noise - own_rounding, 0.0) / max(norm, noise)
        self.errors[quantity] = max(self.errors.get(quantity, 0.0), error)
        if not gap <= allowed:
            self.failures.append(f"{name}: off by {gap:.2e}, {allowed:.2e} allowed (norm {norm:.2e})")

    def compare_sets(self, quantity: str, ours: Tensor, theirs: NDArray[Any], *, detail: str = "") -> None:
        """Compare two collections of whole numbers whatever their order."""
        got, wanted = set(ours.reshape(-1).tolist()), set(np.asarray(theirs).reshape(-1).astype(np.int64).tolist())
        self.errors[quantity] = max(self.errors.get(quantity, 0.0), float(got != wanted))
        if got != wanted:
            name = f"{quantity} {detail}".strip()
            self.failures.append(f"{name}: {len(got - wanted)} too many, {len(wanted - got)} missing")

    def fail(self, message: str) -> None:
        """Note what cannot be expressed as an error."""
        self.failures.append(message)

    def line(self) -> str:
        """All quantities with their errors."""
        return ", ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
