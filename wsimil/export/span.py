"""What the colors of a heatmap span."""

from __future__ import annotations

from typing import Literal, TypeAlias

RangeKind: TypeAlias = Literal["cohort", "slide", "rank"]
"""One range for all slides, each slide's own, or the ranks of its tiles."""
