"""A slide's answer without some of its tiles, from its score table alone, where attention and contributions tell it exactly.

A softmax over fewer tiles is the same softmax divided by the attention of those that are left. So with a linear head on one
attention, `logit = bias + contributions[kept].sum() / attention[kept].sum()`; with an attention for each output each has its
own; of several that are averaged each is divided by its own sum. Sums are over what is kept: one less what is left out cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.export.answers import AnswerRule
from wsimil.export.scores import EXACT, ScoreTable
from wsimil.provenance import Json

Mix: TypeAlias = Literal["single", "uniform", "output", "mean"]
"""One attention for all outputs, the same on all tiles where a method has none, one for each output, or several averaged."""

LEAST_ATTENTION = 1e-30
_SUM_TOLERANCE = 1e-4


class NotClosedError(Exception):
    """A slide whose answer without some tiles does not follow from its table; the text says why, for people."""


class NotCalibratedError(NotClosedError):
    """A slide whose answer does not follow from its logits, so that no others can be told, by whatever model."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClosedForm:
    """What it takes: `attention` [N, H], `parts` [N, C] (contributions) and `bias` [C], all float64."""

    mix: Mix
    attention: NDArray[np.float64]
    parts: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Logits [C] of the tiles `kept` [N]. Raises ValueError where these have no attention, such as where there is none."""
        attention, parts = self.attention[kept], self.parts[kept]
        sums = attention.sum(axis=0)
        if not len(attention) or not bool((sums >= LEAST_ATTENTION).all()):
            raise ValueError("nothing is left to judge: keep tiles to which the model gives attention")
        if self.mix == "mean":
            mean = attention.mean(axis=1, keepdims=True)
            own = np.divide(parts, mean, out=np.zeros_like(parts), where=mean > 0)
            return np.asarray(self.bias + (attention / sums).mean(axis=1) @ own)
        return np.asarray(self.bias + parts.sum(axis=0) / sums)


def head_mix(method: str, config: Mapping[str, Json]) -> Mix | None:
    """How a method's attention pools, None where tiles change one another or what is left out changes more than a sum."""
    if method == "abmil":
        return "single"
    if method == "pooling":
        return "uniform" if config.get("pool") == "mean" else None
    if method == "clam":
        return "output" if config.get("branches") == "multi" else "single"
    if method == "acmil":
        return "mean" if config.get("attention") == "gated" else None
    if method == "mhim":
        base, recycle = config.get("base"), config.get("recycle")
        if not isinstance(base, Mapping) or (isinstance(recycle, Mapping) and recycle.get("at_inference")):
            return None
        return head_mix(str(base.get("name")), base)
    return None


def closed_form(table: ScoreTable, mix: Mix | None, rule: AnswerRule) -> ClosedForm:
    """The closed form of a slide, checked against its own logits and answer. Raises NotClosedError."""
    if not rule.explains(table):
        raise NotCalibratedError(
            "how these probabilities were calibrated is not known here; give with --run the model as it was when it answered, or"
            " predict again"
        )
    if mix is None:
        raise NotClosedError("this method's answer without some tiles does not follow from its scores")
    outputs = table.task.outputs
    names = [f"contribution:{name}" for name in outputs]
    if any(name not in table.score_names for name in names):
        raise NotClosedError("the score table has no contributions")
    rules = {table.rule(name) for name in names} - {EXACT}
    if rules:
        raise NotClosedError(f"contributions of this model are no exact sums ({', '.join(sorted(rules))})")
    if table.unit == "patient":
        # `bias` holds what other slides contribute, and attention that they have in all but nothing of is what counts once the
        # tiles that have the rest are left out.
        raise NotClosedError("the answer is of all slides of a patient, of which this table tells one")
    parts = np.stack([table.score(name) for name in names], axis=1).astype(np.float64)
    attention = _attention(table, mix)
    if not (np.isfinite(parts).all() and np.isfinite(attention).all() and (attention >= 0).all()):
        raise NotClosedError("not every tile was scored")
    wanted = {"single": 1, "output": len(outputs)}.get(mix, attention.shape[1])
    if attention.shape[1] != wanted or not wanted:
        raise NotClosedError(f"the score table has {attention.shape[1]} attentions, which is not what this method has")
    if bool((np.abs(attention.sum(axis=0) - 1) > _SUM_TOLERANCE).any()):
        raise NotClosedError("attention does not sum to 1 over this slide: the answer is of more slides than this one")
    form = ClosedForm(mix=mix, attention=attention, parts=parts, bias=table.bias)
    # Float32 scores are off by what was added up, not by what is left of it.
    allowed = _SUM_TOLERANCE * (1 + np.abs(table.bias) + np.abs(parts).sum(axis=0))
    whole = form.logits(np.ones(len(table), np.bool_))
    if bool((np.abs(whole - table.logits) > allowed).any()):
        raise NotClosedError("contributions and bias do not add up to the logits of this slide")
    return form


def kept_tiles(tiles: int, without: list[int]) -> NDArray[np.bool_]:
    """All of `tiles` but some, bool [tiles]. Raises ValueError for a number that is no tile's."""
    outside = [index for index in without if not 0 <= index < tiles]
    if outside:
        raise ValueError(f"tile {outside[0]} does not exist, the slide has {tiles}")
    kept = np.ones(tiles, np.bool_)
    kept[without] = False
    return kept


def _attention(table: ScoreTable, mix: Mix) -> NDArray[np.float64]:
    """[N, H]."""
    if mix == "uniform":
        return np.full((len(table), 1), 1 / len(table))
    columns = [i for i, name in enumerate(table.score_names) if name.partition(":")[0] == "attention"]
    return np.ascontiguousarray(table.scores[:, columns]).astype(np.float64)
