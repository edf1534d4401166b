"""One bag: how faithful each of its maps is, beside random orders of the same tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsimil.errors import FeatureError
from wsimil.evaluation.cases import Floats, Ints
from wsimil.evaluation.faithfulness.flipping import (
    FlipConfig,
    aupc,
    dropped_counts,
    kept,
    most_important_first,
    top_count,
)
from wsimil.evaluation.faithfulness.said import Said
from wsimil.evaluation.faithfulness.subbags import SubBags
from wsimil.targets import Task

FEWEST_TILES = 4
"""A slide of fewer tiles has no order worth the name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileMap:
    """A score of each tile, [N], higher where it speaks for what was said.

    `total`: what the scores sum to with the bias, turned alike, where the score claims that this is the logit. `rule` says how
    the score was computed.
    """

    score: str
    values: Floats
    rule: str = ""
    total: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curves:
    """What is left of an answer and of its logit after each share was dropped, [..., S]; both as `Said` turns them."""

    strength: Floats
    logit: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlippedMap:
    """One map of one bag: curves of both readings of its order, and `numbers` by name, NaN where undefined.

    Of the strength of the answer: `aupc_most_first`, `aupc_least_first`, `srg` their difference (least less most); of random
    orders `random_srg`, the mean, `random_spread`, their standard deviation, and `random_aupc`, their mean area; `margin` is
    `srg` less `random_srg`. The same of the logit with `_logit` behind. `whole` is the answer for all tiles, `top_0.05` that for
    that share alone, `without_top_0.05` for the others, and `random_0.05`, `without_random_0.05` for as many at random, mean over
    orders. `completeness_gap` is |sum + bias - logit|, and `completeness_share` that over |logit|.
    """

    score: str
    rule: str
    most_first: Curves
    least_first: Curves
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlippedBag:
    """One bag with all its maps; `random` [R, 2, S] are the curves of random orders, read forwards and backwards."""

    said: Said
    tiles: int
    dropped: Ints
    random: Curves
    maps: tuple[FlippedMap, ...]


def flip(
    bags: SubBags,
    maps: Sequence[TileMap],
    said: Said,
    *,
    task: Task,
    values_of: Callable[[Floats], Floats],
    config: FlipConfig,
    rng: np.random.Generator,
) -> FlippedBag:
    """Drop tiles by every map, both ways, and by random orders; `values_of` gives the task's answers [n, V] for logits [n, C].

    It costs 2 (M + R) (S - 1) parts of half the bag on average for M maps, R orders and S shares, and a few for tops.
    Raises FeatureError for a bag of fewer than four tiles, ValueError for maps of other tiles or with scores that are not finite.
    """
    tiles = len(bags)
    if tiles < FEWEST_TILES:
        raise FeatureError(f"{tiles} tiles are too few to be dropped one after another; wanted {FEWEST_TILES} or more")
    for one in maps:
        if one.values.shape != (tiles,):
            raise ValueError(f"score {one.score!r} is of {list(one.values.shape)} tiles, the bag has {tiles}")
    random = [rng.permutation(tiles).astype(np.int64) for _ in range(config.random_orders)]
    ordered = [most_important_first(one.values, rng) for one in maps]
    asked = _Asked(tiles=tiles, config=config)
    logits = bags.logits(asked.parts([*random, *ordered]))
    curves, tops = asked.read(
        said.strength(task, values_of(logits)), said.logit(logits), count=len(random) + len(ordered)
    )
    chance = Curves(
        strength=np.stack([c.strength for c in curves[: len(random)]]),
        logit=np.stack([c.logit for c in curves[: len(random)]]),
    )
    by_chance = _by_chance(chance, tops[: len(random)], config)
    found = [
        _judge(one, both, top, by_chance, config)
        for one, both, top in zip(maps, curves[len(random) :], tops[len(random) :], strict=True)
    ]
    return FlippedBag(said=said, tiles=tiles, dropped=asked.dropped, random=chance, maps=tuple(found))


class _Asked:
    """Which parts are asked about, each once, and where their answers stand: the whole bag first, then order by order."""

    def __init__(self, *, tiles: int, config: FlipConfig) -> None:
        self._tiles, self._top = tiles, [top_count(tiles, share) for share in config.top]
        self.dropped = dropped_counts(tiles, config.shares)
        # A small slide has the same part at several shares.
        self._counts, self._where = np.unique(self.dropped, return_inverse=True)

    def parts(self, orders: Sequence[Ints]) -> Iterator[Ints]:
        yield np.arange(self._tiles)
        for order in orders:
            for reading in (order, order[::-1]):
                for count in self._counts[1:]:
                    yield kept(reading, int(count))
            for top in self._top:
                yield np.sort(order[:top])
                yield np.sort(order[top:])

    def read(self, strength: Floats, logit: Floats, *, count: int) -> tuple[list[Curves], list[Floats]]:
        """For each of `count` orders its curves [2, S], and the strength [top, 2] of its top alone and of the others."""
        steps, tops = len(self._counts) - 1, len(self._top)
        curves, found = [], []
        for number in range(count):
            begin = 1 + number * (2 * steps + 2 * tops)
            both = [self._curve(all_, begin, steps) for all_ in (strength, logit)]
            curves.append(Curves(strength=both[0], logit=both[1]))
            found.append(strength[begin + 2 * steps : begin + 2 * steps + 2 * tops].reshape(tops, 2))
        return curves, found

    def _curve(self, answers: Floats, begin: int, steps: int) -> Floats:
        own = answers[begin : begin + 2 * steps].reshape(2, steps)
        whole = np.concatenate([np.full((2, 1), answers[0]), own], axis=1)
        return np.asarray(whole[:, self._where], np.float64)


def _by_chance(chance: Curves, tops: Sequence[Floats], config: FlipConfig) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for tail, curves in (("", chance.strength), ("_logit", chance.logit)):
        areas = aupc(config.shares, curves)  # [R, 2]
        gaps = areas[:, 1] - areas[:, 0]
        numbers[f"random_aupc{tail}"] = float(areas.mean())
        numbers[f"random_srg{tail}"] = float(gaps.mean())
        numbers[f"random_spread{tail}"] = float(gaps.std(ddof=1))
    for share, (alone, without) in zip(config.top, np.mean(tops, axis=0), strict=True):
        numbers[f"random_{share:.4g}"] = float(alone)
        numbers[f"without_random_{share:.4g}"] = float(without)
    return numbers


def _judge(one: TileMap, both: Curves, top: Floats, by_chance: Mapping[str, float], config: FlipConfig) -> FlippedMap:
    numbers = {"whole": float(both.strength[0, 0]), "whole_logit": float(both.logit[0, 0])}
    for tail, curves in (("", both.strength), ("_logit", both.logit)):
        most, least = aupc(config.shares, curves).tolist()
        numbers |= {f"aupc_most_first{tail}": most, f"aupc_least_first{tail}": least, f"srg{tail}": least - most}
        numbers[f"margin{tail}"] = least - most - by_chance[f"random_srg{tail}"]
    for share, (alone, without) in zip(config.top, top, strict=True):
        numbers[f"top_{share:.4g}"] = float(alone)
        numbers[f"without_top_{share:.4g}"] = float(without)
    gap = float("nan") if one.total is None else abs(one.total - numbers["whole_logit"])
    size = abs(numbers["whole_logit"])
    numbers |= {"completeness_gap": gap, "completeness_share": gap / size if size else float("nan")}
    return FlippedMap(
        score=one.score,
        rule=one.rule,
        most_first=Curves(strength=both.strength[0], logit=both.logit[0]),
        least_first=Curves(strength=both.strength[1], logit=both.logit[1]),
        numbers={**by_chance, **numbers},
    )
