"""Patch flipping: tiles are dropped in an order, and after every step the model says what it still thinks.

Samek et al. 2017, "Evaluating the visualization of what a deep neural network has learned", IEEE TNNLS 28(11), arXiv:1509.06321;
Blücher, Vielhaben & Strodthoff 2024, "Decoupling pixel flipping and occlusion strategy for consistent XAI benchmarks", TMLR,
arXiv:2401.06654, for SRG; Hense et al. 2024, "xMIL: insightful explanations for multiple instance learning in histopathology",
NeurIPS, arXiv:2406.04280, for slides.

Here a dropped tile is taken out of the bag, not covered. The last state is that of one tile, the one that an order drops last:
a model has no answer for an empty bag.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field, field_validator

from wsimil.config import FrozenConfig
from wsimil.evaluation.attribution import LEAVE_ONE_OUT_TILES
from wsimil.evaluation.cases import Floats, Ints


class FlipConfig(FrozenConfig):
    """How maps are judged.

    `shares` of a slide's tiles that are dropped, from 0 to 1, and `top` shares that are kept alone and taken away.
    `random_orders` are drawn for each slide and read forwards and backwards. `inits`: models of new random weights that a map is
    held against. Bags of more than `leave_one_out_tiles` have no such map where a method would have to answer anew without each
    tile, and once more for each of `inits`. `seed` decides all draws; `max_instances` go through the model together, which
    changes no number; `replicates` of the bootstrap.
    """

    shares: tuple[float, ...] = tuple(step / 20 for step in range(21))
    top: tuple[float, ...] = (0.01, 0.05, 0.1)
    random_orders: int = Field(10, ge=2)
    inits: int = Field(3, ge=0)
    leave_one_out_tiles: int = Field(LEAVE_ONE_OUT_TILES, ge=2)
    seed: int = Field(0, ge=0)
    max_instances: int = Field(32_768, ge=1)
    replicates: int = Field(2000, ge=100)

    @field_validator("shares")
    @classmethod
    def _from_all_to_none(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if len(shares) < 3 or shares[0] != 0 or shares[-1] != 1 or (np.diff(shares) <= 0).any():
            raise ValueError("shares rise from 0 to 1, with one between them at least")
        return shares

    @field_validator("top")
    @classmethod
    def _parts(cls, top: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share < 1 for share in top) or len(set(top)) != len(top):
            raise ValueError("top shares lie between 0 and 1, each once")
        return top


def dropped_counts(tiles: int, shares: Sequence[float]) -> Ints:
    """How many of `tiles` are dropped at each of `shares`, halves up; one is left at the end."""
    return np.minimum(np.floor(np.asarray(shares) * tiles + 0.5).astype(np.int64), tiles - 1)


def top_count(tiles: int, share: float) -> int:
    """How many tiles the top `share` of a slide is: rounded up, one at least, and never all of several."""
    return max(1, min(int(np.ceil(share * tiles - 1e-9)), tiles - 1))


def most_important_first(scores: Floats, rng: np.random.Generator) -> Ints:
    """Rows by falling score, equal ones at random: where a slide's scores are all the same, this is a random order.

    Raises ValueError for scores that are not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    return np.lexsort((rng.random(len(scores)), -scores)).astype(np.int64)


def kept(order: Ints, dropped: int) -> Ints:
    """The rows that are left once the first `dropped` of an order are gone, in rising order."""
    return np.sort(order[dropped:])


def aupc(shares: Sequence[float], curve: Floats) -> Floats:
    """The area under curves [..., S] over the share that was dropped, by trapezoids: their mean height, of [...]."""
    heights = (curve[..., 1:] + curve[..., :-1]) / 2
    return np.asarray((heights * np.diff(np.asarray(shares))).sum(axis=-1), np.float64)
