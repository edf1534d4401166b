"""What a model says of one slide, and what each tile said to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from wsimil.geometry import TileGrid
from wsimil.provenance import Json, canonical_json
from wsimil.targets import Task

_COMPLETENESS = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """One slide's answer: row i of `scores` float32 [N, K] belongs to `grid.xy0[i]`; N >= 1.

    `logits` and `bias` are float64 [C] in the order of the task's outputs, `values` float64 [V] in that of its answers, such as
    the probability of each class. A score is named by its kind, and by what it speaks of where there is more than one:
    "attention", "contribution:<output>". NaN is a tile that was not scored. `score_rules` say by name how a score was made. For
    each output with contributions `logit = contributions.sum() + bias`, where `bias` may differ from slide to slide; without
    contributions it is 0. `model` holds what made it, as plain JSON. `size_known` and `bounds_known` are those of the bag.

    A slide without tiles has no prediction; whoever predicts a cohort records it by name and reason instead.
    """

    slide_id: str
    task: Task
    values: NDArray[np.float64]
    logits: NDArray[np.float64]
    bias: NDArray[np.float64]
    score_names: tuple[str, ...]
    scores: NDArray[np.float32]
    grid: TileGrid
    model: Mapping[str, Json]
    score_rules: Mapping[str, str] = field(default_factory=dict)
    size_known: bool = True
    bounds_known: bool = True

    def __post_init__(self) -> None:
        if self.slide_id != self.grid.slide.slide_id:
            raise ValueError(f"prediction of {self.slide_id!r} with the tiles of {self.grid.slide.slide_id!r}")
        if not len(self.grid):
            raise ValueError(f"slide {self.slide_id!r} has no tiles, so it has no prediction; record it as one without")
        self._check_numbers("values", self.values, len(self.task.answers))
        for name in ("logits", "bias"):
            self._check_numbers(name, getattr(self, name), len(self.task.outputs))
        self._check_probabilities()
        self._check_scores()
        object.__setattr__(self, "score_rules", MappingProxyType(dict(self.score_rules)))
        object.__setattr__(self, "model", MappingProxyType(json.loads(canonical_json(self.model))))

    @property
    def predicted(self) -> str:
        """The answer in words, such as the class with the highest probability."""
        return self.task.decided(self.values)

    def score(self, name: str) -> NDArray[np.float32]:
        """One score, float32 [N]. Raises KeyError where the method does not give it."""
        if name not in self.score_names:
            raise KeyError(
                f"slide {self.slide_id!r} has no score {name!r}, only {', '.join(self.score_names) or 'none'}"
            )
        return self.scores[:, self.score_names.index(name)]

    def _check_probabilities(self) -> None:
        shares = self.values[[column.probability for column in self.task.answers]]
        exclusive = self.task.kind in ("classification", "ordinal")
        if np.any(shares < 0) or np.any(shares > 1 + 1e-6) or (exclusive and abs(float(shares.sum()) - 1) > 1e-6):
            wanted = "with a sum of 1" if exclusive else "and <= 1"
            raise ValueError(f"slide {self.slide_id!r}: probabilities {shares} are not >= 0 {wanted}")

    def _check_numbers(self, name: str, values: NDArray[np.float64], count: int) -> None:
        if values.dtype != np.float64 or values.shape != (count,):
            raise ValueError(f"{name} are float64 [{count}], got {values.dtype} {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"slide {self.slide_id!r}: {name} {values} are not finite")
        values.setflags(write=False)

    def _check_scores(self) -> None:
        names, scores = self.score_names, self.scores
        if len(set(names)) != len(names) or not all(names):
            raise ValueError(f"scores need names that are unique and not empty, got {names}")
        if scores.dtype != np.float32 or scores.shape != (len(self.grid), len(names)):
            raise ValueError(f"scores are float32 [{len(self.grid)}, {len(names)}], got {scores.dtype} {scores.shape}")
        if np.isinf(scores).any():
            raise ValueError(f"slide {self.slide_id!r}: {int(np.isinf(scores).sum())} scores are infinite")
        for index, label in enumerate(self.task.outputs):
            if f"contribution:{label}" in names:
                self._check_complete(label, float(self.logits[index]), float(self.bias[index]))
        scores.setflags(write=False)

    def _check_complete(self, label: str, logit: float, bias: float) -> None:
        contributions = self.score(f"contribution:{label}").astype(np.float64)
        if np.isnan(contributions).any():
            return
        # Scores were computed in float32: what they may be off by grows with what was added, not with what is left of it.
        allowed = _COMPLETENESS * (1 + abs(bias) + float(np.abs(contributions).sum()))
        total = float(contributions.sum()) + bias
        if abs(total - logit) > allowed:
            raise ValueError(
                f"slide {self.slide_id!r}: contributions to {label!r} and bias add up to {total:.6g}, the logit is {logit:.6g}"
            )
