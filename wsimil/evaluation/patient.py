"""One answer for all slides of a patient, and what each tile of each slide said to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.evaluation.attribution import LEAVE_ONE_OUT_TILES, ScoreKind
from wsimil.evaluation.attribution.table import attribute
from wsimil.evaluation.prediction import Prediction
from wsimil.mil.batch import pack, shared
from wsimil.mil.saved import TrainedModel


def stacked(places: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Places [n, 2] of several slides in one frame, each slide below the one before: no two meet, and each keeps its order."""
    moved, below = [], 0
    for xy0 in places:
        top = int(xy0[:, 1].min()) if len(xy0) else 0
        moved.append(xy0 + np.array([0, below - top]))
        below = int(moved[-1][:, 1].max()) + 1 if len(xy0) else below
    return np.concatenate(moved)


@torch.no_grad()
def predict_patient(
    trained: TrainedModel,
    patient_id: str,
    bags: Sequence[FeatureBag],
    *,
    kinds: Sequence[ScoreKind] | None = None,
    leave_one_out_tiles: int = LEAVE_ONE_OUT_TILES,
) -> list[Prediction]:
    """The patient's answer as a prediction for each slide that has tiles, in order; none where no slide has.

    All have the same values and logits. Scores of `kinds` (None: `default_kinds`) are in the bag of the whole patient:
    attention sums to 1 over it. `bias` of a slide is that of the patient and what its other slides contribute, so that the
    slide's contributions and it add up to the logit. Raises ModelError for features of another kind.
    """
    for bag in bags:
        trained.check_features(bag.provenance, f"slide {bag.slide_id!r}")
    filled = [bag for bag in bags if len(bag)]
    if not filled:
        return []
    task, device = trained.task, next(trained.model.parameters()).device
    joined = np.concatenate([bag.features for bag in filled])
    packed = pack([shared(joined)], xy0=[stacked([bag.grid.xy0 for bag in filled])], slide_ids=[patient_id])
    attribution = attribute(
        trained.model,
        packed.to(device),
        outputs=task.outputs,
        kinds=kinds,
        leave_one_out_tiles=leave_one_out_tiles,
    )
    logits = attribution.output.logits.double().cpu().numpy()
    (scores,) = attribution.per_bag()
    bias = np.zeros(len(task.outputs)) if attribution.bias is None else attribution.bias[0].double().cpu().numpy()
    columns = [i for i, name in enumerate(attribution.names) if name.startswith("contribution:")]
    ends = np.cumsum([len(bag) for bag in filled])
    whole = scores[:, columns].astype(np.float64).sum(axis=0)
    found = []
    for bag, end in zip(filled, ends, strict=True):
        own = np.ascontiguousarray(scores[end - len(bag) : end])
        others = whole - own[:, columns].astype(np.float64).sum(axis=0) if columns else 0.0
        found.append(
            Prediction(
                slide_id=bag.slide_id,
                task=task,
                values=trained.values(logits)[0],
                logits=logits[0].copy(),
                bias=bias + others,
                score_names=attribution.names,
                score_rules=dict(zip(attribution.names, attribution.rules, strict=True)),
                scores=own,
                grid=bag.grid,
                size_known=bag.size_known,
                bounds_known=bag.bounds_known,
                model={**trained.facts, "patient": patient_id, "patient_tiles": len(joined)},
            )
        )
    return found
