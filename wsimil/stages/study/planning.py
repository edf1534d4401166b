"""A study becomes its list of units, once: everything that could be refused is refused here, and not on a thousand nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from pydantic import JsonValue

import wsimil
from wsimil.cohort import read_cohort, read_patients
from wsimil.config import parse_config
from wsimil.errors import CohortError, ConfigError, OutputError
from wsimil.evaluation.decision import DECISION, REFERENCE
from wsimil.extraction.config import refuse_lost_masks
from wsimil.extraction.sources import SlideSource, clashes, list_sources
from wsimil.files import check_writable
from wsimil.mil.facts import FACTS
from wsimil.provenance import Json
from wsimil.splits import read_plan as read_splits
from wsimil.stages.contents import Contents
from wsimil.stages.features import open_features
from wsimil.stages.study.config import StudyConfig, StudyPredict
from wsimil.stages.study.unchanged import (
    FeaturesPin,
    content,
    features_pin,
    files_pin,
    kind_of,
    refuse_changed_features,
    refuse_changed_files,
    refuse_replaced,
    weights_pin,
)
from wsimil.stages.work_items import WorkItem, work_items
from wsimil.store.base import FeatureStore, slide_path
from wsimil.worklist import Ledger, Stage, Unit, WorkPlan, read_plan
from wsimil.worklist.plan import PLAN

EXTRACT, TRAIN, PREDICT, OVERLAYS, REPORT = "extract", "train", "predict", "overlays", "report"
FEATURES, RUNS, PREDICTIONS, REPORTS = "features", "runs", "predictions", "report"
_READ = (FACTS, DECISION, REFERENCE, "cohort.csv", "predictions.parquet")
"""Of a run, by answers, tables and reports; its weights are named in its facts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study in its folder, as planned."""

    plan: WorkPlan
    config: StudyConfig
    weights: Path | None = None
    """A copy of the encoder's weights that is nearer to this machine than the file that was planned with."""
    _contents: Contents = field(default_factory=Contents, repr=False, compare=False)
    _made: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        return self.plan.folder

    @property
    def features(self) -> Path:
        """Where its features lie, or will."""
        return self.config.features or self.folder / FEATURES

    def items(self) -> dict[str, WorkItem]:
        """Its training runs by name. Raises ConfigError, CohortError where splits are not those that were planned with."""
        if not self.config.train or self.config.cohort is None or self.config.splits is None:
            return {}
        self.refuse_changed_files()
        items = work_items(
            self.config.train, self.features, self.config.cohort, self.folder / RUNS, splits=self.config.splits,
            rounds=self.config.rounds, seeds=self.config.seeds,
        )  # fmt: skip
        return {item.name: item for item in items}

    def refuse_changed_files(self) -> None:
        """Raises ConfigError where cohort, splits or models to start from are not those that were planned with."""
        refuse_changed_files(self.config, cast("dict[str, str]", self.plan.recipe["files"]))

    def refuse_other_features(self, store: FeatureStore, ledger: Ledger) -> None:
        """Raises ConfigError where features are not those that the study is of, OutputError where we do not see them all."""
        if self.config.features is not None:
            planned = cast("FeaturesPin", self.plan.recipe["features"])
            refuse_changed_features(self.config.features, store.ids(), planned)
            if planned["kind"] != kind_of(store):
                raise ConfigError(
                    f"features {self.features} are of another kind than when the study was planned: encoder, weights or tiling"
                    " changed; restore them, or plan anew into another folder"
                )
            return
        made = self.extracted(ledger)
        missing = made - frozenset(store.ids())
        if missing:
            # Network file systems may show an old list of a folder until one writes into it.
            check_writable(self.features)
            missing -= frozenset(store.ids())
        if missing:
            raise OutputError(
                f"features of {len(missing)} slides are done and {self.features} shows them not there: {_some(missing)}; they"
                " were removed, or this machine does not see what others wrote"
            )
        late = frozenset(store.ids()) - made
        if late:
            raise ConfigError(
                f"{self.features} holds features of {_some(late)}, which were set aside before its tables were made, or are not"
                " of this study; move them out of it, or plan anew with features in a folder of their own"
            )

    def refuse_replaced_features(
        self, store: FeatureStore, ledger: Ledger, slide_ids: Iterable[str] | None = None
    ) -> None:
        """Raises ConfigError where features of slides, or any, are not those that the study was planned with, or has made itself.

        Costs the header of each slide once for a study that is open, and then a look at the time of its file. Raises OutputError.
        """
        if self.config.features is not None:
            planned = cast("FeaturesPin", self.plan.recipe["features"])
            wanted: Mapping[str, str] = planned["contents"]
        else:
            wanted = self._contents_told(ledger)
        refuse_replaced(self._contents, store, wanted, wanted if slide_ids is None else slide_ids)

    def was_trained(self, run: str, ledger: Ledger) -> bool:
        """False for a run that was set aside. Raises OutputError where one is done and not seen, ConfigError where its folder
        holds another by now."""
        unit = next(unit for unit in self.plan.stage(TRAIN).units if unit.name == run)
        if not ledger.look(unit.id).done:
            return False
        folder = self.folder / RUNS / run
        if not (folder / FACTS).is_file():
            raise OutputError(f"{folder} is done and not there: it was removed, or this machine does not see it")
        made = cast("Mapping[str, str]", ledger.receipt(unit.id)["products"])
        for name in _READ:
            found = content(folder / name) if (folder / name).is_file() else "none"
            wanted = made.get(f"{RUNS}/{run}/{name}", "none")
            if found != wanted:
                raise ConfigError(
                    f"{folder} is not the run that the study trained: {name} was replaced since (got {found[:16]}, wanted"
                    f" {wanted[:16]}); a study is of the models that it trained: restore it, or plan anew into another folder"
                )
        return True

    def extracted(self, ledger: Ledger) -> frozenset[str]:
        """Ids of the slides that features were made of, as the tables of the features say. Raises OutputError."""
        stage = self.plan.stage(EXTRACT)
        scanned = ledger.scan()
        units = [unit for unit in stage.units if not unit.last]
        end = next(unit for unit in stage.units if unit.last)
        if end.id in scanned and scanned[end.id].done:
            told = cast("Mapping[str, Sequence[str]]", ledger.receipt(end.id)["summary"])
            return frozenset(unit.name for unit in units) - frozenset(told["without"])
        return frozenset(unit.name for unit in units if unit.id in scanned and scanned[unit.id].done)

    def contents_made(self, ledger: Ledger) -> dict[str, str]:
        """What each slide's features held when they came to their place, by their receipts.

        Without those that came there by a try that could not say so any more. Raises OutputError.
        """
        scanned = ledger.scan()
        found: dict[str, str] = {}
        for unit in self.plan.stage(EXTRACT).units:
            if not unit.last and unit.id in scanned and scanned[unit.id].done:
                receipt = ledger.receipt(unit.id)
                if not receipt["kept"]:
                    found[unit.name] = str(cast("Mapping[str, Json]", receipt["summary"])["content"])
        return found

    def _contents_told(self, ledger: Ledger) -> Mapping[str, str]:
        """What each slide's features held when the tables of the features were made, or by receipts where there are none."""
        if not self._made:
            end = next(unit for unit in self.plan.stage(EXTRACT).units if unit.last)
            if ledger.look(end.id).done:
                said = cast("Mapping[str, Mapping[str, str]]", ledger.receipt(end.id)["summary"])
                self._made.update(said["contents"])
            else:
                self._made.update(self.contents_made(ledger))
        return self._made


def plan_study(config: StudyConfig, folder: Path) -> WorkPlan:
    """All units of a study that will lie in `folder`; nothing is written. Raises WsimilError."""
    config, folder = config.absolute(), folder.absolute()
    stages: list[Stage] = []
    sources: list[SlideSource] = []
    pin: FeaturesPin | None = None
    if config.slides is not None:
        refuse_lost_masks(config.extract)
        sources = _sources(config.slides, folder)
        costs = {source.slide_id: _megabytes(source.path) for source in sources}
        units = [
            Unit(id=f"e{i:06}", name=source.slide_id, cost=costs[source.slide_id], task=_task(source))
            for i, source in enumerate(sources)
        ]
        stages.append(_stage(EXTRACT, units, Unit(id="e-end", name="tables of the features", cost=1.0, task={})))
    elif config.features is not None:
        store = open_features(config.features)
        pin = features_pin(store)
        costs = _costs(store)
    recipe: dict[str, Json] = {
        "version": wsimil.__version__,
        # As it was given, so that it reads the same again; and with all that follows from it.
        "study": config.model_dump(mode="json", exclude_unset=True),
        "resolved": config.model_dump(mode="json"),
        "files": cast("Json", files_pin(config)),
        "features": cast("Json", pin),
        "encoder_weights": weights_pin(config),
    }
    if config.train and config.cohort is not None and config.splits is not None:
        items = work_items(
            config.train, config.features or folder / FEATURES, config.cohort, folder / RUNS, splits=config.splits,
            rounds=config.rounds, seeds=config.seeds,
        )  # fmt: skip
        from wsimil.stages.study.possible import refuse_impossible, refuse_untested  # build models, so bring torch

        _refuse_unlabelled(config, config.cohort, costs)
        refuse_untested(config, items)
        asked = None if config.predict is None else config.predict.options
        for first in {item.config_name: item for item in reversed(items)}.values():
            refuse_impossible(first, frozenset(costs), there=config.features is not None, asked=asked)
        # Nobody knows how long a run takes; more epochs of one method do take longer.
        units = [
            Unit(id=f"t{i:06}", name=item.name, cost=float(item.config.fit.epochs), task={})
            for i, item in enumerate(items)
        ]
        stages.append(_stage(TRAIN, units, Unit(id="t-end", name="tables of the runs", cost=1.0, task={})))
        if config.predict is not None:
            stages += _answering(config.predict, config.splits, items, costs)
        if config.report:
            names = list(config.train)
            stages.append(
                Stage(
                    name=REPORT,
                    units=tuple(Unit(id=f"r{i:06}", name=n, cost=1.0, task={}) for i, n in enumerate(names)),
                )
            )
    return WorkPlan(folder=folder, stages=tuple(stages), recipe=recipe, lease_s=config.lease_s, max_bad=config.max_bad)


def refuse_other_plan(plan: WorkPlan) -> None:
    """Raises ConfigError where its folder holds a plan already, with what differs."""
    if not (plan.work / PLAN).exists():
        return
    there = read_plan(plan.folder)
    if there.fingerprint == plan.fingerprint:
        return
    old, new = (cast("Mapping[str, Json]", one.recipe.get("resolved", {})) for one in (there, plan))
    differs = [key for key in new if new[key] != old.get(key)]
    beside = {
        "files": "content of files", "features": "slides with features", "encoder_weights": "content of encoder_weights",
        "version": "version of wsimil",
    }  # fmt: skip
    differs += [what for key, what in beside.items() if plan.recipe[key] != there.recipe.get(key)]
    what = ", ".join(differs) or "its slides or their sizes"
    raise ConfigError(
        f"{plan.folder} holds another plan ({there.fingerprint[:12]}, wanted {plan.fingerprint[:12]}), different in {what}; go on"
        " with the one that is there, or give the new one a folder of its own"
    )


def open_study(plan: WorkPlan, *, weights: Path | None = None) -> Study:
    """The study that a list of units is of, with `weights` as its copy of the encoder's.

    Raises ConfigError where another version of wsimil planned it, or no file of weights was planned with.
    """
    made = plan.recipe.get("version")
    if made != wsimil.__version__:
        raise ConfigError(
            f"{plan.folder} was planned with wsimil {made}, and this is {wsimil.__version__}; results of two versions are not of"
            " one kind: use the one that planned, or plan anew into another folder"
        )
    tree = cast("Mapping[str, JsonValue]", plan.recipe["study"])
    config = parse_config(StudyConfig, tree, source=str(plan.work))
    if weights is not None and config.slides is None:
        raise ConfigError(f"--encoder-weights {weights}: {plan.folder} is of features that are there; leave it out")
    if weights is not None and config.extract.encoder_weights is None:
        raise ConfigError(
            f"--encoder-weights {weights}: {plan.folder} was planned with the published weights of {config.extract.encoder};"
            " leave it out, or plan with extract.encoder_weights"
        )
    return Study(plan=plan, config=config, weights=weights)


def source_of(task: Mapping[str, Json]) -> SlideSource:
    """The slide that a unit of extraction is."""
    mask, mpp = task.get("mask"), task.get("mpp")
    return SlideSource(
        slide_id=str(task["slide_id"]),
        path=Path(str(task["path"])),
        mpp=float(mpp) if isinstance(mpp, int | float) else None,
        mask=None if mask is None else Path(str(mask)),
    )


def _sources(slides: Path, folder: Path) -> list[SlideSource]:
    sources = list_sources(slides)
    twice = clashes(sources)
    if twice:
        slide_id, paths = next(iter(twice.items()))
        raise ConfigError(
            f"slide id {slide_id!r} names {len(paths)} files: {', '.join(map(str, paths))}; rename one, or give different"
            f" slide_id in a manifest ({len(twice)} ids are used more than once)"
        )
    for source in sources:
        slide_path(folder, source.slide_id, "")
    return sources


def _task(source: SlideSource) -> dict[str, Json]:
    task: dict[str, Json] = {"slide_id": source.slide_id, "path": str(source.path.absolute())}
    if source.mpp is not None:
        task["mpp"] = source.mpp
    if source.mask is not None:
        task["mask"] = str(source.mask.absolute())
    return task


def _megabytes(path: Path) -> float:
    """How large a slide or its features are, which is how long they take as far as anyone can tell beforehand; above 0."""
    try:
        files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
        return max(1e-6, round(sum(one.stat().st_size for one in files) / 1e6, 6))
    except OSError:
        return 1e-6  # it will fail as its own unit, and say why


def _costs(store: FeatureStore) -> dict[str, float]:
    """Of each slide with features; one of several in a file costs its share by tiles."""
    ids = store.ids()
    places: dict[Path, list[str]] = {}
    for slide_id in ids:
        places.setdefault(store.path(slide_id), []).append(slide_id)
    costs: dict[str, float] = {}
    for path, own in places.items():
        size = _megabytes(path)
        tiles = {slide_id: 1 if len(own) == 1 else max(1, store.header(slide_id).n) for slide_id in own}
        total = sum(tiles.values())
        costs |= {slide_id: max(1e-6, round(size * n / total, 6)) for slide_id, n in tiles.items()}
    return costs


def _some(ids: Iterable[str]) -> str:
    named = sorted(ids)
    return ", ".join(map(ascii, named[:5])) + (" ..." if len(named) > 5 else "")


def _stage(name: str, units: Sequence[Unit], *ends: Unit) -> Stage:
    return Stage(name=name, units=(*units, *(replace(end, last=True) for end in ends)))


def _refuse_unlabelled(config: StudyConfig, cohort_csv: Path, costs: Mapping[str, float]) -> None:
    for name, train in config.train.items():
        cohort = read_cohort(cohort_csv, task=train.task.build())
        if not set(cohort.slide_ids) & set(costs):
            shown = ", ".join(sorted(costs)[:3])
            raise CohortError(
                f"config {name}: no slide of {cohort_csv} is among those of the study ({shown}, ...); slide_id in the cohort"
                " is the file's name without its suffix, or that of the manifest"
            )


def _answering(asked: StudyPredict, splits: Path, items: Sequence[WorkItem], costs: Mapping[str, float]) -> list[Stage]:
    units: list[Unit] = []
    ends: list[Unit] = []
    pictures: list[Unit] = []
    plan = read_splits(splits)
    for run, item in enumerate(items):
        test = plan.round(item.config.split.round).test
        chosen = sorted(set(costs) & set(test)) if asked.slides == "test" else sorted(costs)
        for unit, slides in _bags(item, chosen).items():
            task: dict[str, Json] = {"run": item.name, "slides": list(slides)}
            cost = sum(costs.get(slide, 0.0) for slide in slides)
            units.append(
                Unit(id=f"p{len(units):06}", name=f"{item.name}: {unit}", cost=cost, task={**task, "unit": unit})
            )
            whole = all(slide in costs for slide in slides)
            for slide in slides if whole and asked.heatmaps and asked.range == "cohort" else ():
                name = f"{item.name}: {slide}"
                pictures.append(
                    Unit(
                        id=f"o{len(pictures):06}", name=name, cost=costs[slide], task={"run": item.name, "slide": slide}
                    )
                )
        ends.append(Unit(id=f"p-end-{run:04}", name=f"{item.name}: tables", cost=1.0, task={"run": item.name}))
    stages = [_stage(PREDICT, units, *ends)]
    if pictures:
        stages.append(Stage(name=OVERLAYS, units=tuple(pictures)))
    return stages


def _bags(item: WorkItem, slides: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What a model answers for: `slides`, or their patients, each with all slides of his."""
    if item.config.bag == "slide":
        return {slide: (slide,) for slide in slides}
    owners = read_patients(item.cohort)
    patients: dict[str, list[str]] = {owners[slide]: [] for slide in slides if slide in owners}
    for slide in sorted(owners):
        if owners[slide] in patients:
            patients[owners[slide]].append(slide)
    return {patient: tuple(own) for patient, own in patients.items()}
