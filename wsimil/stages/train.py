"""train: feature files and a cohort to a model, its history, and its answers on the slides it did not learn from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from wsimil.cohort import BagUnit, Cohort, read_cohort
from wsimil.errors import ConfigError, TrainingError
from wsimil.evaluation.decision import (
    Decision,
    DecisionConfig,
    ValidationAnswers,
    check_decision,
    fit_decision,
    load_decided,
    mean_feature,
    save_decision,
)
from wsimil.evaluation.predictor import answer_logits
from wsimil.files import check_writable, write_text
from wsimil.mil import registry
from wsimil.mil.saved import WEIGHTS, TrainedModel, load_model
from wsimil.provenance import Provenance
from wsimil.splits import read_plan
from wsimil.stages.answers import answer_from, answer_of_patient, estimate_splits, write_answers
from wsimil.stages.cohort_features import MatchedFeatures, PatientBags, StoredBags, match
from wsimil.stages.device import resolve_device, tell_slow_precision
from wsimil.stages.features import open_features
from wsimil.stages.interrupt import interrupt
from wsimil.stages.occupied import occupied
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.run_folder import clear_run, refuse_untrained
from wsimil.stages.train_config import SplitConfig, TrainConfig
from wsimil.stages.work_items import DONE
from wsimil.store import FeatureStore
from wsimil.training.fit import fit, fitted_task, instance_counts
from wsimil.training.loading import BagSource
from wsimil.training.objective import check_options
from wsimil.training.objective import resolved as resolve_fit
from wsimil.training.records import EpochRecord, FitResult

if TYPE_CHECKING:
    from wsimil.evaluation.bootstrap import Estimate

_SPELLED = {"auroc": "AUROC", "mae": "MAE", "c_index": "C-index", "kappa": "quadratic kappa"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """How a run ended: the fit, the cohort with its splits, a digest of what its features hold, metrics with intervals for each
    split that was held out, over slides or patients as `bag` says, and what was fitted on the validation split."""

    fit: FitResult
    cohort: Cohort
    bag: BagUnit
    contents: str
    metrics: Mapping[str, Mapping[str, Estimate]]
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """What a run would train on; `contents` is a digest of what the features hold, `kind` says how they were made."""

    cohort: Cohort
    contents: str
    kind: Provenance
    method: str
    in_dim: int


def train(
    config: TrainConfig,
    features: Path,
    cohort_csv: Path,
    out: Path,
    *,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> TrainSummary:
    """Train on `features` with the labels of `cohort_csv`, into `out`; an interrupted run goes on.

    Writes config.yaml, cohort.csv and cohort.txt, model.safetensors and model.json, metrics.jsonl, tensorboard/, checkpoint/,
    predictions.csv and .parquet of the val and test split, metrics.json. Raises WsimilError; also where another process is at
    work in `out`, and where it holds a model that was not trained there.
    """
    matched, store = _matched(config, features, cohort_csv)
    with occupied(out):
        if overwrite:
            start = config.fit.warm_start
            clear_run(out, needed=None if start is None else start / WEIGHTS)
        else:
            refuse_untrained(out)
        return _trained(config, matched, store, out, reporter or Quiet())


def plan(config: TrainConfig, features: Path, cohort_csv: Path) -> TrainPlan:
    """What `train` would train on; nothing is written. Raises WsimilError."""
    name, hyperparameters = _method(config)
    matched, store = _matched(config, features, cohort_csv)
    units, source = _units(config, matched, store)
    task = fitted_task(units)
    options = resolve_fit(config.fit, task)
    model = registry.build(name, hyperparameters, in_dim=matched.header.dim, num_classes=len(task.outputs))
    model.check_task(task)
    most = options.max_instances
    check_options(
        options, task, model, method=name, counts=lambda: instance_counts(source, units.of("train"), most=most)
    )
    return TrainPlan(
        cohort=matched.cohort,
        contents=matched.contents,
        kind=matched.header.provenance,
        method=name,
        in_dim=matched.header.dim,
    )


def cohort_lines(cohort: Cohort) -> list[str]:
    """The cohort table for a person: slides and patients by split and class, then every finding."""
    rows = [
        f"{split or 'all':<6} {label:<20} {slides:>6} slides {patients:>6} patients"
        for split, label, slides, patients in cohort.counts()
    ]
    return [*rows, *(f"note: {finding}" for finding in cohort.findings)]


def _trained(
    config: TrainConfig, matched: MatchedFeatures, store: FeatureStore, out: Path, reporter: Reporter
) -> TrainSummary:
    name, hyperparameters = _method(config)
    check_writable(out)
    cohort = matched.cohort
    device = resolve_device(config.device)
    tell_slow_precision(device, config.fit.precision, reporter)
    reporter.begin("epochs", config.fit.epochs)

    def on_epoch(record: EpochRecord) -> None:
        if record.epoch == 1 and config.fit.entropy.weight and "attention_entropy" not in record.terms:
            reporter.note(f"fit.entropy has no effect: {name!r} has no attention that is a softmax over the bag")
        reporter.finish_item(_line(record))
        interrupt.check()

    units, source = _units(config, matched, store)

    def verify() -> None:
        if told := matched.seen.replaced(store, matched.stored, matched.stored):
            raise TrainingError(
                f"features were replaced while {out} was trained, {told}; restore these to go on from the last checkpoint, or"
                " begin with the new ones by wsimil train --overwrite"
            )

    with interrupt.held():
        result = fit(
            source, units, method=name, method_config=hyperparameters,
            config=config.fit, features=matched.header.provenance, contents=matched.contents, in_dim=matched.header.dim,
            run=out, device=device, bag=config.bag, on_epoch=on_epoch, pause=lambda: interrupt.pressed,
            verify=verify,
        )  # fmt: skip
    (out / DONE).unlink(missing_ok=True)  # not before: a run of another recipe was refused, and is as it was
    resolved = registry.config_class(name).model_validate(hyperparameters).model_dump(mode="json")
    options = resolve_fit(config.fit, cohort.task)
    whole = config.model_copy(
        update={"method": {"name": name, **resolved}, "fit": options, "split": _recorded(config.split)}
    )
    write_text(out / "config.yaml", whole.to_yaml())
    write_text(out / "cohort.csv", cohort.to_csv(contents=matched.digests))
    write_text(out / "cohort.txt", "\n".join([*cohort_lines(cohort), ""]))
    learned = _decide(config.decision, load_model(out, device=device), source, units)
    verify()
    save_decision(out, learned)
    trained, decision = load_decided(out, device=device)
    units = replace(units, task=trained.task)
    held_out = [unit.slide_id for unit in units.slides if unit.split in ("val", "test")]
    if isinstance(source, PatientBags):
        answers = [answer_of_patient(trained, source, patient_id, decision=decision) for patient_id in held_out]
    else:
        answers = [answer_from(trained, store, slide_id, decision=decision) for slide_id in held_out]
    verify()
    metrics = estimate_splits(answers, units)
    write_answers(out, answers, trained, cohort=units)
    write_text(
        out / "metrics.json",
        json.dumps({s: {n: asdict(e) for n, e in m.items()} for s, m in metrics.items()}, indent=2) + "\n",
    )
    return TrainSummary(
        fit=result, cohort=cohort, bag=config.bag, contents=matched.contents, metrics=metrics, decision=decision
    )


def _decide(config: DecisionConfig, trained: TrainedModel, source: BagSource, units: Cohort) -> Decision:
    """What the validation split says of the model's answers, and the training split of its features."""
    val, learned = units.of("val"), units.of("train")
    logits = []
    for unit in val:
        bag = source.load(unit.slide_id)
        logits.append(answer_logits(trained, bag.features, bag.xy0, slide_id=unit.slide_id))
    answers = ValidationAnswers(
        logits=np.stack(logits), targets=np.asarray(units.targets(val)), patients=tuple(u.patient_id for u in val)
    )
    means = None
    if config.ood != "none":
        means = np.stack([mean_feature(source.load(unit.slide_id).features) for unit in learned])
    owners = [unit.patient_id for unit in learned]
    return fit_decision(config, trained, answers, training_means=means, training_patients=owners)


def _method(config: TrainConfig) -> tuple[str, dict[str, JsonValue]]:
    hyperparameters = dict(config.method)
    name = hyperparameters.pop("name", "abmil")
    if not isinstance(name, str):
        raise ConfigError(f"method.name: got {name!r}, wanted one of {', '.join(registry.names())}")
    return name, hyperparameters


def _units(
    config: TrainConfig, matched: MatchedFeatures, store: FeatureStore
) -> tuple[Cohort, StoredBags | PatientBags]:
    """What a row of the cohort is to the model, and its bags."""
    bags = StoredBags(store=store)
    if config.bag == "slide":
        return matched.cohort, bags
    units = matched.cohort.by_patient()
    return units, PatientBags(bags=bags, members={row.slide_id: row.members for row in units.slides})


def _matched(config: TrainConfig, features: Path, cohort_csv: Path) -> tuple[MatchedFeatures, FeatureStore]:
    """What to train on, with its splits. Raises WsimilError, also for a decision that means nothing for the cohort's task."""
    cohort = read_cohort(cohort_csv, task=config.task.build(), bag=config.bag)
    store = open_features(features)
    matched = match(cohort, store, where=features, bag=config.bag)
    check_decision(config.decision, matched.cohort.task)
    return replace(matched, cohort=_with_splits(matched.cohort, config)), store


def _with_splits(cohort: Cohort, config: TrainConfig) -> Cohort:
    split = config.split
    if split.file is None:
        if split.round is not None or split.digest is not None:
            raise ConfigError("split.round and split.digest are of a splits file; give split.file too")
        return cohort.with_splits(
            seed=split.seed,
            val_fraction=split.val_fraction,
            test_fraction=split.test_fraction,
            folds=split.folds,
            fold=split.fold,
        )
    if split.folds is not None or split.fold:
        raise ConfigError(
            "split.folds and split.fold draw splits, and split.file holds drawn ones; drop the one or the other"
        )
    plan = read_plan(split.file)
    if split.digest not in (None, plan.digest):
        raise ConfigError(
            f"split.digest: {split.digest} was written by an earlier run, {split.file} has {plan.digest} now: other splits;"
            " restore the file, or drop split.digest to train on these"
        )
    return plan.in_round(cohort, split.round, bag=config.bag)


def _recorded(split: SplitConfig) -> SplitConfig:
    if split.file is None:
        return split
    plan = read_plan(split.file)
    return split.model_copy(update={"digest": plan.digest, "round": plan.round(split.round).name})


def _line(record: EpochRecord) -> str:
    from wsimil.export.report.cells import shown  # whoever plans a run does without

    watched = ", ".join(
        f"val {_SPELLED.get(name, name)} {'undefined' if value is None else shown(value)}"
        for name, value in record.val.items()
    )
    return (
        f"epoch {record.epoch}: train loss {record.train_loss:.4f}, val loss {record.val_loss:.4f}, {watched},"
        f" {record.seconds:.1f} s"
    )
