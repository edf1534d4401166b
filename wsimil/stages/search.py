"""search: hyperparameters drawn from a declared space and judged on validation splits; test slides are never opened."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import yaml
from pydantic import Field, JsonValue, model_validator

from wsimil.cohort import column_names, read_columns
from wsimil.config import FrozenConfig, parse_config, put
from wsimil.errors import CohortError, ConfigError, TrainingError
from wsimil.files import check_writable, write_text
from wsimil.mil import registry
from wsimil.provenance import sha256_json
from wsimil.splits.plan import Round, SplitPlan, read_plan, write_plan
from wsimil.stages.crossval import TrainingPool
from wsimil.stages.interrupt import interrupt
from wsimil.stages.occupied import occupied
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.train import plan
from wsimil.stages.train_config import SplitConfig, TrainConfig
from wsimil.stages.work_items import WorkItem
from wsimil.training.objective import resolved

if TYPE_CHECKING:
    import optuna

Value: TypeAlias = bool | int | float | str | None
_NOT_SEARCHED = ("split", "task", "decision", "bag", "device", "fit.seed", "fit.monitor", "fit.trackers", "method.name")
_UNIT_OF_LOSS = ("fit.loss", "fit.hazard_alpha", "fit.balance")
_LOWER_IS_BETTER = ("loss", "mae")
_FILES = ("trials.journal", "trials.csv", "best.yaml", "search.json", "splits.json", "cohort.csv")


class Range(FrozenConfig):
    """Numbers from `low` to `high`, both ends included; whole ones where both ends are. `log`: evenly by ratio."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} of a range by ratio is not above 0")
        return self


class Choices(FrozenConfig):
    """One of these."""

    choices: tuple[Value, ...] = Field(min_length=1)


class SearchConfig(FrozenConfig):
    """What is searched, and how.

    `space`: for keys of a training config, with dots (`fit.lr`), {low, high, log} or {choices: [...]}. `trials`: how many are
    tried. `sampler`: "tpe" learns from earlier trials (Bergstra et al. 2011, NeurIPS), "random" does not (Bergstra & Bengio
    2012, JMLR). `seed` decides the draws of both.
    """

    space: dict[str, Range | Choices] = Field(min_length=1)
    trials: int = Field(30, ge=1)
    sampler: Literal["tpe", "random"] = "tpe"
    seed: int = Field(0, ge=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting: its `value`, the mean over rounds of what is watched, or the `reason` why there is none."""

    number: int
    parameters: Mapping[str, Value]
    value: float | None
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSummary:
    """All trials in order, `before` of them from an earlier call, the best one, what was watched, and in which rounds."""

    trials: tuple[Trial, ...]
    before: int
    best: Trial
    monitor: str
    rounds: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """A search before it begins: its rounds have no test split, and `held_out` slides are in none."""

    config: SearchConfig
    base: TrainConfig
    rounds: SplitPlan
    held_out: tuple[str, ...]
    cohort: str
    monitor: str


def plan_search(
    config: SearchConfig, base: TrainConfig, cohort: Path, splits: Path, *, outer: str | None = None
) -> SearchPlan:
    """What `search` would do. Raises ConfigError for a space that does not fit, CohortError for splits that leak.

    `outer` names a round with a test split: of nested splits the rounds within it are searched, of others it alone.
    """
    if base.split.model_fields_set:
        raise ConfigError(f"the config holds a split section; a search takes its splits from {splits} alone")
    monitor = str(resolved(base.fit, base.task.build()).monitor)
    _check_space(config, base, monitor)
    rounds, held_out = _without_test(read_plan(splits), splits, outer)
    text = _rows_without(cohort, set(held_out))
    return SearchPlan(config=config, base=base, rounds=rounds, held_out=held_out, cohort=text, monitor=monitor)


def search(
    planned: SearchPlan, features: Path, out: Path, *, workers: int = 1, reporter: Reporter | None = None
) -> SearchSummary:
    """Try settings until there are as many trials as asked for; the same call goes on with an interrupted search.

    Rounds of a trial run side by side in `workers` processes, which stay for the next one. A trial that fails is recorded with
    its reason. Writes best.yaml, a config for `wsimil train` and `crossval`, trials.csv and search.json; the models of trials
    are not kept.
    Raises ConfigError without Optuna or for a folder of another search, OutputError where another process is at work in `out`,
    TrainingError where every trial failed.
    """
    with occupied(out):
        check_writable(out)
        return _searched(planned, features, out, workers, reporter or Quiet())


def _searched(planned: SearchPlan, features: Path, out: Path, workers: int, reporter: Reporter) -> SearchSummary:
    study = _study(planned, out)
    facts = _facts(planned, features)
    _refuse_other_search(out, facts)
    write_plan(out / "splits.json", planned.rounds)
    write_text(out / "cohort.csv", planned.cohort)
    first = _in_round(planned.base, out, planned.rounds.rounds[0].name)
    contents = plan(first, features, out / "cohort.csv").contents
    facts["contents"] = contents
    _refuse_other_search(out, facts)
    write_text(out / "search.json", json.dumps(facts, indent=1) + "\n")
    import optuna

    states = optuna.trial.TrialState
    for stale in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        study.tell(stale.number, state=states.FAIL)
        study.enqueue_trial(stale.params)
    before = len(_finished(study))
    reporter.begin("trials", max(planned.config.trials - before, 0))
    with TrainingPool(workers) as pool:
        while len(_finished(study)) < planned.config.trials:
            trial = study.ask()
            parameters = {key: _suggest(trial, key, one) for key, one in planned.config.space.items()}
            began = time.perf_counter()
            value, reason = _tried(planned, parameters, features, out, trial.number, contents, pool)
            trial.set_user_attr("seconds", round(time.perf_counter() - began, 3))
            trial.set_user_attr("reason", reason)
            study.tell(trial, value, state=states.FAIL if value is None else states.COMPLETE)
            shutil.rmtree(out / "trials" / str(trial.number), ignore_errors=True)
            shown = ", ".join(f"{key}={_shown(one)}" for key, one in parameters.items())
            reporter.finish_item(
                f"{planned.monitor} {value:.4f}: {shown}" if value is not None else f"failed: {reason}"
            )
            interrupt.check()
    trials = _finished(study)
    good = [trial for trial in trials if trial.value is not None]
    _write_trials(out / "trials.csv", trials, list(planned.config.space))
    if not good:
        raise TrainingError(f"all {len(trials)} trials failed, the last one: {trials[-1].reason}; see {out}/trials.csv")
    sign = -1 if planned.monitor in _LOWER_IS_BETTER else 1
    best = max(good, key=lambda trial: sign * (trial.value or 0.0))
    write_text(out / "best.yaml", _yaml(_configured(planned.base, best.parameters)))
    write_text(out / "search.json", json.dumps({**facts, "best": _json(best)}, indent=1) + "\n")
    shutil.rmtree(out / "trials", ignore_errors=True)
    names = tuple(one.name for one in planned.rounds.rounds)
    return SearchSummary(trials=tuple(trials), before=before, best=best, monitor=planned.monitor, rounds=names)


def _check_space(config: SearchConfig, base: TrainConfig, monitor: str) -> None:
    for key, one in config.space.items():
        refused = [name for name in _NOT_SEARCHED if key == name or key.startswith(f"{name}.")]
        if refused:
            raise ConfigError(f"space: {key}: {refused[0]} is not searched; set it in the training config")
        if monitor == "loss" and key in _UNIT_OF_LOSS:
            raise ConfigError(
                f"space: {key}: decides in which unit the loss is, so that losses of trials do not compare; set it in the"
                " training config, or watch something else with fit.monitor"
            )
        for value in (one.low, one.high) if isinstance(one, Range) else one.choices:
            try:
                _configured(base, {key: value})
            except ConfigError as error:
                raise ConfigError(f"space: {key} = {_shown(value)}: {error}") from None


def _configured(base: TrainConfig, parameters: Mapping[str, Value]) -> TrainConfig:
    """Raises ConfigError where the training, or its method, has no such key or refuses a value."""
    tree: dict[str, JsonValue] = base.model_dump(mode="json", exclude={"split"})
    for key, value in parameters.items():
        put(tree, key, value, source="space")
    config = parse_config(TrainConfig, tree, source="space")
    method = dict(config.method)
    name = str(method.pop("name", "abmil"))
    parse_config(registry.config_class(name), method, source="space", prefix="method")
    return config


def _without_test(whole: SplitPlan, path: Path, outer: str | None) -> tuple[SplitPlan, tuple[str, ...]]:
    """The rounds to search in, and the slides that none of them may see."""
    tested = [one for one in whole.rounds if one.test]
    if outer is not None:
        chosen = whole.round(outer)
        inner = [one for one in whole.rounds if not one.test and one.name.startswith(f"{outer}.")]
        rounds, held_out = inner if chosen.test and inner else [chosen], set(chosen.test)
    elif len({one.test for one in tested}) > 1:
        names = ", ".join(one.name for one in tested[:6])
        raise ConfigError(
            f"{path}: rounds {names}{', ...' if len(tested) > 6 else ''} test on different slides, and what one learns from"
            " another tests on; search in one of them with --round, best of nested splits (`wsimil splits make --kind nested`)"
        )
    else:
        rounds, held_out = tested or list(whole.rounds), set(tested[0].test) if tested else set()
    patients = {whole.slides[slide_id][0] for slide_id in held_out}
    held_out |= {slide_id for slide_id, (patient, _) in whole.slides.items() if patient in patients}
    for one in rounds:
        seen = held_out.intersection(one.train, one.val)
        if seen:
            raise CohortError(
                f"{path}: round {one.name} learns from {min(seen)!r}, whose patient is held out for the test"
            )
    used = {whole.slides[slide_id][0] for one in rounds for slide_id in (*one.train, *one.val)}
    held_out |= {slide_id for slide_id, (patient, _) in whole.slides.items() if patient not in used}
    kept = tuple(Round(name=one.name, train=one.train, val=one.val) for one in rounds)
    slides = {slide_id: known for slide_id, known in whole.slides.items() if slide_id not in held_out}
    return replace(whole, rounds=kept, slides=slides), tuple(sorted(held_out))


def _rows_without(cohort: Path, slide_ids: set[str]) -> str:
    """The cohort file without some of its slides, with commas."""
    names = column_names(cohort)
    cells = read_columns(cohort, names)
    text = io.StringIO()
    kept = [row for slide_id, row in cells.items() if slide_id not in slide_ids]
    csv.writer(text, lineterminator="\n").writerows([names, *kept])
    return text.getvalue()


def _tried(
    planned: SearchPlan,
    parameters: Mapping[str, Value],
    features: Path,
    out: Path,
    number: int,
    contents: str,
    pool: TrainingPool,
) -> tuple[float | None, str]:
    try:
        config = _configured(planned.base, parameters)
    except ConfigError as error:
        return None, str(error)
    items = [
        WorkItem(
            name=f"{number}/{one.name}",
            config=_in_round(config, out, one.name),
            features=features,
            cohort=out / "cohort.csv",
            out=out / "trials" / str(number) / one.name,
            contents=contents,
        )
        for one in planned.rounds.rounds
    ]
    values = []
    for item, reason in pool.outcomes(items):
        if reason is not None:
            return None, reason
        values.append(_watched(item.out, planned.monitor))
    undefined = [value for value in values if value is None or not math.isfinite(value)]
    if undefined:
        return None, f"{planned.monitor} of a validation split is undefined"
    return sum(value for value in values if value is not None) / len(values), ""


def _in_round(config: TrainConfig, out: Path, name: str) -> TrainConfig:
    split = SplitConfig(file=(out / "splits.json").resolve(), round=name)
    return config.model_copy(update={"split": split})


def _watched(run: Path, monitor: str) -> float | None:
    """What was watched in the epoch that was kept."""
    training = json.loads((run / "model.json").read_text(encoding="utf-8"))["training"]
    value = training.get(f"val_{monitor}")
    return None if value is None else float(value)


def _study(planned: SearchPlan, out: Path) -> optuna.Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise ConfigError(
            "a search needs Optuna, which is not installed; get it with pip install 'wsimil[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(out / "trials.journal")))
    done = 0
    directions = optuna.study.StudyDirection
    direction = directions.MINIMIZE if planned.monitor in _LOWER_IS_BETTER else directions.MAXIMIZE
    if (out / "trials.journal").exists():
        done = sum(study.n_trials for study in optuna.get_all_study_summaries(storage))
    seed = planned.config.seed + done  # one that goes on must not draw again what was drawn
    samplers = optuna.samplers
    sampler = samplers.TPESampler(seed=seed) if planned.config.sampler == "tpe" else samplers.RandomSampler(seed=seed)
    return optuna.create_study(
        study_name="search", storage=storage, sampler=sampler, direction=direction, load_if_exists=True
    )


def _suggest(trial: optuna.Trial, key: str, one: Range | Choices) -> Value:
    if isinstance(one, Choices):
        chosen: Value = trial.suggest_categorical(key, one.choices)
        return chosen
    if isinstance(one.low, int) and isinstance(one.high, int):
        return trial.suggest_int(key, one.low, one.high, log=one.log)
    return trial.suggest_float(key, one.low, one.high, log=one.log)


def _finished(study: optuna.Study) -> list[Trial]:
    """Trials that ended by themselves; one that was cut short is not among them."""
    return [
        Trial(
            number=trial.number,
            parameters=trial.params,
            value=trial.value,
            seconds=trial.user_attrs["seconds"],
            reason=trial.user_attrs["reason"],
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and "seconds" in trial.user_attrs
    ]


def _facts(planned: SearchPlan, features: Path) -> dict[str, JsonValue]:
    """What a search that goes on must have been made of."""
    return {
        "space": planned.config.model_dump(mode="json", exclude={"trials"}),
        "config": sha256_json(planned.base.model_dump(mode="json")),
        "cohort": sha256(planned.cohort.encode()).hexdigest(),
        "splits": planned.rounds.digest,
        "features": str(features.resolve()),
        "monitor": planned.monitor,
        "rounds": [one.name for one in planned.rounds.rounds],
        "held_out": len(planned.held_out),
    }


def _refuse_other_search(out: Path, facts: Mapping[str, JsonValue]) -> None:
    path = out / "search.json"
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    told = {"contents": "set of features (they were replaced, or an older version began it and did not note it)"}
    changed = [told.get(name, name) for name, now in facts.items() if before.get(name) != now]
    if changed:
        raise ConfigError(
            f"{out} holds a search of another {', '.join(changed)}; restore that to go on, choose another output folder, or"
            f" remove {', '.join(_FILES)}"
        )


def _write_trials(path: Path, trials: Sequence[Trial], keys: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["number", "value", *keys, "seconds", "reason"])
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.9g}"
        writer.writerow(
            [trial.number, value, *(_shown(trial.parameters.get(k)) for k in keys), trial.seconds, trial.reason]
        )
    write_text(path, text.getvalue())


def _shown(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value) if not isinstance(value, str) else value


def _json(trial: Trial) -> dict[str, JsonValue]:
    return {"number": trial.number, "value": trial.value, "parameters": dict(trial.parameters)}


def _yaml(config: TrainConfig) -> str:
    tree = config.model_dump(mode="json", exclude={"split"})
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
