"""One slide or patient through explain-check: every run that is to judge it, every score, and their agreement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from wsimil.errors import FeatureError, ModelError
from wsimil.evaluation.attribution import ScoreKind
from wsimil.evaluation.attribution.answered import answered
from wsimil.evaluation.attribution.scored import Scored
from wsimil.evaluation.attribution.scoring import score
from wsimil.evaluation.calibration import frozen_calibrations
from wsimil.evaluation.cases import Floats, Ints
from wsimil.evaluation.faithfulness.cohort import rank_correlation
from wsimil.evaluation.faithfulness.flipping import FlipConfig
from wsimil.evaluation.faithfulness.froc import alarms
from wsimil.evaluation.faithfulness.judged import Labelled, MapRow
from wsimil.evaluation.faithfulness.maps import BagMaps
from wsimil.evaluation.faithfulness.randomized import reinitialized
from wsimil.evaluation.faithfulness.said import READINGS, Answers, Said, said_of
from wsimil.evaluation.faithfulness.slide import FEWEST_TILES, FlippedBag, flip
from wsimil.evaluation.faithfulness.subbags import SubBags
from wsimil.files import atomic_path
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, pack, shared
from wsimil.stages.cohort_features import PatientBags, StoredBags
from wsimil.stages.explain_runs import CheckedRun, Held
from wsimil.stages.explain_truth import TruthFolder
from wsimil.store import FeatureStore

_OTHER_KIND = "give features that the model's encoder and tiling made"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One curve of one slide as it stands in curves.parquet; of random orders `score` is empty."""

    run: str
    unit: str
    score: str
    order: str
    kept: Ints
    answers: Answers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Known:
    """What is known of one slide of a bag, whose instances are `rows` of it and lie at `xy0`, level-0 px."""

    rows: slice
    xy0: NDArray[np.int64]
    positive: NDArray[np.bool_]
    lesions: shapely.MultiPolygon
    size0: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scores:
    """The scores of each kind that a model gives one bag, and how they become `maps`."""

    of: Mapping[ScoreKind, Scored]
    maps: BagMaps

    def column(self, kind: ScoreKind, output: int) -> Floats:
        """The map [N] of one output."""
        return self.maps.column(self.of[kind], kind, output)


class Judge:
    """Collects `rows`, `curves` and `notes` slide by slide."""

    def __init__(
        self,
        *,
        runs: Sequence[CheckedRun],
        store: FeatureStore,
        kinds: Sequence[ScoreKind],
        truth: TruthFolder | None,
        held: Held,
        config: FlipConfig,
    ) -> None:
        self.rows: list[MapRow] = []
        self.curves: list[Curve] = []
        self.truth = truth
        self._runs, self._store, self._kinds, self._held, self._config = runs, store, kinds, held, config
        self._lacking: dict[str, str] = {}
        self._shared = [0, 0]
        self._drawn = cache(reinitialized)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the scores that are not there, and of stability."""
        pairs, blind = self._shared
        seen = (
            f"of {pairs} pairs of maps that stability compares, {pairs - blind} are of a slide that one of both models had"
            " learned from"
        )
        return (*self._lacking.values(), *([seen] if pairs > blind else []))

    def judge(self, unit: str) -> str:
        """Judge all maps of one unit; a line that says how it went. Raises WsimilError, and then nothing is kept of the unit."""
        features, xy0, known = self._load(unit)
        if len(features) < FEWEST_TILES:
            raise FeatureError(
                f"{len(features)} tiles are too few to be dropped one after another; wanted {FEWEST_TILES}"
            )
        rows: list[MapRow] = []
        curves: list[Curve] = []
        scored: dict[str, _Scores] = {}
        said: Said | None = None
        for run in self._runs:
            model = run.trained.model
            if run.name not in self._held.units[unit] and not self._has_peer(run, unit):
                continue
            bag = pack([shared(features)], xy0=[xy0], slide_ids=[unit]).to(next(model.parameters()).device)
            scored[run.name] = self._scores(run, bag)
            if run.name in self._held.units[unit]:
                flipped = self._flip(run, bag, scored[run.name], unit)
                said = said or flipped.said
                rows += self._rows(run, unit, bag, flipped, scored[run.name], known)
                curves += _curves(run.name, unit, flipped)
        if said is not None:
            rows = self._with_stability(rows, scored, said, unit)
        self.rows += rows
        self.curves += curves
        first = next((row for row in rows), None)
        if first is None:
            raise ModelError("no score that was asked for is given by a model")
        return f"{unit}: {first.tiles} tiles, {first.score} SRG {first.numbers['srg']:+.3f}"

    def _load(
        self, unit: str
    ) -> tuple[NDArray[np.float16] | NDArray[np.float32], NDArray[np.int64], tuple[_Known, ...]]:
        slides = self._held.slides[unit]
        for slide in slides:
            header = self._store.header(slide)
            if header.n:
                for run in self._runs:
                    run.trained.check_features(header.provenance, f"slide {slide!r}", remedy=_OTHER_KIND)
        filled = tuple(slide for slide in slides if self._store.header(slide).n)
        bags = StoredBags(store=self._store)
        if self._held.unit == "patient":
            if not filled:
                raise FeatureError("no slide has a tile")
            found = PatientBags(bags=bags, members={unit: filled}).load(unit)
        else:
            found = bags.load(unit)
        return found.features, found.xy0, tuple(self._known(filled))

    def _known(self, slides: Sequence[str]) -> Iterator[_Known]:
        """What is known of slides that lie one after another in a bag."""
        begin = 0
        for slide in slides:
            rows = slice(begin, begin + self._store.header(slide).n)
            path = None if self.truth is None else self.truth.path(slide)
            if self.truth is not None and path is not None:
                bag = self._store.read(slide)
                grid, (positive, lesions) = bag.grid, self.truth.of(path, bag)
                yield _Known(rows=rows, xy0=grid.xy0, positive=positive, lesions=lesions, size0=grid.size0)
            begin = rows.stop

    def _has_peer(self, run: CheckedRun, unit: str) -> bool:
        """Whether another run of the method judges the unit, so that their maps are compared."""
        return any(
            other.method == run.method and other.name != run.name and other.name in self._held.units[unit]
            for other in self._runs
        )

    def _scores(self, run: CheckedRun, bag: BagBatch) -> _Scores:
        found: dict[ScoreKind, Scored] = {}
        for kind in self._kinds:
            try:
                one = self._score(run.trained.model, bag, kind)
            except ModelError as error:
                self._lacking.setdefault(f"{run.name}/{kind}", f"{run.name} has no {kind}: {error}")
                continue
            if not bool(one.values.isfinite().all()):
                why = f"{run.name}: {kind} of {bag.slide_ids[0]!r} is not finite for every tile, so it is not judged there"
                self._lacking.setdefault(f"{run.name}/{kind}/{bag.slide_ids[0]}", why)
                continue
            found[kind] = one
        trained = run.trained
        own, _ = frozen_calibrations(trained.calibration)
        logits = _logits(trained.model, bag)
        return _Scores(of=found, maps=BagMaps(model=trained.model, task=trained.task, logits=logits, calibration=own))

    def _score(self, model: MILModel, bag: BagBatch, kind: ScoreKind) -> Scored:
        return score(model, bag, kind, leave_one_out_tiles=self._config.leave_one_out_tiles)

    def _flip(self, run: CheckedRun, bag: BagBatch, scored: _Scores, unit: str) -> FlippedBag:
        trained = run.trained
        parts = SubBags(trained.model, bag, max_instances=self._config.max_instances)
        logits = scored.maps.logits
        said = said_of(trained.task, trained.values(logits[None])[0], logits)
        maps = [scored.maps.tile_map(one, kind, said) for kind, one in scored.of.items()]
        # Of the slide alone, so that what is judged beside it changes nothing.
        rng = np.random.default_rng([self._config.seed, crc32(unit.encode("utf-8", "surrogatepass"))])
        return flip(parts, maps, said, task=trained.task, values_of=trained.values, config=self._config, rng=rng)

    def _rows(
        self,
        run: CheckedRun,
        unit: str,
        bag: BagBatch,
        flipped: FlippedBag,
        scored: _Scores,
        known: Sequence[_Known],
    ) -> list[MapRow]:
        said, random = flipped.said, self._of_random_weights(run, scored.maps, bag)
        rows = []
        for kind, own in zip(scored.of, flipped.maps, strict=True):
            labelled = None
            if known and self.truth is not None:
                there = scored.column(kind, self.truth.index)
                labelled = Labelled(
                    positive=np.concatenate([slide.positive for slide in known]),
                    scores=np.concatenate([there[slide.rows] for slide in known]),
                    alarms=tuple(alarms(there[each.rows], each.xy0, each.size0, each.lesions) for each in known),
                )
            rows.append(
                MapRow(
                    unit=unit,
                    patient=self._held.patients[unit],
                    run=run.name,
                    method=run.method,
                    score=kind,
                    rule=own.rule,
                    said=said.name,
                    measure=said.measure,
                    tiles=flipped.tiles,
                    most_first=own.most_first.strength,
                    least_first=own.least_first.strength,
                    random=flipped.random.strength.mean(axis=(0, 1)),
                    numbers={**own.numbers, **self._against_random_weights(kind, scored, random, bag, said)},
                    labelled=labelled,
                )
            )
        return rows

    def _of_random_weights(self, run: CheckedRun, maps: BagMaps, bag: BagBatch) -> list[BagMaps]:
        """The maps of models that never learned, and so were never calibrated."""
        seeds = range(self._config.seed, self._config.seed + self._config.inits)
        drawn = [self._drawn(run.trained.model, run.trained.method, seed=seed) for seed in seeds]
        return [replace(maps, model=model, logits=_logits(model, bag), calibration=None) for model in drawn]

    def _against_random_weights(
        self, kind: ScoreKind, scored: _Scores, random: Sequence[BagMaps], bag: BagBatch, said: Said
    ) -> dict[str, float]:
        """How much the map resembles those of models whose weights are random, mean over these."""
        own = scored.column(kind, said.output)
        found = []
        for maps in random:
            there = maps.column(self._score(maps.model, bag, kind), kind, said.output)
            found.append(rank_correlation(own, there))
        known = [one for one in found if np.isfinite(one)]
        if not known:
            return {}
        return {"randomized": float(np.mean(known)), "randomized_size": float(np.mean(np.abs(known)))}

    def _with_stability(self, rows: list[MapRow], scored: dict[str, _Scores], said: Said, unit: str) -> list[MapRow]:
        """The rows with the mean rank correlation between maps of two runs of one method, for what the first of them said."""
        held = self._held.units[unit]
        by_name = {run.name: run for run in self._runs}
        found: dict[tuple[str, ScoreKind], list[float]] = {}
        for first, second in combinations(scored, 2):
            ours, theirs = by_name[first], by_name[second]
            if ours.method != theirs.method or not {first, second} & held:
                continue
            for kind in scored[first].of.keys() & scored[second].of.keys():
                pair = [scored[name].column(kind, said.output) for name in (first, second)]
                found.setdefault((ours.method, kind), []).append(rank_correlation(*pair))
                self._shared[0] += 1
                self._shared[1] += {first, second} <= held
        result = []
        for row in rows:
            known = [
                one
                for (method, kind), all_ in found.items()
                if (method, kind) == (row.method, row.score)
                for one in all_
            ]
            known = [one for one in known if np.isfinite(one)]
            numbers = {**row.numbers, "stability": float(np.mean(known))} if known else row.numbers
            result.append(replace(row, numbers=numbers))
        return result


def write_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Write every curve, one row a step: run, unit, score, order, step, kept (tiles), and what `Answers` holds.

    Raises OutputError.
    """
    lengths = [len(one.kept) for one in curves]

    def spread(name: str) -> pa.Array:
        values = [getattr(one, name) for one in curves]
        return pa.array(np.repeat(np.array(values, dtype=object), lengths), type=pa.string()).dictionary_encode()

    columns = {name: spread(name) for name in ("run", "unit", "score", "order")}
    columns["step"] = pa.array(np.concatenate([np.arange(length) for length in lengths]))
    columns["kept"] = pa.array(np.concatenate([one.kept for one in curves]))
    for name in READINGS.values():
        columns[name] = pa.array(np.concatenate([getattr(one.answers, name) for one in curves]))
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _logits(model: MILModel, bag: BagBatch) -> Floats:
    """What a model answers for one bag, [C]."""
    return np.asarray(answered(model, bag).output.logits[0].double().cpu().numpy(), np.float64)


def _curves(run: str, unit: str, flipped: FlippedBag) -> list[Curve]:
    kept = flipped.tiles - flipped.dropped

    def curve(score_: str, order: str, one: Answers) -> Curve:
        return Curve(run=run, unit=unit, score=score_, order=order, kept=kept, answers=one)

    found = []
    for own in flipped.maps:
        found += [curve(own.score, "most_first", own.most_first), curve(own.score, "least_first", own.least_first)]
    for number in range(len(flipped.random.strength)):
        for reading, name in enumerate(("forwards", "backwards")):
            found.append(curve("", f"random {number + 1} {name}", flipped.random.each(itemgetter((number, reading)))))
    return found
