"""predict: a trained run and features or slides to answers, tile scores and heatmaps."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsimil.cohort import BagUnit, Cohort, has_columns, read_cohort, read_patients
from wsimil.config import parse_config
from wsimil.errors import ConfigError, OutputError, StoreError, WsimilError
from wsimil.evaluation.attribution.table import attribute
from wsimil.evaluation.decision import load_decided
from wsimil.evaluation.table import inert
from wsimil.export.formats import FORMATS, HEATMAPS
from wsimil.extraction.config import ExtractConfig, config_from_provenance
from wsimil.extraction.sources import list_sources
from wsimil.files import check_writable, write_text
from wsimil.mil.batch import pack
from wsimil.mil.saved import FACTS, TrainedModel
from wsimil.pseudonyms import Pseudonyms, open_pseudonyms, refuse_beside_results, save_pseudonyms
from wsimil.stages.answers import (
    Answer,
    estimate_splits,
    write_answers,
)
from wsimil.stages.device import resolve_device
from wsimil.stages.export import remove_exports
from wsimil.stages.failures import used_though_failed
from wsimil.stages.features import is_feature_folder, open_features
from wsimil.stages.interrupt import interrupt
from wsimil.stages.learned import ORIGIN, Learned, learned_from, write_origin
from wsimil.stages.occupied import occupied
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.predict_unit import Desk
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.twins import alike, at_odds
from wsimil.stages.words import quoted, unit_words
from wsimil.store import FeatureStore, open_store
from wsimil.store.places import failed_ids
from wsimil.store.places import failures as failed
from wsimil.store.renamed import renamed
from wsimil.targets import Task

if TYPE_CHECKING:
    from wsimil.evaluation.bootstrap import Estimate

COHORT = "cohort.csv"
"""The cohort file under pseudonyms, so that answers can be evaluated."""
NO_FEATURES = "no features; extract it, or drop its line from the cohort file"
"""Why a patient has no answer."""
NOTES = "notes"
"""Where the viewer keeps notes, unless it is told another place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSummary:
    """What was said: an answer for each `bag`, failures by its id, and metrics where labels are known.

    `seen` are slides that the model learned from or was chosen on, and other slides of their patients; they do not count in
    `metrics`. `notes` are for whoever reads the answers.
    """

    answers: tuple[Answer, ...]
    failures: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, Estimate]]
    seen: tuple[str, ...]
    task: Task
    bag: BagUnit
    notes: tuple[str, ...] = ()


def predict(
    run: Path,
    source: Path,
    out: Path,
    *,
    options: PredictOptions,
    cohort_csv: Path | None = None,
    reporter: Reporter | None = None,
) -> PredictSummary:
    """Predict every slide of `source`, a feature folder, or slides that are extracted first into `out`/features.

    What an earlier prediction left in `out` is replaced. Writes predictions.csv and .parquet, predictions.json (who answered),
    scores/<id>.parquet and, with heatmaps, qupath/<id>.geojson and overlays/<id>.png, whose colors span one range for all slides
    unless `options` say otherwise; with pseudonyms also cohort.csv, by which these answers can be judged;
    metrics.json where `cohort_csv` gives labels; a model of patients needs it to know whose a slide is, and answers for each
    patient, with scores and heatmaps for each slide. A slide that fails stands in failures.csv and the rest goes on.
    Raises WsimilError for what concerns all slides; also where another process is at work in `out`.
    """
    _refuse_foreign_folder(source, out)
    with occupied(out):
        return _predicted(run, source, out, options, cohort_csv, reporter or Quiet())


def _predicted(
    run: Path, source: Path, out: Path, options: PredictOptions, cohort_csv: Path | None, reporter: Reporter
) -> PredictSummary:
    device = resolve_device(options.device)
    trained, decision = load_decided(run, device=device)
    names = _names(options.pseudonyms, source, out)
    patients = _patients(cohort_csv, trained)
    learned = learned_from(run, trained.bag)
    if cohort_csv is not None:
        learned.refuse_other_spellings(patients.values(), cohort_csv)
    cohort = labels_of(cohort_csv, trained, names)
    check_writable(out)
    failures: dict[str, str] = {}
    refuse_unknown_score(trained, options)
    features, store, ids = _features(source, out, trained, options, reporter, failures)
    doubtful = failed_ids(source) & {*ids} if is_feature_folder(source) else frozenset()
    if names is not None and options.pseudonyms is not None:
        store, learned = renamed(store, names), learned.renamed(names.name)
        ids = store.ids()
        patients = {names.name(slide): names.name(patient) for slide, patient in patients.items()}
        doubtful = frozenset(map(names.name, doubtful))
        # The reason may name the file of the slide.
        failures = {names.name(slide_id): "extraction failed" for slide_id in failures}
        save_pseudonyms(options.pseudonyms, names)
    _refuse_wrong_folder(trained, store, ids)
    _remove_earlier_results(out)
    owners = patients if trained.bag == "patient" else None
    units, unknown = units_of(ids, owners, failures)
    used = used_though_failed(doubtful, [slide_id for slide_ids in units.values() for slide_id in slide_ids])
    notes = [*_absent(patients, {*units, *failures}, learned, trained.bag), *map(str, used)]
    if names is not None:
        # The order of a patient's slides counts for some methods: answers are those under ids.
        units = {unit: tuple(sorted(slides, key=names.identity)) for unit, slides in units.items()}
    for name in HEATMAPS if options.heatmaps else ():
        if (once := FORMATS[name].once) is not None:
            once(out / FORMATS[name].folder)
    desk = Desk(
        trained=trained, store=store, features=features, out=out, options=options, decision=decision, names=names
    )
    answers: list[Answer] = []
    contents: dict[str, str] = {}
    reporter.begin("slides" if owners is None else "patients", len(units))
    for unit, slide_ids in units.items():
        interrupt.check()
        reporter.item(unit, 0)
        try:
            said = desk.slide(unit) if owners is None else desk.patient(unit, slide_ids)
        except (OutputError, ConfigError):
            raise  # concerns every slide
        except WsimilError as error:
            desk.forget(slide_ids)
            failures[unit] = str(error) if names is None else _inert(str(error), names, (unit, *slide_ids), features)
            reporter.finish_item(f"{unit}: FAILED: {failures[unit]}")
            continue
        answers.append(said.answer)
        contents |= said.contents
        reporter.finish_item(said.line)
    summary = conclude(answers, failures, trained, run, learned, cohort, out, contents=contents, patients=patients)
    if names is not None and cohort_csv is not None and has_columns(cohort_csv, trained.task):
        known = read_cohort(cohort_csv, task=trained.task, bag=trained.bag).renamed(names.name)
        write_text(out / COHORT, known.to_csv())
    told = [*summary.notes, *notes]
    if unknown:
        told.append(
            f"{len(unknown)} slides are left out, as the cohort file does not tell whose they are: {', '.join(unknown[:5])}"
        )
    for slide_id, reason in desk.draw(reporter).items():
        why = reason if names is None else _inert(reason, names, (slide_id,), features)
        told.append(f"{slide_id} is answered for, but its overlay could not be drawn: {why}")
    return replace(summary, notes=tuple(told))


def _names(path: Path | None, source: Path, out: Path) -> Pseudonyms | None:
    if path is None:
        return None
    refuse_beside_results(path, out)
    if not is_feature_folder(source):
        raise ConfigError(
            f"--pseudonymize: {source} holds slides, and an extraction names its files by slide ids; extract into a folder that"
            " stays with you, and predict that"
        )
    names = open_pseudonyms(path)
    _refuse_ids(out, names)
    return names


def _refuse_ids(out: Path, names: Pseudonyms) -> None:
    """Raise OutputError where files that no prediction replaces would stay beside names, called by what the names stand for."""
    noted = [note.stem for note in (out / NOTES).glob("*.geojson") if note.stem not in names.known]
    left = NOTES if noted else "features" if (out / "features").exists() else None
    if left is not None:
        raise OutputError(
            f"--pseudonymize: {out / left} is left from an earlier prediction, and its files are named by slide ids; give a"
            f" folder of its own, or move {left} away"
        )


def _inert(text: str, names: Pseudonyms, units: Sequence[str], features: Path) -> str:
    """A reason without ids, and without the folder that the features are in."""
    return names.inert(text, [names.identity(unit) for unit in units], folder=features)


def _patients(cohort_csv: Path | None, trained: TrainedModel) -> dict[str, str]:
    """Slide -> patient, of the cohort file."""
    if cohort_csv is not None:
        return read_patients(cohort_csv)
    if trained.bag == "patient":
        raise ConfigError(
            "this model answers for patients, so it must know whose each slide is; give --cohort, a CSV with slide_id and"
            " patient_id, and labels where there are any"
        )
    return {}


def _absent(patients: Mapping[str, str], told: Collection[str], learned: Learned, bag: BagUnit) -> tuple[str, ...]:
    """A note of slides or patients of the cohort file that nothing is said of, as none of their slides is here."""
    units = {(slide if bag == "slide" else patient): patient for slide, patient in patients.items()}
    absent = [unit for unit in units if unit not in told]
    if not absent:
        return ()
    seen = sum(learned.knows(unit, units[unit]) for unit in absent)
    from_them = f" ({seen} of them the model learned from or was chosen on)" if seen else ""
    return (
        f"{len(absent)} of {unit_words(bag, len(units))} in the cohort file have no features here, and no answer{from_them}:"
        f" {quoted(absent)}",
    )


def labels_of(cohort_csv: Path | None, trained: TrainedModel, names: Pseudonyms | None) -> Cohort | None:
    """What is known of the units that a model answers for, None where a cohort file only says whose slides are whose."""
    if cohort_csv is None or (trained.bag == "patient" and not has_columns(cohort_csv, trained.task)):
        return None
    cohort = read_cohort(cohort_csv, task=trained.task, bag=trained.bag)
    if names is not None:
        cohort = cohort.renamed(names.name)
    return cohort.by_patient() if trained.bag == "patient" else cohort


def units_of(
    ids: Sequence[str], owners: Mapping[str, str] | None, failures: dict[str, str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """What is answered for, with its slides, and slides whose patient nobody knows.

    A patient with a slide that failed, or that is not there beside others of his, is moved to `failures`.
    """
    if owners is None:
        return {slide_id: (slide_id,) for slide_id in ids}, []
    there, failed = {*ids}, dict(failures)
    failures.clear()
    unknown = [slide_id for slide_id in [*ids, *failed] if slide_id not in owners]
    here = {owners[slide_id] for slide_id in there | {*failed} if slide_id in owners}
    units: dict[str, list[str]] = {}
    for slide_id in sorted(slide_id for slide_id, patient in owners.items() if patient in here):
        units.setdefault(owners[slide_id], []).append(slide_id)
        if slide_id not in there:
            reason = failed.get(slide_id, NO_FEATURES)
            failures[owners[slide_id]] = f"slide {slide_id!r}: {reason}"
    return {patient: tuple(slides) for patient, slides in units.items() if patient not in failures}, unknown


def _features(
    source: Path,
    out: Path,
    trained: TrainedModel,
    options: PredictOptions,
    reporter: Reporter,
    failures: dict[str, str],
) -> tuple[Path, FeatureStore, list[str]]:
    """The folder with the features and thumbnails, the store in it, and the slides to answer for."""
    if is_feature_folder(source):
        if options.mpp_override is not None:
            raise ConfigError("--mpp-override is for slides; these features were extracted with an mpp of their own")
        store = open_features(source)
        folder = source.parent if (source / "zarr.json").is_file() else source
        failures |= {slide_id: reason for slide_id, reason in failed(source).items() if slide_id not in store}
        return folder, store, store.ids()
    if trained.features is None:
        raise ConfigError(
            "this model was imported without saying on which features it was trained, so slides cannot be prepared for it; give a"
            " feature folder, or import it again with --features"
        )
    layout = trained.features.encoder.get("stated_by")
    if layout is not None:
        raise ConfigError(
            f"this model was trained on features that {layout} made, which wsimil does not make anew from slides; make them there"
            " and give their folder"
        )
    wanted = config_from_provenance(trained.features)
    config = parse_config(
        ExtractConfig,
        wanted.model_dump(mode="json")
        | {
            "encoder_weights": None if options.encoder_weights is None else str(options.encoder_weights),
            "mpp_override": options.mpp_override,
            "device": options.device,
            "batch_size": options.batch_size,
            "readers": options.readers,
        },
        source="command line",
    )
    from wsimil.stages.extract import extract  # brings readers of slides and encoders

    folder = out / "features"
    summary = extract(config, list_sources(source), folder, wanted=trained.features, reporter=reporter)
    failures |= {failure.slide_id: failure.reason for failure in summary.failures}
    extracted = [outcome.slide_id for outcome in summary.outcomes if outcome.status != "failed"]
    return folder, open_store(folder, mode="w", backend=config.store), extracted


def refuse_unknown_score(trained: TrainedModel, options: PredictOptions) -> None:
    """Ask the model, on two made-up instances, which scores it gives. Raises ConfigError."""
    if options.score is None and options.scores is None:
        return
    two = np.zeros((2, trained.model.in_dim), np.float32)
    device = next(trained.model.parameters()).device
    bags = pack([two], xy0=[np.array([[0, 0], [1, 0]])], slide_ids=["made up"]).to(device)
    names = attribute(trained.model, bags, outputs=trained.task.outputs, kinds=options.kinds(trained.model)).names
    if options.scores is not None and "attention" in options.scores and not {*names} & {"attention", "attention:1"}:
        raise ConfigError("this model pools without attention, so --scores cannot give it; leave attention out")
    if options.score is not None and options.score not in names:
        raise ConfigError(f"score {options.score!r} is not given by this model; it gives {', '.join(names)}")


def _refuse_wrong_folder(trained: TrainedModel, store: FeatureStore, ids: Sequence[str]) -> None:
    """Look at the first file that can be read: a wrong folder is refused at once, each slide is checked again later."""
    for slide_id in ids:
        try:
            header = store.header(slide_id)
        except StoreError:
            continue
        if not header.dim:
            continue  # a tool left the width open where there is no tile
        trained.check_features(header.provenance, f"slide {slide_id!r}")
        return


def _refuse_foreign_folder(source: Path, out: Path) -> None:
    """What stands in `out` under the names of results is removed: it must not be a run's or an extraction's."""
    if (out / FACTS).exists() or is_feature_folder(out):
        kind = "a trained model" if (out / FACTS).exists() else "features"
        raise ConfigError(
            f"{out} holds {kind}; predictions replace files of the same names, so give them a folder of their own"
        )
    if source.is_dir() and out.resolve() == source.resolve():
        raise ConfigError(f"{out} is also what is predicted; give predictions a folder of their own")


def _remove_earlier_results(out: Path) -> None:
    """Results of an earlier prediction into the same folder would stand beside the new ones as if they were of one model."""
    for name in ("predictions.csv", "predictions.parquet", ORIGIN, "metrics.json", "failures.csv", COHORT):
        (out / name).unlink(missing_ok=True)
    for folder, suffix in (
        ("scores", ".parquet"),
        *((FORMATS[name].folder, FORMATS[name].suffix) for name in HEATMAPS),
    ):
        for path in (out / folder).glob(f"*{suffix}"):
            path.unlink()
    remove_exports(out)


def conclude(
    given: Sequence[Answer],
    failures: Mapping[str, str],
    trained: TrainedModel,
    run: Path,
    learned: Learned,
    cohort: Cohort | None,
    out: Path,
    *,
    contents: Mapping[str, str],
    patients: Mapping[str, str],
) -> PredictSummary:
    """Write predictions, who answered, metrics and failures into `out`; `contents` are digests of the slides that were read, and
    `patients` whose slides are, both by slide.

    Raises OutputError.
    """
    twins = alike(contents, patients if trained.bag == "patient" else None)
    learned = learned.recognizing(contents, patients)
    failed = [Answer(slide_id=unit, values=None, status=f"failed: {reason}") for unit, reason in failures.items()]
    answers = [*given, *failed]
    owners = {} if cohort is None else {unit.slide_id: unit.patient_id for unit in cohort.slides}
    doubtful = [one for pair in at_odds(twins, () if cohort is None else cohort.slides) for one in pair]
    seen = tuple(a.slide_id for a in answers if learned.knows(a.slide_id, owners.get(a.slide_id)))
    if cohort is None:
        write_answers(out, answers, trained, splits=learned.splits)
        metrics: Mapping[str, Mapping[str, Estimate]] = {}
    else:
        write_answers(out, answers, trained, cohort=cohort, splits=learned.splits)
        blind = replace(cohort, slides=tuple(replace(s, split=None, fold=None) for s in cohort.slides))
        uncounted = {*seen, *doubtful}
        metrics = estimate_splits([a for a in answers if a.slide_id not in uncounted], blind)
        about = {"not counted, because the model learned from these patients or was chosen on them": list(seen)}
        values = {split: {n: asdict(e) for n, e in found.items()} for split, found in metrics.items()}
        write_text(out / "metrics.json", json.dumps(values | about, indent=2) + "\n")
    write_origin(out, run, learned, alike=twins)
    _write_failures(out / "failures.csv", failures, trained)
    return PredictSummary(
        answers=tuple(answers),
        failures=failures,
        metrics=metrics,
        seen=seen,
        task=trained.task,
        bag=trained.bag,
        notes=(*_notes(trained), *_renamed(learned), *_doubtful(doubtful, trained.bag), *_unusual(answers)),
    )


def _notes(trained: TrainedModel) -> tuple[str, ...]:
    """What the answers do not say of themselves."""
    if trained.features is not None:
        return ()
    return (
        "the model was imported without saying on which features it was trained: that these have as many"
        f" ({trained.model.in_dim}) is all that was checked; answers are void unless encoder, tile size and mpp are the same",
    )


def _renamed(learned: Learned) -> tuple[str, ...]:
    if not learned.twins:
        return ()
    return (
        f"{unit_words('slide', len(learned.twins))} are, under other names, slides that the model learned from or was chosen on,"
        f" and their patients do not count: {quoted([*learned.twins])}",
    )


def _doubtful(names: Sequence[str], bag: BagUnit) -> tuple[str, ...]:
    different = list(dict.fromkeys(names))
    if not different:
        return ()
    return (
        f"{unit_words(bag, len(different))} share one image with another of another patient or label, and do not count in"
        f" metrics; wsimil evaluate refuses them: {quoted(different)}",
    )


def _unusual(answers: Sequence[Answer]) -> tuple[str, ...]:
    names = [answer.slide_id for answer in answers if answer.beside.get("unusual") == "yes"]
    if not names:
        return ()
    return (
        f"{len(names)} of {len(answers)} lie far from what the model learned from (column unusual), and its answers for them"
        f" rest on nothing it has seen: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}",
    )


def _write_failures(path: Path, failures: Mapping[str, str], trained: TrainedModel) -> None:
    if not failures:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f"{trained.bag}_id", "reason"])
    writer.writerows([inert(unit), inert(reason)] for unit, reason in failures.items())
    write_text(path, text.getvalue())
