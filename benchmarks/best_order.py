"""How faithful a map could be at all: the best orders of tiles that a search finds, beside the default score's.

    python benchmarks/best_order.py --work FOLDER/idc [--methods NAME ...] [--processes 2] [--json FILE]

FOLDER is what `faithfulness.py --work FOLDER --sets idc` left: features and trained models. SRG is the area between the
probability of what was said, before calibration, with unimportant tiles dropped first and that with important ones first, so no
map can have more than the best order in each direction has. Both are searched for greedily and each by itself: at every step that
tile goes whose loss leaves the answer strongest, or weakest. What such a search finds is no proof of a bound, as a tile that
costs much now may pay later; it is what the model's answers have to give. A search asks the model n * n / 2 times a bag, so it is
for bags of few tiles.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faithfulness import METHODS

from wsimil.evaluation.attribution import default_kinds
from wsimil.evaluation.attribution.scoring import score
from wsimil.evaluation.cases import Floats, Ints
from wsimil.evaluation.faithfulness.flipping import FlipConfig, aupc, dropped_counts, kept, most_important_first
from wsimil.evaluation.faithfulness.maps import BagMaps
from wsimil.evaluation.faithfulness.said import said_of
from wsimil.evaluation.faithfulness.subbags import SubBags
from wsimil.mil.batch import BagBatch, pack, shared
from wsimil.mil.saved import TrainedModel
from wsimil.stages.cohort_features import StoredBags
from wsimil.stages.explain_runs import held_out, load_runs
from wsimil.stages.features import open_features

CONFIG = FlipConfig()
Strength = Callable[[list[Ints]], Floats]
"""How strongly a model says of parts of a bag what it said of the whole."""


def searched(strength: Strength, tiles: int, *, strongest: bool) -> Floats:
    """The answer's strength after 0, 1, ... n - 1 tiles were dropped, one by one, each the best to drop then."""
    left = np.arange(tiles)
    found = [float(strength([left])[0])]
    while len(left) > 1:
        parts = [np.delete(left, place) for place in range(len(left))]
        answers = strength(parts)
        best = int(answers.argmax() if strongest else answers.argmin())
        left = parts[best]
        found.append(float(answers[best]))
    return np.array(found)


def area(by_dropped: Floats) -> float:
    """Under the curve at the shares that `explain-check` drops."""
    return float(aupc(CONFIG.shares, by_dropped[dropped_counts(len(by_dropped), CONFIG.shares)]))


def judge(recipe: str, *, work: Path) -> dict[str, Any]:
    """Mean SRG of the default score and of the search, over all bags that a fold's model did not learn from."""
    torch.set_num_threads(1)
    runs = load_runs(sorted((work / "runs" / recipe.replace(" ", "_")).iterdir()), device="cpu")
    store = open_features(work / "features")
    held = held_out(runs, store.ids(), cohort_csv=None, split=None)
    srg = []
    for unit, names in held.units.items():
        bag = StoredBags(store=store).load(unit)
        batch = pack([shared(bag.features)], xy0=[bag.xy0], slide_ids=[unit])
        srg += [both_of(run.trained, batch) for run in runs if run.name in names]
    by_score, by_search = np.mean(srg, axis=0).tolist()
    kind = default_kinds(runs[0].trained.model)[0]
    return {"recipe": recipe, "score": kind, "bags": len(srg), "srg": by_score, "srg_of_search": by_search}


def both_of(trained: TrainedModel, batch: BagBatch) -> tuple[float, float]:
    """SRG of one bag: of the order of the default score, and of what is found in each direction."""
    model, parts = trained.model, SubBags(trained.model, batch)
    whole = parts.logits([np.arange(len(parts))])
    said = said_of(trained.task, trained.values(whole)[0], whole[0])

    def strength(asked: list[Ints]) -> Floats:
        return said.strength(trained.task, trained.task.values(parts.logits(asked)))

    kind = default_kinds(model)[0]
    maps = BagMaps(model=model, task=trained.task, logits=whole[0])
    values = maps.tile_map(score(model, batch, kind), kind, said).values
    order = most_important_first(values, np.random.default_rng(0))
    least, most = (
        area(strength([kept(reading, dropped) for dropped in range(len(parts))])) for reading in (order[::-1], order)
    )
    strongest, weakest = (area(searched(strength, len(parts), strongest=strongest)) for strongest in (True, False))
    return least - most, strongest - weakest


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    print("| method | default score | its SRG | SRG of the orders that a search finds |")
    print("|---|---|---|---|")
    with get_context("spawn").Pool(given.processes) as pool:
        for row in pool.imap(partial(judge, work=given.work), given.methods):
            rows.append(row)
            print(f"| {row['recipe']} | {row['score']} | {row['srg']:.3f} | {row['srg_of_search']:.3f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"device": "cpu", "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
