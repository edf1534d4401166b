"""From a trained model and bags to predictions, each with the scores of its tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.errors import FeatureError
from wsimil.evaluation.attribution import LEAVE_ONE_OUT_TILES, ScoreKind
from wsimil.evaluation.attribution.table import attribute
from wsimil.evaluation.prediction import Prediction
from wsimil.mil.batch import pack, shared
from wsimil.mil.saved import TrainedModel


def predict(
    trained: TrainedModel,
    bags: Iterable[FeatureBag],
    *,
    max_instances: int = 100_000,
    kinds: Sequence[ScoreKind] | None = None,
    leave_one_out_tiles: int = LEAVE_ONE_OUT_TILES,
) -> Iterator[Prediction]:
    """One Prediction for each bag, in order; bags go through the model together up to `max_instances` rows.

    `kinds` are the scores of tiles that it has, None for those of `default_kinds`. What a bag gets does not depend on its
    neighbors. Raises ModelError for features of another kind, FeatureError for some that no finite answer comes of, ValueError
    for an empty bag: it has no prediction.
    """
    waiting: list[FeatureBag] = []
    rows = 0
    for bag in bags:
        trained.check_features(bag.provenance, f"slide {bag.slide_id!r}")
        if not len(bag):
            raise ValueError(f"slide {bag.slide_id!r} has no tiles, so it has no prediction")
        if waiting and rows + len(bag) > max_instances:
            yield from _predict(trained, waiting, kinds, leave_one_out_tiles)
            waiting, rows = [], 0
        waiting.append(bag)
        rows += len(bag)
    if waiting:
        yield from _predict(trained, waiting, kinds, leave_one_out_tiles)


def answer_values(
    trained: TrainedModel,
    features: NDArray[np.float16] | NDArray[np.float32],
    order_xy: NDArray[np.int64],
    *,
    slide_id: str,
) -> NDArray[np.float64]:
    """The answer [V] for one bag, of whose places `order_xy` [N, 2] the order alone is known; the bits of `predict`.

    The caller has checked that the features are of the model's kind.
    """
    logits = answer_logits(trained, features, order_xy, slide_id=slide_id)
    return np.asarray(trained.values(logits[None])[0], np.float64)


@torch.no_grad()
def answer_logits(
    trained: TrainedModel,
    features: NDArray[np.float16] | NDArray[np.float32],
    order_xy: NDArray[np.int64],
    *,
    slide_id: str,
) -> NDArray[np.float64]:
    """The logits [C] that `answer_values` rests on."""
    device = next(trained.model.parameters()).device
    packed = pack([shared(features)], xy0=[order_xy], slide_ids=[slide_id]).to(device)
    logits = attribute(trained.model, packed, outputs=trained.task.outputs, kinds=()).output.logits.double().cpu()
    return np.asarray(logits.numpy()[0], np.float64)


@torch.no_grad()
def _predict(
    trained: TrainedModel, bags: list[FeatureBag], kinds: Sequence[ScoreKind] | None, leave_one_out_tiles: int
) -> Iterator[Prediction]:
    device = next(trained.model.parameters()).device
    packed = pack(
        [shared(bag.features) for bag in bags],
        xy0=[bag.grid.xy0 for bag in bags],
        slide_ids=[bag.slide_id for bag in bags],
    )
    task = trained.task
    attribution = attribute(
        trained.model,
        packed.to(device),
        outputs=task.outputs,
        kinds=kinds,
        leave_one_out_tiles=leave_one_out_tiles,
    )
    logits = attribution.output.logits.double().cpu().numpy()
    biases = np.zeros_like(logits) if attribution.bias is None else attribution.bias.double().cpu().numpy()
    rows = zip(bags, attribution.per_bag(), logits, biases, trained.values(logits), strict=True)
    for bag, scores, row, bias, values in rows:
        if not (np.isfinite(row).all() and np.isfinite(values).all()):
            raise FeatureError(
                f"slide {bag.slide_id!r}: the model gives the logits {row.tolist()}, which are no answer; its features reach from"
                f" {bag.features.min():.4g} to {bag.features.max():.4g}: look at these, and extract the slide anew"
            )
        yield Prediction(
            slide_id=bag.slide_id,
            task=task,
            values=values,
            logits=row,
            bias=bias.copy(),
            score_names=attribution.names,
            score_rules=dict(zip(attribution.names, attribution.rules, strict=True)),
            scores=scores,
            grid=bag.grid,
            size_known=bag.size_known,
            bounds_known=bag.bounds_known,
            model=trained.facts,
        )
