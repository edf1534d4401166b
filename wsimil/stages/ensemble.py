"""ensemble: the runs of folds and seeds become one model file that predicts as one."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsimil.errors import ConfigError, ModelError
from wsimil.evaluation.decision import (
    Decision,
    DecisionConfig,
    ValidationAnswers,
    check_decision,
    fit_decision,
    mean_feature,
    save_decision,
)
from wsimil.evaluation.predictor import answer_logits
from wsimil.files import check_writable, write_text
from wsimil.mil.ensemble import ENSEMBLE, Ensemble
from wsimil.mil.saved import TrainedModel, load_model, save_model
from wsimil.stages.cohort_features import PatientBags, StoredBags
from wsimil.stages.features import open_features
from wsimil.stages.occupied import occupied
from wsimil.stages.run_folder import clear_run, refuse_taken
from wsimil.stages.words import quoted
from wsimil.store import FeatureStore
from wsimil.store.base import read_headers
from wsimil.targets import Task
from wsimil.training.loading import BagSource


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleSummary:
    """What was joined: names of the runs, how many patients a member learned from or was chosen on, and what was fitted."""

    members: tuple[str, ...]
    seen_patients: int
    decision: Decision


def ensemble(
    runs: Sequence[Path],
    out: Path,
    *,
    features: Path | None = None,
    decision: DecisionConfig | None = None,
    overwrite: bool = False,
) -> EnsembleSummary:
    """Write one model of all `runs` into `out`, a folder like that of a run: `wsimil predict` takes it.

    Its logits are the mean of theirs. Its cohort.csv calls train whatever one member learned from or was chosen on, so nothing of
    that counts as a test. With `features`, calibration and threshold are fitted on what each member says of its own validation
    slides, which it did not learn from. Raises ModelError where the runs do not answer one question on one kind of features, name
    two patients or two labels for one slide, or learned from features of another kind than `features`.
    """
    if not overwrite:
        refuse_taken(out)
    if len({run.resolve() for run in runs}) < max(len(runs), 2):
        raise ConfigError("an ensemble takes two runs or more, each once")
    if out.resolve() in {run.resolve() for run in runs}:
        raise ConfigError(f"{out} is one of the runs, and would go for the ensemble; choose another output folder")
    members = [load_model(run) for run in runs]
    if joined_before := [str(run) for run, member in zip(runs, members, strict=True) if member.method == ENSEMBLE]:
        raise ModelError(f"{quoted(joined_before)} is an ensemble already; give the runs that it was joined of")
    for run, member in zip(runs[1:], members[1:], strict=True):
        _refuse_other(runs[0], members[0], run, member)
    decision = decision or DecisionConfig()
    check_decision(decision, members[0].task)
    tables = [_read_cohort(run) for run in runs]
    joined = _joined(runs, tables, members[0].task)
    store = None if features is None else open_features(features)
    if store is not None:
        _refuse_other_kind(decision, members[0], tables, store)
    model = Ensemble([member.model for member in members], [member.method for member in members])
    first = members[0]
    check_writable(out)
    said = [{"run": run.name, "method": m.method, "digest": m.digest} for run, m in zip(runs, members, strict=True)]
    with occupied(out):
        if overwrite:
            clear_run(out)
        save_model(
            out,
            model,
            method=ENSEMBLE,
            task=first.task,
            bag=first.bag,
            features=first.features,
            training={"members": [*said]},
        )
        write_text(out / "cohort.csv", _csv(joined))
        whole = load_model(out)
        fitted = Decision(
            model=whole.digest, notes=("not calibrated, decided at the higher probability: give --features",)
        )
        if store is not None:
            fitted = _fitted(decision, whole, members, tables, StoredBags(store=store))
        save_decision(out, fitted)
    seen = {row["patient_id"] for row in joined if row["split"] == "train"}
    return EnsembleSummary(members=tuple(str(run) for run in runs), seen_patients=len(seen), decision=fitted)


def _refuse_other(first: Path, ours: TrainedModel, second: Path, theirs: TrainedModel) -> None:
    if ours.task != theirs.task or ours.bag != theirs.bag:
        raise ModelError(
            f"{first} and {second} do not answer one question alike: {ours.task.to_json()} of a {ours.bag}, and"
            f" {theirs.task.to_json()} of a {theirs.bag}; where the task is fitted on training slides, as of numbers"
            " and survival, logits of different folds cannot be averaged"
        )
    if ours.features is None or theirs.features is None:
        raise ModelError(
            f"{first} or {second} was imported without its kind of features; import it again with --features"
        )
    if differences := ours.features.kind_differences(theirs.features):
        raise ModelError(
            f"{first} and {second} learned from features of two kinds ({first} != {second}): {'; '.join(differences)}; join"
            " runs that learned from features of one kind"
        )


def _read_cohort(run: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO((run / "cohort.csv").read_text(encoding="utf-8"))))
    except (OSError, csv.Error) as error:
        raise ModelError(
            f"{run / 'cohort.csv'} cannot be read ({error}), so nobody can tell which patients the ensemble has seen; copy the"
            " whole run folder"
        ) from error


def _joined(runs: Sequence[Path], tables: Sequence[Sequence[Mapping[str, str]]], task: Task) -> list[dict[str, str]]:
    """Each slide once, in "train" where a member saw its patient. Raises ModelError where nobody can tell whose or what it is."""
    seen = {row["patient_id"] for table in tables for row in table if row["split"] in ("train", "val")}
    rows: dict[str, dict[str, str]] = {}
    told: dict[str, Path] = {}
    for run, table in zip(runs, tables, strict=True):
        for row in table:
            slide_id, patient = row["slide_id"], row["patient_id"]
            first = rows.setdefault(slide_id, {**row, "split": "train" if patient in seen else "test"})
            if first["patient_id"] != patient:
                raise ModelError(
                    f"slide {slide_id!r} is of patient {first['patient_id']!r} in {told[slide_id]} and of {patient!r} in {run},"
                    " so nobody can tell which patients the ensemble has seen; give the slide one patient_id in the cohort files"
                    " of both, and train again"
                )
            ours, theirs = ([told_of.get(name, "") for name in task.columns] for told_of in (first, row))
            if ours != theirs:
                raise ModelError(
                    f"slide {slide_id!r} is labelled {quoted(ours)} in {told[slide_id]} and {quoted(theirs)} in {run}, so nobody"
                    " can tell which of the two is right; correct it in the cohort files, and train the runs again that learned"
                    " otherwise"
                )
            told.setdefault(slide_id, run)
    return [*rows.values()]


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _refuse_other_kind(
    config: DecisionConfig,
    member: TrainedModel,
    tables: Sequence[Sequence[Mapping[str, str]]],
    store: FeatureStore,
) -> None:
    """Raises ModelError where features that a decision would be fitted on are of another kind than those of members."""
    splits = ("val",) if config.ood == "none" else ("train", "val")
    used = {row["slide_id"] for table in tables for row in table if row["split"] in splits}
    for slide_id, header in read_headers(store, sorted(used)).items():
        member.check_features(
            header.provenance, f"--features: slide {slide_id!r}", remedy="give the features that the runs learned from"
        )


def _fitted(
    config: DecisionConfig,
    whole: TrainedModel,
    members: Sequence[TrainedModel],
    tables: Sequence[Sequence[Mapping[str, str]]],
    store: StoredBags,
) -> Decision:
    logits, labels, owners = [], [], []
    means: dict[str, tuple[str, np.ndarray[tuple[int], np.dtype[np.float64]]]] = {}
    for member, table in zip(members, tables, strict=True):
        source: BagSource = store
        if member.bag == "patient":
            slides: dict[str, list[str]] = defaultdict(list)
            for row in table:
                slides[row["patient_id"]].append(row["slide_id"])
            source = PatientBags(bags=store, members={patient: tuple(sorted(ids)) for patient, ids in slides.items()})
        for unit, row in {row[f"{member.bag}_id"]: row for row in table}.items():
            if row["split"] == "val":
                bag = source.load(unit)
                logits.append(answer_logits(member, bag.features, bag.xy0, slide_id=unit))
                labels.append(whole.task.read([row[name] for name in whole.task.columns]) or "")
                owners.append(row["patient_id"])
            if row["split"] == "train" and config.ood != "none" and unit not in means:
                means[unit] = (row["patient_id"], mean_feature(source.load(unit).features))
    answers = ValidationAnswers(
        logits=np.stack(logits), targets=np.asarray(whole.task.encode(labels)), patients=tuple(owners)
    )
    rows = [means[unit] for unit in sorted(means)]
    return fit_decision(
        config,
        whole,
        answers,
        training_means=np.stack([mean for _, mean in rows]) if rows else None,
        training_patients=[owner for owner, _ in rows],
    )
