"""One bag: how faithful each of its maps is, beside random orders of the same tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

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
from wsimil.evaluation.faithfulness.said import Answers, Said
from wsimil.evaluation.faithfulness.subbags import SubBags
from wsimil.targets import Task

FEWEST_TILES = 4
"""A slide of fewer tiles has no order worth the name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileMap:
    """A score of each tile, [N], higher where it speaks for what was said.

    `total`: what the scores sum to with the bias, turned alike, where the score claims that this is the logit, of a class its
    log-odds. `rule` says how the score was computed.
    """

    score: str
    values: Floats
    rule: str = ""
    total: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlippedMap:
    """One map of one bag: curves [S] of both readings of its order, and `numbers` by name, NaN where undefined.

    Of the strength of the answer: `aupc_most_first`, `aupc_least_first`, `srg` their difference (least less most); of random
    orders `random_srg`, the mean, `random_spread`, their standard deviation, and `random_aupc`, their mean area; `margin` is
    `srg` less `random_srg`. The same with `_uncalibrated` behind of the answer before calibration, which is what papers measure,
    and with `_logit` of the logit. `whole` is the answer for all tiles, `top_0.05` that for
    that share alone, `without_top_0.05` for the others, and `random_0.05`, `without_random_0.05` for as many at random, mean over
    orders. `completeness_gap` is |sum + bias - logit|, and `completeness_share` that over |logit|; of a class, of its log-odds.
    """

    score: str
    rule: str
    most_first: Answers
    least_first: Answers
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlippedBag:
    """One bag with all its maps; `random`, of [R, 2, S], are the curves of random orders, read forwards and backwards."""

    said: Said
    tiles: int
    dropped: Ints
    random: Answers
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
    answers = Answers(
        strength=said.strength(task, values_of(logits)),
        uncalibrated=said.strength(task, task.values(logits)),
        logit=said.logit(task, logits),
    )
    curves = answers.each(partial(asked.curves, count=len(random) + len(ordered)))
    tops = asked.tops(answers.strength, count=len(random) + len(ordered))
    chance = curves.each(lambda all_: all_[: len(random)])
    by_chance = _by_chance(chance, tops[: len(random)], config)
    found = []
    for place, one in enumerate(maps, len(random)):
        found.append(_judge(one, curves.each(itemgetter(place)), tops[place], by_chance, config))
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

    def curves(self, answers: Floats, *, count: int) -> Floats:
        """Of each of `count` orders both curves, [count, 2, S]."""
        steps = len(self._counts) - 1
        own = self._of_orders(answers, count)[:, : 2 * steps].reshape(count, 2, steps)
        whole = np.concatenate([np.full((count, 2, 1), answers[0]), own], axis=2)
        return np.asarray(whole[:, :, self._where], np.float64)

    def tops(self, answers: Floats, *, count: int) -> Floats:
        """Of each of `count` orders what its tops alone and the others say, [count, top, 2]."""
        steps, tops = len(self._counts) - 1, len(self._top)
        return self._of_orders(answers, count)[:, 2 * steps :].reshape(count, tops, 2)

    def _of_orders(self, answers: Floats, count: int) -> Floats:
        return answers[1:].reshape(count, -1)


def _by_chance(chance: Answers, tops: Floats, config: FlipConfig) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for tail, curves in chance.read():
        areas = aupc(config.shares, curves)  # [R, 2]
        gaps = areas[:, 1] - areas[:, 0]
        numbers[f"random_aupc{tail}"] = float(areas.mean())
        numbers[f"random_srg{tail}"] = float(gaps.mean())
        numbers[f"random_spread{tail}"] = float(gaps.std(ddof=1))
    for share, (alone, without) in zip(config.top, tops.mean(axis=0), strict=True):
        numbers[f"random_{share:.4g}"] = float(alone)
        numbers[f"without_random_{share:.4g}"] = float(without)
    return numbers


def _judge(one: TileMap, both: Answers, top: Floats, by_chance: Mapping[str, float], config: FlipConfig) -> FlippedMap:
    numbers = {"whole": float(both.strength[0, 0]), "whole_logit": float(both.logit[0, 0])}
    for tail, curves in both.read():
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
        most_first=both.each(itemgetter(0)),
        least_first=both.each(itemgetter(1)),
        numbers={**by_chance, **numbers},
    )
